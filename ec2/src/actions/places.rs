//! Where things are: one region with one zone, one VPC with one subnet, one account.

use std::sync::Arc;

use instance::service::metadata as place;

use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::page::Page;
use crate::query::Params;
use crate::xml::{Element, node, set, text};

/// Checks that each of the names in the parameter `parameter` is `known`.
fn only(params: &Params, parameter: &str, known: &str, kind: &'static str) -> Result<()> {
    match params.list(parameter).into_iter().find(|name| *name != known) {
        None => Ok(()),
        Some(other) => Err(Error::NoPlace {
            kind,
            id: other.to_owned(),
        }),
    }
}

/// Whether a thing passes the request's filters: `values` has a value for each filter of the action.
fn passes(params: &Params, values: &[(&str, &str)]) -> Result<bool> {
    let known: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let filters = Filters::parse(params, &known)?;
    Ok(filters.pass(|name| {
        let of_name = values.iter().filter(|(known, _)| *known == name);
        of_name.map(|(_, value)| (*value).to_owned()).collect()
    }))
}

/// The page of a set that has one thing, which is described by `fields`.
fn page_of_one<const N: usize>(
    params: &Params,
    name: &'static str,
    id: &str,
    values: &[(&str, &str)],
    fields: [Element; N],
) -> Result<Vec<Element>> {
    let all = if passes(params, values)? {
        vec![id]
    } else {
        Vec::new()
    };
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let (shown, next) = page.take(all, |id| (*id).to_owned());
    let described = (!shown.is_empty()).then_some(fields);
    Ok([set(name, described)].into_iter().chain(next).collect())
}

/// `DescribeRegions`.
pub fn regions(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "RegionName", place::REGION, "region")?;
    params.flag("AllRegions")?;
    let values = [
        ("region-name", place::REGION),
        ("endpoint", &api.endpoint),
        ("opt-in-status", "opt-in-not-required"),
    ];
    let passes = passes(params, &values)?;
    params.finish()?;
    let region = [
        text("regionName", place::REGION),
        text("regionEndpoint", &api.endpoint),
        text("optInStatus", "opt-in-not-required"),
    ];
    Ok(vec![set("regionInfo", passes.then_some(region))])
}

/// `DescribeAvailabilityZones`.
pub fn zones(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "ZoneName", place::ZONE, "availability zone")?;
    only(params, "ZoneId", place::ZONE_ID, "availability zone")?;
    params.flag("AllAvailabilityZones")?;
    let values = [
        ("region-name", place::REGION),
        ("zone-name", place::ZONE),
        ("zone-id", place::ZONE_ID),
        ("zone-type", "availability-zone"),
        ("state", "available"),
        ("opt-in-status", "opt-in-not-required"),
    ];
    let passes = passes(params, &values)?;
    params.finish()?;
    let zone = [
        text("optInStatus", "opt-in-not-required"),
        node("messageSet", []),
        text("regionName", place::REGION),
        text("zoneName", place::ZONE),
        text("zoneId", place::ZONE_ID),
        text("groupName", place::REGION),
        text("networkBorderGroup", place::REGION),
        text("zoneType", "availability-zone"),
        text("zoneState", "available"),
    ];
    Ok(vec![set("availabilityZoneInfo", passes.then_some(zone))])
}

/// `DescribeVpcs`: the one that there is, which cannot be changed.
pub fn vpcs(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "VpcId", place::VPC, "vpc")?;
    let block = place::default_block();
    let values = [
        ("vpc-id", place::VPC),
        ("cidr", &block),
        ("cidr-block-association.cidr-block", &block),
        ("isDefault", "true"),
        ("is-default", "true"),
        ("owner-id", place::ACCOUNT),
        ("state", "available"),
    ];
    let fields = [
        text("vpcId", place::VPC),
        text("ownerId", place::ACCOUNT),
        text("state", "available"),
        text("cidrBlock", &block),
        text("instanceTenancy", "default"),
        text("isDefault", true),
    ];
    page_of_one(params, "vpcSet", place::VPC, &values, fields)
}

/// `DescribeSubnets`: the one that there is, which cannot be changed.
pub fn subnets(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "SubnetId", place::SUBNET, "subnet")?;
    let block = place::default_block();
    let values = [
        ("subnet-id", place::SUBNET),
        ("vpc-id", place::VPC),
        ("availability-zone", place::ZONE),
        ("availabilityZone", place::ZONE),
        ("availability-zone-id", place::ZONE_ID),
        ("cidr-block", &block),
        ("default-for-az", "true"),
        ("defaultForAz", "true"),
        ("owner-id", place::ACCOUNT),
        ("state", "available"),
        ("map-public-ip-on-launch", "false"),
    ];
    let fields = [
        text("subnetId", place::SUBNET),
        text("state", "available"),
        text("vpcId", place::VPC),
        text("cidrBlock", &block),
        text("availabilityZone", place::ZONE),
        text("availabilityZoneId", place::ZONE_ID),
        text("defaultForAz", true),
        text("mapPublicIpOnLaunch", false),
        text("ownerId", place::ACCOUNT),
    ];
    page_of_one(params, "subnetSet", place::SUBNET, &values, fields)
}

/// `DescribeAccountAttributes`.
pub fn account_attributes(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let known = [("supported-platforms", "VPC"), ("default-vpc", place::VPC)];
    let asked = params.list("AttributeName");
    if let Some(other) = asked
        .iter()
        .find(|name| known.iter().all(|(known, _)| known != *name))
    {
        return Err(Error::value(
            "AttributeName",
            *other,
            "supported-platforms or default-vpc",
        ));
    }
    params.finish()?;
    let shown = known
        .iter()
        .filter(|(name, _)| asked.is_empty() || asked.contains(name));
    let attributes = shown.map(|(name, value)| {
        [
            text("attributeName", name),
            set("attributeValueSet", [[text("attributeValue", value)]]),
        ]
    });
    Ok(vec![set("accountAttributeSet", attributes)])
}

/// STS's `GetCallerIdentity`.
pub fn caller(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    params.finish()?;
    Ok(vec![node(
        "GetCallerIdentityResult",
        [
            text("Arn", format!("arn:aws:iam::{}:root", place::ACCOUNT)),
            text("UserId", &api.credentials.access_key),
            text("Account", place::ACCOUNT),
        ],
    )])
}

/// The VPC and the subnet as an instance names them.
pub fn of_instance() -> [Element; 2] {
    [text("subnetId", place::SUBNET), text("vpcId", place::VPC)]
}

/// Checks where an instance is to be launched: there is one place.
pub fn check_placement(params: &Params) -> Result<()> {
    if let Some(zone) = params
        .text("Placement.AvailabilityZone")
        .filter(|zone| *zone != place::ZONE)
    {
        return Err(Error::NoPlace {
            kind: "availability zone",
            id: zone.to_owned(),
        });
    }
    if let Some(subnet) = params.text("SubnetId").filter(|subnet| *subnet != place::SUBNET) {
        return Err(Error::NoPlace {
            kind: "subnet",
            id: subnet.to_owned(),
        });
    }
    match params.text("Placement.Tenancy") {
        None | Some("default") => {}
        Some(other) => return Err(Error::Unsupported(format!("the tenancy {other}"))),
    }
    Ok(())
}
