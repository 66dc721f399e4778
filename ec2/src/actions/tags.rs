//! Tags: those that a request gives, and those that things have.

use std::collections::BTreeMap;
use std::sync::Arc;

use instance::store::tags::{MAX_KEY, MAX_TAGS, MAX_VALUE, TagChange};

use super::instances::incorrect_state;
use super::shown::{Shown, Stage};
use super::{images, shown};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::{Filters, of_tags};
use crate::page::Page;
use crate::query::Params;
use crate::xml::{Element, set, text};

/// The tag that the name is shown as.
const NAME: &str = "Name";

/// The tags that a request gives to what it makes, which is of the type `resource`.
///
/// # Errors
/// When they are for something else, or are none.
pub fn specified(params: &Params, resource: &str) -> Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for place in params.places("TagSpecification") {
        let kind = params.required(&format!("{place}.ResourceType"))?;
        if kind != resource {
            return Err(Error::Unsupported(format!(
                "giving tags to a {kind} with this action"
            )));
        }
        for tag in params.places(&format!("{place}.Tag")) {
            let (key, value) = tag_at(params, &tag)?;
            tags.insert(key, value);
        }
    }
    if tags.len() > MAX_TAGS {
        return Err(Error::value("Tag", tags.len().to_string(), "at most 50 tags"));
    }
    Ok(tags)
}

/// The tag whose key and value are in the parameters that begin with `place`.
fn tag_at(params: &Params, place: &str) -> Result<(String, String)> {
    let key = params.required(&format!("{place}.Key"))?;
    let value = params.text(&format!("{place}.Value")).unwrap_or_default();
    if key.chars().count() > MAX_KEY || value.chars().count() > MAX_VALUE || key.starts_with("aws:") {
        return Err(Error::value(
            "Tag",
            key,
            "a key of 1 to 128 characters, not beginning with aws:, and a value of at most 256",
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The instances whose tags a request changes: other things keep those that they were made with.
fn resources(api: &Api, params: &Params) -> Result<Vec<Shown>> {
    let ids = params.list("ResourceId");
    if ids.is_empty() {
        return Err(Error::MissingParameter("ResourceId".into()));
    }
    for id in &ids {
        let (kind, _) = id
            .split_once('-')
            .ok_or_else(|| Error::InvalidId((*id).to_owned()))?;
        match kind {
            "i" => {}
            "ami" | "key" | "sg" | "vol" | "vpc" | "subnet" | "eni" | "r" => {
                return Err(Error::Unsupported(format!(
                    "changing the tags of {id}: tags of instances alone"
                )));
            }
            _ => return Err(Error::InvalidId((*id).to_owned())),
        }
    }
    let instances = shown::named(api, &ids)?;
    let gone = |instance: &&Shown| matches!(instance.stage, Stage::ShuttingDown | Stage::Terminated);
    match instances.iter().find(gone) {
        Some(instance) => Err(incorrect_state(instance, instance::Event::Start)),
        None => Ok(instances),
    }
}

/// `CreateTags`: adds tags, and gives others a new value.
pub fn create(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instances = resources(api, params)?;
    let mut change = TagChange::default();
    for tag in params.places("Tag") {
        let (key, value) = tag_at(params, &tag)?;
        change.set.insert(key, value);
    }
    if change.set.is_empty() {
        return Err(Error::MissingParameter("Tag".into()));
    }
    apply(api, params, &instances, &change)
}

/// `DeleteTags`: those with the keys that are named, if they have the value that is named, or all.
pub fn delete(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instances = resources(api, params)?;
    let mut change = TagChange::default();
    for tag in params.places("Tag") {
        let key = params.required(&format!("{tag}.Key"))?;
        let name = format!("{tag}.Value");
        let value = params.text(&name).or(params.is_blank(&name).then_some(""));
        change.remove.insert(key.to_owned(), value.map(str::to_owned));
    }
    if change.remove.is_empty() {
        let keys = instances.iter().flat_map(|instance| instance.tags().into_keys());
        change.remove = keys.map(|key| (key, None)).collect();
    }
    let named = |instance: &&Shown| instance.record.name.is_some() && removes_name(&change, instance);
    if instances.iter().any(|instance| named(&instance)) {
        return Err(Error::Unsupported(
            "removing the name that vmm has given to an instance".into(),
        ));
    }
    apply(api, params, &instances, &change)
}

fn removes_name(change: &TagChange, instance: &Shown) -> bool {
    let value = change.remove.get(NAME);
    value.is_some_and(|value| value.is_none() || value.as_ref() == instance.tags().get(NAME))
}

/// Changes the tags of all of them, or of none if those of one would be too many.
fn apply(api: &Api, params: &Params, instances: &[Shown], change: &TagChange) -> Result<Vec<Element>> {
    for instance in instances {
        change.of(&instance.record.tags)?;
    }
    params.finish()?;
    for instance in instances {
        api.service.change_tags(instance.id(), change)?;
    }
    Ok(vec![text("return", true)])
}

/// `tagSet`.
pub fn element(tags: &BTreeMap<String, String>) -> Element {
    set(
        "tagSet",
        tags.iter()
            .map(|(key, value)| [text("key", key), text("value", value)]),
    )
}

/// One tag of one thing.
struct Tagged {
    id: String,
    kind: &'static str,
    key: String,
    value: String,
}

/// `DescribeTags`.
pub fn describe(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let filters = Filters::parse(params, &["key", "value", "resource-id", "resource-type"])?;
    let page = Page::parse(params, 5)?;
    params.finish()?;
    let mut all = Vec::new();
    let mut put = |id: &str, kind: &'static str, tags: &BTreeMap<String, String>| {
        all.extend(tags.iter().map(|(key, value)| Tagged {
            id: id.to_owned(),
            kind,
            key: key.clone(),
            value: value.clone(),
        }));
    };
    for instance in shown::all(api)? {
        put(instance.id(), "instance", &instance.tags());
    }
    for (id, tags) in images::tags(api)? {
        put(&id, "image", &tags);
    }
    for (_, pair) in api.ledger.key_pairs()? {
        put(&pair.id, "key-pair", &pair.tags);
    }
    for (id, group) in api.ledger.groups()? {
        put(&id, "security-group", &group.tags);
    }
    all.retain(|tag| {
        filters.pass(|name| match name {
            "key" => vec![tag.key.clone()],
            "value" => vec![tag.value.clone()],
            "resource-id" => vec![tag.id.clone()],
            "resource-type" => vec![tag.kind.to_owned()],
            name => of_tags(name, std::iter::once((&tag.key, &tag.value))).unwrap_or_default(),
        })
    });
    let place = |tag: &Tagged| format!("{}/{}", tag.id, tag.key);
    all.sort_by_key(place);
    let (shown, next) = page.take(all, place);
    let items = shown.iter().map(|tag| {
        [
            text("resourceId", &tag.id),
            text("resourceType", tag.kind),
            text("key", &tag.key),
            text("value", &tag.value),
        ]
    });
    Ok([set("tagSet", items)].into_iter().chain(next).collect())
}
