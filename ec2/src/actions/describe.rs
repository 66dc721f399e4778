//! The actions that show instances.

use std::sync::Arc;

use base64::Engine as _;
use instance::service::metadata as place;

use super::shown::{self, FILTERS, Shown, Stage};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::page::Page;
use crate::query::Params;
use crate::xml::{Element, node, set, text};

/// The instances of a request by id, filter and page, and the element that leads to the next page.
fn selected(
    api: &Api,
    params: &Params,
    wanted: impl Fn(&Shown) -> bool,
) -> Result<(Vec<Shown>, Option<Element>)> {
    let ids = params.list("InstanceId");
    let filters = Filters::parse(params, FILTERS)?;
    let page = Page::parse(params, 5)?;
    if !ids.is_empty() && page.is_asked_for() {
        return Err(Error::InvalidCombination(
            "instances cannot be named where pages are asked for",
        ));
    }
    let mut shown = if ids.is_empty() {
        shown::all(api)?
    } else {
        shown::named(api, &ids)?
    };
    params.finish()?;
    shown.retain(|instance| wanted(instance) && filters.pass(|name| instance.value(name)));
    Ok(page.take(shown, Shown::place))
}

/// `DescribeInstances`.
pub fn instances(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (shown, next) = selected(api, params, |_| true)?;
    let mut reservations: Vec<(String, Vec<Shown>)> = Vec::new();
    for instance in shown {
        let id = instance.record.reservation.to_string();
        match reservations.iter_mut().find(|(known, _)| *known == id) {
            Some((_, instances)) => instances.push(instance),
            None => reservations.push((id, vec![instance])),
        }
    }
    let elements = reservations
        .iter()
        .map(|(id, instances)| reservation(id, instances));
    Ok([set("reservationSet", elements)]
        .into_iter()
        .chain(next)
        .collect())
}

/// A reservation with its instances.
pub fn reservation(id: &str, instances: &[Shown]) -> [Element; 4] {
    [
        text("reservationId", id),
        text("ownerId", place::ACCOUNT),
        node("groupSet", []),
        set("instancesSet", instances.iter().map(Shown::elements)),
    ]
}

/// `DescribeInstanceStatus`.
pub fn status(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let all = params.flag("IncludeAllInstances")?;
    let (shown, next) = selected(api, params, |instance| all || instance.stage == Stage::Running)?;
    let items = shown.iter().map(|instance| {
        // The agent says that user space is there; that of the host is this program's own.
        let status = |reachable: bool| match (instance.stage, reachable) {
            (Stage::Running, true) => ("ok", "passed"),
            (Stage::Running, false) => ("initializing", "initializing"),
            _ => ("not-applicable", "not-applicable"),
        };
        let check = |name: &'static str, reachable: bool| {
            let (summary, reachability) = status(reachable);
            let details = match instance.stage {
                Stage::Running => vec![[text("name", "reachability"), text("status", reachability)]],
                _ => Vec::new(),
            };
            node(name, [text("status", summary), set("details", details)])
        };
        [
            text("instanceId", instance.id()),
            text("availabilityZone", place::ZONE),
            instance.stage.element("instanceState"),
            check("instanceStatus", instance.record.ready),
            check("systemStatus", true),
        ]
    });
    Ok([set("instanceStatusSet", items)]
        .into_iter()
        .chain(next)
        .collect())
}

/// Bytes as EC2 writes them.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A text in few characters: what is kept of a request says nothing of the user data in it.
pub fn digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    base64(&Sha256::digest(text.as_bytes()))
}
