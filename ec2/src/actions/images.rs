//! Images: those in the store, and making one of an instance or a file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use instance::images::Stored;
use instance::service::metadata as place;
use instance::service::{CreateImage, DeregisterImage, RegisterImage};
use instance::store::id::valid_name;

use super::describe;
use super::shown::{self, Stage};
use super::tags as tagging;
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::{Filters, of_tags};
use crate::ledger::ImageOf;
use crate::page::Page;
use crate::query::Params;
use crate::time;
use crate::xml::{Element, node, set, text};

const ID: &str = "ami-";
/// What the store calls a name without a tag.
const LATEST: &str = ":latest";

/// Checks the form of an id.
pub fn check_id(id: &str) -> Result<&str> {
    let digits = id.strip_prefix(ID).filter(|digits| digits.len() == 17);
    match digits.is_some_and(|d| d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
        true => Ok(id),
        false => Err(Error::MalformedImage(id.to_owned())),
    }
}

/// What the API calls an image: its name in the store, or what it says of itself.
fn name(stored: &Stored) -> String {
    let own = || {
        stored
            .image
            .as_ref()
            .map(|image| image.name().to_owned())
            .unwrap_or_default()
    };
    let first = stored.names.first();
    first.map_or_else(own, |name| name.strip_suffix(LATEST).unwrap_or(name).to_owned())
}

/// The tags of each image by its id.
pub fn tags(api: &Api) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let images = api.service.describe_images()?.into_iter();
    let tags = images.filter_map(|stored| Some((stored.id, stored.image.ok()?.manifest().tags.clone())));
    Ok(tags.collect())
}

/// Seconds since 1970 at which the image came into the store.
fn created(stored: &Stored) -> u64 {
    let modified = std::fs::metadata(&stored.path).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs())
}

const FILTERS: &[&str] = &[
    "architecture",
    "block-device-mapping.device-name",
    "creation-date",
    "description",
    "image-id",
    "image-type",
    "is-public",
    "name",
    "owner-id",
    "root-device-name",
    "root-device-type",
    "state",
    "tag-key",
    "tag-value",
    "virtualization-type",
];

fn value(stored: &Stored, filter: &str) -> Vec<String> {
    let manifest = stored.image.as_ref().ok().map(|image| image.manifest());
    let none = BTreeMap::new();
    if let Some(values) = of_tags(filter, manifest.map_or(&none, |m| &m.tags).iter()) {
        return values;
    }
    let value = match filter {
        "image-id" => Some(stored.id.clone()),
        "name" => Some(name(stored)),
        "creation-date" => Some(time::iso(created(stored))),
        "image-type" => Some("machine".into()),
        "is-public" => Some("false".into()),
        "owner-id" => Some(place::ACCOUNT.into()),
        "root-device-type" => Some("ebs".into()),
        "virtualization-type" => Some("hvm".into()),
        "state" => Some(state(stored).into()),
        "architecture" => manifest.map(|m| m.architecture.to_string()),
        "description" => manifest.map(|m| m.description.clone()),
        "root-device-name" => manifest.map(|m| m.root_device.clone()),
        "block-device-mapping.device-name" => {
            let mappings = manifest
                .map(|m| m.block_device_mappings.as_slice())
                .unwrap_or_default();
            return mappings.iter().map(|mapping| mapping.device.clone()).collect();
        }
        _ => None,
    };
    value.into_iter().collect()
}

fn state(stored: &Stored) -> &'static str {
    if stored.image.is_ok() {
        "available"
    } else {
        "invalid"
    }
}

/// `DescribeImages`.
pub fn describe(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let ids = params.list("ImageId");
    let owners = params.list("Owner");
    let users = params.list("ExecutableBy");
    params.flag("IncludeDeprecated")?;
    params.flag("IncludeDisabled")?;
    let filters = Filters::parse(params, FILTERS)?;
    let page = Page::parse(params, 1)?;
    let mut images = api.service.describe_images()?;
    for id in &ids {
        check_id(id)?;
        if !images.iter().any(|stored| stored.id == *id) {
            return Err(Error::NoImage((*id).to_owned()));
        }
    }
    params.finish()?;
    let ours = |names: &[&str]| {
        names.is_empty() || names.iter().any(|name| matches!(*name, "self" | place::ACCOUNT))
    };
    images.retain(|stored| {
        ours(&owners)
            && ours(&users)
            && (ids.is_empty() || ids.contains(&stored.id.as_str()))
            && filters.pass(|filter| value(stored, filter))
    });
    let (shown, next) = page.take(images, |stored| stored.id.clone());
    let items = shown.iter().map(elements);
    Ok([set("imagesSet", items)].into_iter().chain(next).collect())
}

fn elements(stored: &Stored) -> Vec<Element> {
    let name = name(stored);
    let mut all = vec![
        text("imageId", &stored.id),
        text("imageLocation", format!("{}/{name}", place::ACCOUNT)),
        text("imageState", state(stored)),
        text("imageOwnerId", place::ACCOUNT),
        text("creationDate", time::iso(created(stored))),
        text("isPublic", false),
        text("imageType", "machine"),
        text("name", name),
        text("rootDeviceType", "ebs"),
        text("virtualizationType", "hvm"),
    ];
    let Ok(image) = &stored.image else {
        return all;
    };
    let manifest = image.manifest();
    if !manifest.description.is_empty() {
        all.push(text("description", &manifest.description));
    }
    let mappings = manifest.block_device_mappings.iter().map(|mapping| {
        let ebs = [
            text("volumeSize", mapping.size.div_ceil(1 << 30)),
            text("deleteOnTermination", mapping.delete_on_termination),
            text("encrypted", false),
        ];
        [text("deviceName", &mapping.device), node("ebs", ebs)]
    });
    all.extend([
        text("architecture", manifest.architecture),
        text("rootDeviceName", &manifest.root_device),
        set("blockDeviceMapping", mappings),
        tagging::element(&manifest.tags),
    ]);
    all
}

/// The name that a new image is to have. The store's names are narrower than EC2's.
fn new_name(params: &Params) -> Result<&str> {
    let name = params.required("Name")?;
    if !valid_name(name) || name.starts_with(ID) {
        let why = "1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or digit, not in the form of an id";
        return Err(Error::value("Name", name, why));
    }
    Ok(name)
}

fn is_taken(api: &Api, wanted: &str) -> Result<bool> {
    let images = api.service.describe_images()?;
    let full = format!("{wanted}{LATEST}");
    Ok(images.iter().any(|stored| stored.names.contains(&full)))
}

/// `CreateImage`: returns when the image is there. A client that becomes impatient sends the same request
/// again, which then waits for the first one and gets its image.
pub fn create(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let name = new_name(params)?;
    let instance = shown::one(api, params)?;
    let request = CreateImage {
        instance: instance.id().to_owned(),
        name: name.to_owned(),
        description: params.text("Description").map(str::to_owned),
        no_reboot: params.flag("NoReboot")?,
        keep_identity: false,
    };
    if !matches!(instance.stage, Stage::Running | Stage::Stopped) {
        return Err(Error::Service(instance::Error::NotRunning {
            what: "making an image",
            id: instance.id().to_owned(),
            state: instance.record.state,
        }));
    }
    params.finish()?;
    let (held, known) = api.ledger.lock_image(name)?;
    let again = params
        .invocation
        .as_ref()
        .map(|invocation| describe::digest(&format!("{invocation} {}", params.canonical(&[]))));
    if is_taken(api, name)? {
        return match known {
            Some(made) if Some(&made.request) == again.as_ref() => Ok(vec![text("imageId", made.image)]),
            _ => Err(Error::ImageName(name.to_owned())),
        };
    }
    let made = api.service.create_image(&request)?;
    if let Some(warning) = &made.warning {
        tracing::warn!(image = made.id, warning, "an image was made");
    }
    held.put(&ImageOf {
        request: again.unwrap_or_default(),
        image: made.id.clone(),
        at: time::now(),
    })?;
    Ok(vec![text("imageId", made.id)])
}

/// `RegisterImage`: an AMI file of this host, by its path.
pub fn register(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let name = new_name(params)?;
    let path = params.required("ImageLocation")?;
    if !path.starts_with('/') {
        return Err(Error::value(
            "ImageLocation",
            path,
            "the absolute path of an AMI file on this host",
        ));
    }
    if is_taken(api, name)? {
        return Err(Error::ImageName(name.to_owned()));
    }
    params.finish()?;
    let request = RegisterImage {
        path: path.into(),
        name: Some(name.to_owned()),
    };
    let id = api.service.register_image(&request)?;
    Ok(vec![text("imageId", id)])
}

/// Checks that the store has the image.
pub fn check_stored(api: &Api, id: &str) -> Result<()> {
    match api
        .service
        .describe_images()?
        .iter()
        .any(|stored| stored.id == id)
    {
        true => Ok(()),
        false => Err(Error::NoImage(id.to_owned())),
    }
}

/// `DeregisterImage`.
pub fn deregister(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let id = check_id(params.required("ImageId")?)?;
    if params.flag("DeleteAssociatedSnapshots")? {
        return Err(Error::Unsupported("snapshots".into()));
    }
    check_stored(api, id)?;
    params.finish()?;
    let request = DeregisterImage {
        image: id.to_owned(),
        force: false,
    };
    api.service.deregister_image(&request)?;
    Ok(vec![text("return", true)])
}
