//! Attributes of an instance: one is described, or changed, in a request.

use std::sync::Arc;

use instance::Code;
use instance::service::{MachineSize, ModifyInstance};

use super::describe::base64;
use super::instances::incorrect_state;
use super::run::{fitting, removes, user_data};
use super::shown::{self, Shown, Stage};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::query::Params;
use crate::xml::{Element, node, text};

/// Attributes that EC2 has and instances here have not.
const UNSUPPORTED: &[&str] = &[
    "ebsOptimized",
    "enaSupport",
    "enclaveOptions",
    "kernel",
    "productCodes",
    "ramdisk",
    "sourceDestCheck",
    "sriovNetSupport",
];

/// Attributes that are fixed at the launch.
const FIXED: &[&str] = &["blockDeviceMapping", "groupSet", "rootDeviceName"];

fn value(name: &'static str, value: impl ToString) -> Element {
    node(name, [text("value", value)])
}

/// The instance that the request names, if it is not being terminated.
fn living(api: &Api, params: &Params) -> Result<Shown> {
    let instance = shown::one(api, params)?;
    match instance.stage {
        Stage::Terminated => Err(Error::NoInstance(instance.id().to_owned())),
        Stage::ShuttingDown => Err(incorrect_state(&instance, instance::Event::Start)),
        _ => Ok(instance),
    }
}

/// `DescribeInstanceAttribute`.
pub fn describe(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instance = living(api, params)?;
    let attribute = params.required("Attribute")?;
    params.finish()?;
    let protection = api.ledger.protection(instance.id())?;
    let record = &instance.record;
    let element = match attribute {
        "instanceType" => value("instanceType", &instance.instance_type),
        "userData" => {
            let documents = instance.documents.as_ref();
            let data = documents.and_then(|documents| documents.user_data.as_deref());
            let data = data.filter(|data| !data.is_empty());
            node("userData", data.map(|data| text("value", base64(data))))
        }
        "disableApiTermination" => value("disableApiTermination", protection.termination),
        "disableApiStop" => value("disableApiStop", protection.stop),
        "instanceInitiatedShutdownBehavior" => {
            let behavior = if record.auto_remove { "terminate" } else { "stop" };
            value("instanceInitiatedShutdownBehavior", behavior)
        }
        "rootDeviceName" => {
            let root = record.volumes.first();
            node("rootDeviceName", root.map(|root| text("value", &root.device)))
        }
        "blockDeviceMapping" => instance.volumes(),
        "groupSet" => instance.group_set(),
        other if UNSUPPORTED.contains(&other) => return Err(unsupported(other)),
        other => return Err(Error::value("Attribute", other, "an attribute of an instance")),
    };
    Ok(vec![text("instanceId", instance.id()), element])
}

fn unsupported(attribute: &str) -> Error {
    Error::Unsupported(format!("the attribute {attribute}"))
}

/// The attribute that a request is to change, and its new value: in a parameter of the attribute's name, or
/// in `Attribute` and `Value`.
fn change(params: &Params) -> Result<(String, &str)> {
    if !params.places("GroupId").is_empty() {
        return Err(Error::Unsupported(
            "changing the security groups of an instance: they are applied when it is launched".into(),
        ));
    }
    if !params.places("BlockDeviceMapping").is_empty() {
        return Err(Error::Unsupported("changing volumes of an instance".into()));
    }
    let known = [
        "instanceType",
        "userData",
        "disableApiTermination",
        "disableApiStop",
        "instanceInitiatedShutdownBehavior",
    ];
    let mut changes = Vec::new();
    for attribute in known.iter().chain(UNSUPPORTED).chain(FIXED) {
        let mut parameter = (*attribute).to_owned();
        parameter[..1].make_ascii_uppercase();
        // Some are structures with a value, some are the value.
        let structured = params.text(&format!("{parameter}.Value"));
        if let Some(value) = structured.or_else(|| params.text(&parameter)) {
            changes.push(((*attribute).to_owned(), value));
        }
    }
    if let Some(attribute) = params.text("Attribute") {
        changes.push((attribute.to_owned(), params.required("Value")?));
    }
    match changes.as_slice() {
        [] => Err(Error::InvalidCombination(
            "no attribute is given that is to be changed",
        )),
        [_] => Ok(changes.remove(0)),
        _ => Err(Error::InvalidCombination("one attribute is changed at a time")),
    }
}

fn boolean(attribute: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "True" => Ok(true),
        "false" | "False" => Ok(false),
        other => Err(Error::value(attribute, other, "true or false")),
    }
}

/// `ModifyInstanceAttribute`.
pub fn modify(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instance = living(api, params)?;
    let id = instance.id();
    let (attribute, value) = change(params)?;
    let mut request = ModifyInstance {
        instance: id.to_owned(),
        ..ModifyInstance::default()
    };
    match attribute.as_str() {
        "disableApiTermination" => {
            let termination = boolean(&attribute, value)?;
            params.finish()?;
            forget_protections(api)?;
            api.ledger
                .protect(id, |protection| protection.termination = termination)?;
            return Ok(vec![text("return", true)]);
        }
        "disableApiStop" => {
            let stop = boolean(&attribute, value)?;
            params.finish()?;
            forget_protections(api)?;
            api.ledger.protect(id, |protection| protection.stop = stop)?;
            return Ok(vec![text("return", true)]);
        }
        "instanceType" => {
            let size = fitting(value, &instance.architecture)?;
            request.size = Some(MachineSize {
                name: size.name.to_owned(),
                cpus: size.vcpus,
                memory: size.memory << 20,
            });
        }
        "userData" => {
            request.user_data = Some(user_data(value)?);
        }
        "instanceInitiatedShutdownBehavior" => {
            request.auto_remove = Some(removes(&attribute, value)?);
        }
        other if FIXED.contains(&other) => {
            return Err(Error::Unsupported(format!("changing the attribute {other}")));
        }
        other if UNSUPPORTED.contains(&other) => return Err(unsupported(other)),
        other => return Err(Error::value("Attribute", other, "an attribute of an instance")),
    }
    if instance.stage != Stage::Stopped {
        return Err(Error::Service(instance::Error::NotStopped(id.to_owned())));
    }
    params.finish()?;
    api.service.modify_instance(&request)?;
    Ok(vec![text("return", true)])
}

/// Forgets what is known of instances that `vmm` has terminated.
fn forget_protections(api: &Api) -> Result<()> {
    for id in api.ledger.protected()? {
        match api.service.describe_instance(&id) {
            Err(error) if error.code() == Code::InstanceNotFound => {
                api.ledger
                    .protect(&id, |protection| *protection = Default::default())?;
            }
            _ => {}
        }
    }
    Ok(())
}
