//! Instance types, as they are described.

use std::sync::Arc;

use instance::service::metadata as place;

use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::page::Page;
use crate::query::Params;
use crate::types::{InstanceType, TYPES};
use crate::xml::{Element, node, set, text, texts};

/// `DescribeInstanceTypes`.
pub fn types(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let asked = params.list("InstanceType");
    if let Some(unknown) = asked.iter().find(|name| InstanceType::named(name).is_none()) {
        return Err(Error::value(
            "InstanceType",
            *unknown,
            "see DescribeInstanceTypes without a name",
        ));
    }
    let known = [
        "instance-type",
        "memory-info.size-in-mib",
        "processor-info.supported-architecture",
        "vcpu-info.default-vcpus",
        "current-generation",
        "supported-root-device-type",
    ];
    let filters = Filters::parse(params, &known)?;
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let wanted = |each: &&InstanceType| {
        (asked.is_empty() || asked.contains(&each.name))
            && filters.pass(|name| {
                vec![match name {
                    "instance-type" => each.name.to_owned(),
                    "memory-info.size-in-mib" => each.memory.to_string(),
                    "processor-info.supported-architecture" => each.architecture().to_owned(),
                    "vcpu-info.default-vcpus" => each.vcpus.to_string(),
                    "supported-root-device-type" => "ebs".to_owned(),
                    _ => "true".to_owned(),
                }]
            })
    };
    let (shown, next) = page.take(TYPES.iter().filter(wanted).collect(), |each| each.name.to_owned());
    let items = shown.iter().map(|each| {
        [
            text("instanceType", each.name),
            text("currentGeneration", true),
            texts("supportedRootDeviceTypes", ["ebs"]),
            texts("supportedVirtualizationTypes", ["hvm"]),
            text("bareMetal", false),
            node(
                "processorInfo",
                [texts("supportedArchitectures", [each.architecture()])],
            ),
            node("vCpuInfo", [text("defaultVCpus", each.vcpus)]),
            node("memoryInfo", [text("sizeInMiB", each.memory)]),
            text("instanceStorageSupported", false),
            text("hibernationSupported", false),
        ]
    });
    Ok([set("instanceTypeSet", items)].into_iter().chain(next).collect())
}

/// `DescribeInstanceTypeOfferings`: every type, everywhere.
pub fn offerings(_: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let kind = params.text("LocationType").unwrap_or("region");
    let location = match kind {
        "region" => place::REGION,
        "availability-zone" => place::ZONE,
        "availability-zone-id" => place::ZONE_ID,
        other => {
            return Err(Error::value(
                "LocationType",
                other,
                "region, availability-zone or availability-zone-id",
            ));
        }
    };
    let filters = Filters::parse(params, &["instance-type", "location"])?;
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let wanted = |each: &&InstanceType| {
        filters.pass(|name| {
            let value = if name == "location" { location } else { each.name };
            vec![value.to_owned()]
        })
    };
    let (shown, next) = page.take(TYPES.iter().filter(wanted).collect(), |each| each.name.to_owned());
    let items = shown.iter().map(|each| {
        [
            text("instanceType", each.name),
            text("locationType", kind),
            text("location", location),
        ]
    });
    Ok([set("instanceTypeOfferingSet", items)]
        .into_iter()
        .chain(next)
        .collect())
}
