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

/// `DescribeRegions`.
pub fn regions(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "RegionName", place::REGION, "region")?;
    params.flag("AllRegions")?;
    let filters = Filters::parse(params, &["region-name", "endpoint", "opt-in-status"])?;
    params.finish()?;
    let passes = filters.pass(|name| {
        vec![match name {
            "region-name" => place::REGION.to_owned(),
            "endpoint" => api.endpoint.clone(),
            _ => "opt-in-not-required".to_owned(),
        }]
    });
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
    let known = [
        "region-name",
        "zone-name",
        "zone-id",
        "zone-type",
        "state",
        "opt-in-status",
    ];
    let filters = Filters::parse(params, &known)?;
    params.finish()?;
    let value = |name: &str| match name {
        "region-name" => place::REGION,
        "zone-name" => place::ZONE,
        "zone-id" => place::ZONE_ID,
        "zone-type" => "availability-zone",
        "state" => "available",
        _ => "opt-in-not-required",
    };
    let passes = filters.pass(|name| vec![value(name).to_owned()]);
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
    let known = [
        "vpc-id",
        "cidr",
        "cidr-block-association.cidr-block",
        "isDefault",
        "is-default",
        "owner-id",
        "state",
    ];
    let filters = Filters::parse(params, &known)?;
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let block = place::default_block();
    let passes = filters.pass(|name| {
        let value = match name {
            "vpc-id" => place::VPC,
            "cidr" | "cidr-block-association.cidr-block" => &block,
            "isDefault" | "is-default" => "true",
            "owner-id" => place::ACCOUNT,
            "state" => "available",
            _ => return Vec::new(),
        };
        vec![value.to_owned()]
    });
    let all = if passes { vec![place::VPC] } else { Vec::new() };
    let (shown, next) = page.take(all, |id| (*id).to_owned());
    let vpcs = shown.into_iter().map(|id| {
        [
            text("vpcId", id),
            text("ownerId", place::ACCOUNT),
            text("state", "available"),
            text("cidrBlock", &block),
            text("instanceTenancy", "default"),
            text("isDefault", true),
        ]
    });
    Ok([set("vpcSet", vpcs)].into_iter().chain(next).collect())
}

/// `DescribeSubnets`: the one that there is, which cannot be changed.
pub fn subnets(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    only(params, "SubnetId", place::SUBNET, "subnet")?;
    let known = [
        "subnet-id",
        "vpc-id",
        "availability-zone",
        "availabilityZone",
        "availability-zone-id",
        "cidr-block",
        "default-for-az",
        "defaultForAz",
        "owner-id",
        "state",
        "map-public-ip-on-launch",
    ];
    let filters = Filters::parse(params, &known)?;
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let block = place::default_block();
    let passes = filters.pass(|name| {
        let value = match name {
            "subnet-id" => place::SUBNET,
            "vpc-id" => place::VPC,
            "availability-zone" | "availabilityZone" => place::ZONE,
            "availability-zone-id" => place::ZONE_ID,
            "cidr-block" => &block,
            "default-for-az" | "defaultForAz" => "true",
            "map-public-ip-on-launch" => "false",
            "owner-id" => place::ACCOUNT,
            "state" => "available",
            _ => return Vec::new(),
        };
        vec![value.to_owned()]
    });
    let all = if passes { vec![place::SUBNET] } else { Vec::new() };
    let (shown, next) = page.take(all, |id| (*id).to_owned());
    let subnets = shown.into_iter().map(|id| {
        [
            text("subnetId", id),
            text("state", "available"),
            text("vpcId", place::VPC),
            text("cidrBlock", &block),
            text("availabilityZone", place::ZONE),
            text("availabilityZoneId", place::ZONE_ID),
            text("defaultForAz", true),
            text("mapPublicIpOnLaunch", false),
            text("ownerId", place::ACCOUNT),
        ]
    });
    Ok([set("subnetSet", subnets)].into_iter().chain(next).collect())
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
