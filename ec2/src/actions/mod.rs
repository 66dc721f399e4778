//! What can be asked for. An action reads all of its parameters, looks up what they name, calls
//! [`Params::finish`], and only then does something.

use std::sync::Arc;

use crate::api::Api;
use crate::error::Result;
use crate::query::Params;
use crate::xml::Element;

mod attributes;
mod describe;
pub(crate) mod groups;
mod images;
mod instances;
mod key_pairs;
mod places;
mod run;
pub(crate) mod shown;
mod sizes;
mod tags;
mod terminate;

pub(crate) use groups::Group;
pub use terminate::finish_terminations;

/// One action: what its answer contains.
pub type Action = fn(&Arc<Api>, &Params) -> Result<Vec<Element>>;

/// EC2's actions that are here.
pub const EC2: &[(&str, Action)] = &[
    ("AuthorizeSecurityGroupIngress", groups::authorize),
    ("CreateImage", images::create),
    ("CreateKeyPair", key_pairs::create),
    ("CreateSecurityGroup", groups::create),
    ("CreateTags", tags::create),
    ("DeleteKeyPair", key_pairs::delete),
    ("DeleteSecurityGroup", groups::delete),
    ("DeleteTags", tags::delete),
    ("DeregisterImage", images::deregister),
    ("DescribeAccountAttributes", places::account_attributes),
    ("DescribeAvailabilityZones", places::zones),
    ("DescribeImages", images::describe),
    ("DescribeInstanceAttribute", attributes::describe),
    ("DescribeInstanceStatus", describe::status),
    ("DescribeInstanceTypeOfferings", sizes::offerings),
    ("DescribeInstanceTypes", sizes::types),
    ("DescribeInstances", describe::instances),
    ("DescribeKeyPairs", key_pairs::describe),
    ("DescribeRegions", places::regions),
    ("DescribeSecurityGroups", groups::describe),
    ("DescribeSubnets", places::subnets),
    ("DescribeTags", tags::describe),
    ("DescribeVpcs", places::vpcs),
    ("GetConsoleOutput", instances::console_output),
    ("ImportKeyPair", key_pairs::import),
    ("ModifyInstanceAttribute", attributes::modify),
    ("RebootInstances", instances::reboot),
    ("RegisterImage", images::register),
    ("RevokeSecurityGroupIngress", groups::revoke),
    ("RunInstances", run::run),
    ("StartInstances", instances::start),
    ("StopInstances", instances::stop),
    ("TerminateInstances", terminate::terminate),
];

/// STS's.
pub const STS: &[(&str, Action)] = &[("GetCallerIdentity", places::caller)];
