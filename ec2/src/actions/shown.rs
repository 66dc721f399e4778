//! Instances as the API shows them.

use std::collections::BTreeMap;

use instance::service::DescribeInstances;
use instance::service::metadata::{self as place, InstanceDocuments};
use instance::{Code, InstanceId, Record, State};

use super::{places, tags};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::of_tags;
use crate::ledger::Termination;
use crate::query::Params;
use crate::time;
use crate::xml::{Element, node, set, text};

/// Instances at most that one request names.
const MAX_NAMED: usize = 1000;

/// What EC2 calls the state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its machine is being made.
    Pending,
    /// Its guest runs.
    Running,
    /// It is being terminated.
    ShuttingDown,
    /// It is no more.
    Terminated,
    /// Its guest shuts down.
    Stopping,
    /// It has no process.
    Stopped,
}

impl Stage {
    const fn code(self) -> u8 {
        match self {
            Stage::Pending => 0,
            Stage::Running => 16,
            Stage::ShuttingDown => 32,
            Stage::Terminated => 48,
            Stage::Stopping => 64,
            Stage::Stopped => 80,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Stage::Pending => "pending",
            Stage::Running => "running",
            Stage::ShuttingDown => "shutting-down",
            Stage::Terminated => "terminated",
            Stage::Stopping => "stopping",
            Stage::Stopped => "stopped",
        }
    }

    /// As an element.
    pub fn element(self, name: &'static str) -> Element {
        node(name, [text("code", self.code()), text("name", self.name())])
    }
}

/// An instance as the API shows it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its record.
    pub record: Record,
    /// Its state.
    pub stage: Stage,
    /// What the metadata service serves to it; `None` for a terminated instance, or one whose image was deleted.
    pub documents: Option<InstanceDocuments>,
    /// Its type.
    pub instance_type: String,
    /// `x86_64` or `arm64`; empty if that is not known.
    pub architecture: String,
}

impl Shown {
    fn living(api: &Api, record: Record, terminating: bool) -> Shown {
        let stage = match record.state {
            State::Terminated => Stage::ShuttingDown,
            _ if terminating => Stage::ShuttingDown,
            State::Pending => Stage::Pending,
            State::Running => Stage::Running,
            State::Stopping => Stage::Stopping,
            State::Stopped => Stage::Stopped,
        };
        let documents = api.service.metadata(&record);
        let documents =
            documents.inspect_err(|error| tracing::warn!(id = %record.id, %error, "not all is known of it"));
        let documents = documents.ok();
        let known = |of: fn(&InstanceDocuments) -> &String| documents.as_ref().map(of).cloned();
        Shown {
            instance_type: known(|d| &d.instance_type)
                .or(record.config.instance_type.clone())
                .unwrap_or_default(),
            architecture: known(|d| &d.architecture).unwrap_or_default(),
            record,
            stage,
            documents,
        }
    }

    fn gone(termination: Termination) -> Shown {
        Shown {
            record: termination.record,
            stage: Stage::Terminated,
            documents: None,
            instance_type: termination.instance_type,
            architecture: termination.architecture,
        }
    }

    /// What is written down when it is to be terminated.
    pub fn termination(&self) -> Termination {
        Termination {
            record: self.record.clone(),
            instance_type: self.instance_type.clone(),
            architecture: self.architecture.clone(),
            at: time::now(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.record.id.as_str()
    }

    /// The tags, the name among them.
    pub fn tags(&self) -> BTreeMap<String, String> {
        match &self.documents {
            Some(documents) => documents.tags.clone(),
            None => self.record.tags.clone(),
        }
    }

    /// Sorts as the list of instances is sorted.
    pub fn place(&self) -> String {
        let record = &self.record;
        format!(
            "{:020}:{:010}:{}",
            record.launched, record.launch_index, record.id
        )
    }

    /// What it has for a filter.
    pub fn value(&self, name: &str) -> Vec<String> {
        let tags = self.tags();
        if let Some(values) = of_tags(name, tags.iter()) {
            return values;
        }
        let record = &self.record;
        let documents = self.documents.as_ref();
        let value = match name {
            "instance-id" => Some(record.id.to_string()),
            "image-id" => Some(record.image.id.clone()),
            "instance-state-name" => Some(self.stage.name().to_owned()),
            "instance-state-code" => Some(self.stage.code().to_string()),
            "instance-type" => Some(self.instance_type.clone()),
            "architecture" => Some(self.architecture.clone()),
            "reservation-id" => Some(record.reservation.to_string()),
            "launch-index" => Some(record.launch_index.to_string()),
            "launch-time" => Some(time::iso(record.launched)),
            "availability-zone" => Some(place::ZONE.to_owned()),
            "owner-id" => Some(place::ACCOUNT.to_owned()),
            "root-device-name" => record.volumes.first().map(|volume| volume.device.clone()),
            "root-device-type" => Some("ebs".to_owned()),
            "virtualization-type" => Some("hvm".to_owned()),
            "key-name" => self.key_name(),
            "vpc-id" => documents.map(|_| place::VPC.to_owned()),
            "subnet-id" => documents.map(|_| place::SUBNET.to_owned()),
            "ip-address" => documents
                .and_then(|d| d.public_ipv4)
                .map(|address| address.to_string()),
            "instance.group-id" | "group-id" => return self.groups().map(|(id, _)| id.to_owned()).collect(),
            "instance.group-name" | "group-name" => {
                return self.groups().map(|(_, name)| name.to_owned()).collect();
            }
            "private-ip-address" => documents
                .and_then(|d| d.local_ipv4)
                .map(|address| address.to_string()),
            "private-dns-name" => documents.map(|d| d.local_hostname.clone()),
            "block-device-mapping.volume-id" => {
                return record.volumes.iter().map(|v| v.id.to_string()).collect();
            }
            "block-device-mapping.device-name" => {
                return record.volumes.iter().map(|v| v.device.clone()).collect();
            }
            _ => None,
        };
        value.into_iter().collect()
    }

    /// Ids and names of its security groups.
    fn groups(&self) -> impl Iterator<Item = (&str, &str)> {
        self.documents.iter().flat_map(InstanceDocuments::groups)
    }

    /// `groupSet`.
    pub fn group_set(&self) -> Element {
        set(
            "groupSet",
            self.groups()
                .map(|(id, name)| [text("groupId", id), text("groupName", name)]),
        )
    }

    fn key_name(&self) -> Option<String> {
        let key = self.record.config.ssh_keys.first()?;
        key.split_ascii_whitespace().nth(2).map(str::to_owned)
    }

    /// As an element of a reservation.
    pub fn elements(&self) -> Vec<Element> {
        let record = &self.record;
        let mut all = vec![
            text("instanceId", &record.id),
            text("imageId", &record.image.id),
            self.stage.element("instanceState"),
            text(
                "privateDnsName",
                self.documents.as_ref().map_or("", |d| &d.local_hostname),
            ),
            text("dnsName", ""),
            text("reason", self.reason()),
            text("amiLaunchIndex", record.launch_index),
            text("instanceType", &self.instance_type),
            text("launchTime", time::iso(record.launched)),
            node(
                "placement",
                [text("availabilityZone", place::ZONE), text("tenancy", "default")],
            ),
            node("monitoring", [text("state", "disabled")]),
            text("architecture", &self.architecture),
            text("rootDeviceType", "ebs"),
            text("virtualizationType", "hvm"),
            tags::element(&self.tags()),
        ];
        all.extend(self.key_name().map(|name| text("keyName", name)));
        all.extend(
            record
                .volumes
                .first()
                .map(|volume| text("rootDeviceName", &volume.device)),
        );
        if let Some(documents) = &self.documents {
            all.extend(self.network(documents));
            all.push(self.volumes());
        }
        all
    }

    fn reason(&self) -> String {
        match &self.record.ending {
            Some(ending) => ending.to_string(),
            None => self.record.reason.clone(),
        }
    }

    fn network(&self, documents: &InstanceDocuments) -> Vec<Element> {
        let Some(address) = documents.local_ipv4 else {
            return Vec::new();
        };
        let mac = documents.mac.map(|byte| format!("{byte:02x}")).join(":");
        let [subnet, vpc] = places::of_instance();
        let mut interface = vec![
            text("networkInterfaceId", documents.interface_id()),
            subnet.clone(),
            vpc.clone(),
            text("ownerId", place::ACCOUNT),
            text("status", "in-use"),
            text("macAddress", mac),
            text("privateIpAddress", address),
            text("privateDnsName", &documents.local_hostname),
            self.group_set(),
        ];
        let mut all = vec![text("privateIpAddress", address), subnet, vpc, self.group_set()];
        if let Some(public) = documents.public_ipv4 {
            interface.push(node(
                "association",
                [text("publicIp", public), text("ipOwnerId", place::ACCOUNT)],
            ));
            all.push(text("ipAddress", public));
        }
        all.push(set("networkInterfaceSet", [interface]));
        all
    }

    /// `blockDeviceMapping`.
    pub fn volumes(&self) -> Element {
        let mappings = self.record.volumes.iter().map(|volume| {
            let ebs = [
                text("volumeId", &volume.id),
                text("status", "attached"),
                text("attachTime", time::iso(self.record.launched)),
                text("deleteOnTermination", volume.delete_on_termination),
            ];
            [text("deviceName", &volume.device), node("ebs", ebs)]
        });
        set("blockDeviceMapping", mappings)
    }
}

/// Every instance, the oldest first, those that were terminated a while ago among them.
pub fn all(api: &Api) -> Result<Vec<Shown>> {
    // Before the records: an instance that is removed in between is in one of the two.
    let mut terminations = api.ledger.terminations()?;
    let described = api.service.describe_instances(&DescribeInstances::default())?;
    for (id, error) in &described.damaged {
        tracing::warn!(%id, %error, "an instance cannot be described");
    }
    let mut shown: Vec<_> = described
        .records
        .into_iter()
        .map(|record| {
            let terminating = terminations.remove(record.id.as_str()).is_some();
            Shown::living(api, record, terminating)
        })
        .collect();
    for (id, termination) in terminations {
        if !termination.is_old() {
            shown.push(Shown::gone(termination));
        } else if let Err(error) = api.ledger.forget_termination(&id) {
            tracing::warn!(%id, %error, "a termination cannot be forgotten");
        }
    }
    shown.sort_by_key(Shown::place);
    Ok(shown)
}

/// The instances that a request names, in its order.
///
/// # Errors
/// When an id is none, or there is no such instance.
pub fn named(api: &Api, ids: &[&str]) -> Result<Vec<Shown>> {
    if ids.len() > MAX_NAMED {
        return Err(Error::value(
            "InstanceId",
            ids.len().to_string(),
            "at most 1000 instances",
        ));
    }
    let mut terminations = api.ledger.terminations()?;
    ids.iter()
        .map(|id| {
            id.parse::<InstanceId>()
                .map_err(|_| Error::MalformedInstance((*id).to_owned()))?;
            let termination = terminations.remove(*id);
            match api.service.describe_instance(id) {
                Ok(record) => Ok(Shown::living(api, record, termination.is_some())),
                Err(error) if error.code() == Code::InstanceNotFound => match termination {
                    Some(termination) if !termination.is_old() => Ok(Shown::gone(termination)),
                    _ => Err(Error::NoInstance((*id).to_owned())),
                },
                Err(error) => Err(error.into()),
            }
        })
        .collect()
}

/// The instance that the parameter `InstanceId` names.
///
/// # Errors
/// As [`named`].
pub fn one(api: &Api, params: &Params) -> Result<Shown> {
    let id = params.required("InstanceId")?;
    let found = named(api, &[id])?.pop();
    found.ok_or_else(|| Error::NoInstance(id.to_owned()))
}

/// What instances can be filtered by, besides `tag:KEY`.
pub const FILTERS: &[&str] = &[
    "architecture",
    "availability-zone",
    "block-device-mapping.device-name",
    "block-device-mapping.volume-id",
    "group-id",
    "group-name",
    "image-id",
    "instance-id",
    "ip-address",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "instance.group-id",
    "instance.group-name",
    "key-name",
    "launch-index",
    "launch-time",
    "owner-id",
    "private-dns-name",
    "private-ip-address",
    "reservation-id",
    "root-device-name",
    "root-device-type",
    "subnet-id",
    "tag-key",
    "tag-value",
    "virtualization-type",
    "vpc-id",
];
