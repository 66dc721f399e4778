//! Tags: those that a request gives, and those that things have.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{images, shown};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::{Filters, of_tags};
use crate::page::Page;
use crate::query::Params;
use crate::xml::{Element, set, text};

/// Tags at most of one thing, and their lengths: EC2's limits.
const MAX_TAGS: usize = 50;
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 256;

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
            let key = params.required(&format!("{tag}.Key"))?;
            let value = params.text(&format!("{tag}.Value")).unwrap_or_default();
            if key.chars().count() > MAX_KEY || value.chars().count() > MAX_VALUE || key.starts_with("aws:") {
                return Err(Error::value(
                    "Tag",
                    key,
                    "a key of 1 to 128 characters, not beginning with aws:, and a value of at most 256",
                ));
            }
            tags.insert(key.to_owned(), value.to_owned());
        }
    }
    if tags.len() > MAX_TAGS {
        return Err(Error::value("Tag", tags.len().to_string(), "at most 50 tags"));
    }
    Ok(tags)
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
