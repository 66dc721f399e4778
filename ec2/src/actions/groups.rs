//! Security groups. Nothing reaches a guest's ports from outside but through ports of this host, so a group
//! says which of those an instance gets: its rules are applied when an instance is launched, on a public
//! address of the instance's own. What leaves a guest is not held up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use instance::service::metadata as place;
use instance::store::documents::LockedDocument;
use instance::store::network::Protocol;
use instance::store::record::SecurityGroup;
use machine::entropy;
use serde::{Deserialize, Serialize};

use super::shown::{self, Stage};
use super::tags;
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::{Filters, of_tags};
use crate::page::Page;
use crate::query::Params;
use crate::xml::{Element, node, set, text};

/// Ports at most that an instance is reached by: each is a socket of its process.
const MAX_PORTS: usize = 64;
/// Rules at most of one group: EC2's limit.
const MAX_RULES: usize = 60;
/// Characters at most of a name or description: EC2's limit.
const MAX_TEXT: usize = 255;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name, which no other has.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What may come in.
    pub rules: Vec<Rule>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// What may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `sgr-` and 17 hexadecimal digits.
    pub id: String,
    /// `tcp`, `udp`, `icmp`, or `-1` for all.
    pub protocol: String,
    /// The ports, both included; -1 where there are none.
    pub ports: (i32, i32),
    /// From where, as in `0.0.0.0/0`.
    pub cidr: String,
    /// What it is for.
    pub description: String,
}

impl Rule {
    /// Whether two let the same in.
    fn is_same(&self, other: &Rule) -> bool {
        (&self.protocol, self.ports, &self.cidr) == (&other.protocol, other.ports, &other.cidr)
    }

    /// Whether it lets this host in, which is who connects to the instance's address.
    fn is_for_this_host(&self) -> bool {
        let Some((address, prefix)) = cidr(&self.cidr) else {
            return false;
        };
        match address {
            IpAddr::V4(network) => {
                let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
                network.to_bits() & mask == Ipv4Addr::LOCALHOST.to_bits() & mask
            }
            IpAddr::V6(network) => {
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
                network.to_bits() & mask == Ipv6Addr::LOCALHOST.to_bits() & mask
            }
        }
    }
}

/// The address and the length of the prefix in `10.0.0.0/8`.
fn cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then_some((address, prefix))
}

fn id(prefix: &str) -> String {
    let digits = u128::from_le_bytes(entropy::bytes()) >> (128 - 4 * 17);
    format!("{prefix}-{digits:017x}")
}

/// The group that every instance has that names none: it lets nothing in.
fn default_group() -> (String, Group) {
    let group = Group {
        name: place::SECURITY_GROUP.to_owned(),
        description: "default VPC security group".to_owned(),
        rules: Vec::new(),
        tags: BTreeMap::new(),
    };
    (place::SECURITY_GROUP_ID.to_owned(), group)
}

/// Every group by its id.
fn all(api: &Api) -> Result<Vec<(String, Group)>> {
    let mut groups = api.ledger.groups()?;
    groups.insert(0, default_group());
    Ok(groups)
}

/// The group that the parameter `GroupId` or `GroupName` names.
fn one(api: &Api, params: &Params) -> Result<(String, Group)> {
    let (id, name) = (params.text("GroupId"), params.text("GroupName"));
    let wanted = id
        .or(name)
        .ok_or_else(|| Error::MissingParameter("GroupId".into()))?;
    let found = all(api)?.into_iter().find(|(known, group)| match id {
        Some(id) => known == id,
        None => Some(group.name.as_str()) == name,
    });
    found.ok_or_else(|| Error::NoPlace {
        kind: "security group",
        id: wanted.to_owned(),
    })
}

/// One that can be changed: not the default group, and not one that instances were launched with. Nobody else
/// changes it while its document is held.
fn unused(api: &Api, params: &Params) -> Result<(String, LockedDocument, Group)> {
    let held = api.ledger.lock_group(&one(api, params)?.0)?;
    // As it is by now: another request may have changed it, or deleted it.
    let (id, group) = one(api, params)?;
    if id == place::SECURITY_GROUP_ID {
        return Err(Error::Unsupported("changing the default security group".into()));
    }
    let uses = |instance: &shown::Shown| {
        instance.stage != Stage::Terminated
            && instance
                .record
                .config
                .security_groups
                .iter()
                .any(|used| used.id == id)
    };
    match shown::all(api)?.iter().any(uses) {
        true => Err(Error::GroupInUse(id)),
        false => Ok((id, held, group)),
    }
}

/// `CreateSecurityGroup`.
pub fn create(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let name = params.required("GroupName")?;
    let description = params.required("GroupDescription")?;
    if name.len() > MAX_TEXT || description.len() > MAX_TEXT || name.starts_with("sg-") {
        return Err(Error::value(
            "GroupName",
            name,
            "up to 255 characters, not beginning with sg-",
        ));
    }
    if let Some(vpc) = params.text("VpcId").filter(|vpc| *vpc != place::VPC) {
        return Err(Error::NoPlace {
            kind: "vpc",
            id: vpc.to_owned(),
        });
    }
    let group = Group {
        name: name.to_owned(),
        description: description.to_owned(),
        rules: Vec::new(),
        tags: tags::specified(params, "security-group")?,
    };
    let _names = api.ledger.lock_group_names()?;
    if all(api)?.iter().any(|(_, known)| known.name == name) {
        return Err(Error::GroupExists(name.to_owned()));
    }
    params.finish()?;
    let id = id("sg");
    api.ledger.lock_group(&id)?.put(&group)?;
    Ok(vec![text("groupId", id), tags::element(&group.tags)])
}

/// `DeleteSecurityGroup`.
pub fn delete(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (id, held, _) = unused(api, params)?;
    params.finish()?;
    held.remove()?;
    Ok(vec![text("return", true), text("groupId", id)])
}

/// `AuthorizeSecurityGroupIngress`.
pub fn authorize(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (id, held, mut group) = unused(api, params)?;
    let rules = rules(params)?;
    if let Some(known) = rules
        .iter()
        .find(|rule| group.rules.iter().any(|known| known.is_same(rule)))
    {
        return Err(Error::RuleExists(known.cidr.clone()));
    }
    if group.rules.len() + rules.len() > MAX_RULES {
        return Err(Error::value(
            "IpPermissions",
            rules.len().to_string(),
            "at most 60 rules a group",
        ));
    }
    params.finish()?;
    group.rules.extend(rules.iter().cloned());
    held.put(&group)?;
    let items = rules.iter().map(|rule| {
        let source = if rule.cidr.contains(':') {
            "cidrIpv6"
        } else {
            "cidrIpv4"
        };
        let mut all = vec![
            text("securityGroupRuleId", &rule.id),
            text("groupId", &id),
            text("groupOwnerId", place::ACCOUNT),
            text("isEgress", false),
            text("ipProtocol", &rule.protocol),
            text("fromPort", rule.ports.0),
            text("toPort", rule.ports.1),
            text(source, &rule.cidr),
        ];
        if !rule.description.is_empty() {
            all.push(text("description", &rule.description));
        }
        all
    });
    Ok(vec![text("return", true), set("securityGroupRuleSet", items)])
}

/// `RevokeSecurityGroupIngress`.
pub fn revoke(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (id, held, mut group) = unused(api, params)?;
    let ids = params.list("SecurityGroupRuleId");
    let named = if ids.is_empty() {
        rules(params)?
    } else {
        Vec::new()
    };
    let missing = ids.iter().any(|id| group.rules.iter().all(|rule| rule.id != *id))
        || named
            .iter()
            .any(|rule| !group.rules.iter().any(|known| known.is_same(rule)));
    if missing {
        return Err(Error::NoRule(id));
    }
    params.finish()?;
    group.rules.retain(|rule| {
        !ids.contains(&rule.id.as_str()) && !named.iter().any(|revoked| revoked.is_same(rule))
    });
    held.put(&group)?;
    Ok(vec![text("return", true)])
}

/// The rules in a request: in the list `IpPermissions`, or one in parameters of its own.
fn rules(params: &Params) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for place in params.places("IpPermissions") {
        let field = |name: &str| format!("{place}.{name}");
        if !params.places(&field("Groups")).is_empty() || !params.places(&field("PrefixListIds")).is_empty() {
            return Err(Error::Unsupported(
                "a rule for another group or a prefix list".into(),
            ));
        }
        for (list, name) in [("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")] {
            for range in params.places(&field(list)) {
                let description = params.text(&format!("{range}.Description")).unwrap_or_default();
                let cidr = params.required(&format!("{range}.{name}"))?;
                rules.push(rule(params, &format!("{place}."), cidr, description)?);
            }
        }
    }
    if let Some(cidr) = params.text("CidrIp") {
        rules.push(rule(params, "", cidr, "")?);
    }
    match rules.is_empty() {
        true => Err(Error::MissingParameter("IpPermissions".into())),
        false => Ok(rules),
    }
}

fn rule(params: &Params, prefix: &str, source: &str, description: &str) -> Result<Rule> {
    let given = params.required(&format!("{prefix}IpProtocol"))?;
    let protocol = match given {
        "tcp" | "6" => "tcp",
        "udp" | "17" => "udp",
        "icmp" | "1" => "icmp",
        "-1" => "-1",
        other => return Err(Error::value("IpProtocol", other, "tcp, udp, icmp or -1")),
    };
    let port = |name: &str| -> Result<i32> {
        match params.text(&format!("{prefix}{name}")).map(str::parse) {
            None => Ok(-1),
            Some(Ok(port @ -1..=65_535)) => Ok(port),
            Some(_) => Err(Error::value(name, "", "a port, 0 to 65535")),
        }
    };
    let ports = (port("FromPort")?, port("ToPort")?);
    let has_ports = matches!(protocol, "tcp" | "udp");
    if has_ports && (ports.0 < 0 || ports.0 > ports.1) {
        return Err(Error::value(
            "FromPort",
            ports.0.to_string(),
            "not below 0, and not above ToPort",
        ));
    }
    if cidr(source).is_none() {
        return Err(Error::value(
            "CidrIp",
            source,
            "an address block, as in 0.0.0.0/0",
        ));
    }
    Ok(Rule {
        id: id("sgr"),
        protocol: protocol.to_owned(),
        ports: if has_ports { ports } else { (-1, -1) },
        cidr: source.to_owned(),
        description: description.to_owned(),
    })
}

const FILTERS: &[&str] = &[
    "description",
    "group-id",
    "group-name",
    "owner-id",
    "tag-key",
    "tag-value",
    "vpc-id",
];

/// `DescribeSecurityGroups`.
pub fn describe(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (ids, names) = (params.list("GroupId"), params.list("GroupName"));
    let filters = Filters::parse(params, FILTERS)?;
    let page = Page::parse(params, 5)?;
    let mut groups = all(api)?;
    let missing = |wanted: &[&str], known: &dyn Fn(&str) -> bool| {
        wanted
            .iter()
            .find(|name| !known(name))
            .map(|name| (*name).to_owned())
    };
    let unknown = missing(&ids, &|wanted| groups.iter().any(|(id, _)| id == wanted)).or_else(|| {
        missing(&names, &|wanted| {
            groups.iter().any(|(_, group)| group.name == wanted)
        })
    });
    if let Some(id) = unknown {
        return Err(Error::NoPlace {
            kind: "security group",
            id,
        });
    }
    params.finish()?;
    let named = |id: &str, group: &Group| {
        ids.is_empty() && names.is_empty() || ids.contains(&id) || names.contains(&group.name.as_str())
    };
    groups.retain(|(id, group)| {
        named(id, group)
            && filters.pass(|name| match name {
                "group-id" => vec![id.clone()],
                "group-name" => vec![group.name.clone()],
                "description" => vec![group.description.clone()],
                "owner-id" => vec![place::ACCOUNT.to_owned()],
                "vpc-id" => vec![place::VPC.to_owned()],
                name => of_tags(name, group.tags.iter()).unwrap_or_default(),
            })
    });
    groups.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (shown, next) = page.take(groups, |(id, _)| id.clone());
    let items = shown.iter().map(|(id, group)| elements(id, group));
    Ok([set("securityGroupInfo", items)]
        .into_iter()
        .chain(next)
        .collect())
}

fn elements(id: &str, group: &Group) -> [Element; 8] {
    let everything = [
        text("ipProtocol", "-1"),
        node("groups", []),
        set("ipRanges", [[text("cidrIp", "0.0.0.0/0")]]),
    ];
    [
        text("groupId", id),
        text("groupName", &group.name),
        text("groupDescription", &group.description),
        text("ownerId", place::ACCOUNT),
        text("vpcId", place::VPC),
        set("ipPermissions", group.rules.iter().map(permission)),
        set("ipPermissionsEgress", [everything]),
        tags::element(&group.tags),
    ]
}

fn permission(rule: &Rule) -> Vec<Element> {
    let (list, name) = match rule.cidr.contains(':') {
        true => ("ipv6Ranges", "cidrIpv6"),
        false => ("ipRanges", "cidrIp"),
    };
    let mut range = vec![text(name, &rule.cidr)];
    if !rule.description.is_empty() {
        range.push(text("description", &rule.description));
    }
    let mut all = vec![text("ipProtocol", &rule.protocol)];
    if rule.protocol != "-1" {
        all.push(text("fromPort", rule.ports.0));
        all.push(text("toPort", rule.ports.1));
    }
    all.push(node("groups", []));
    all.push(set(list, [range]));
    all
}

/// Ports of a guest.
pub type GuestPorts = BTreeSet<(Protocol, u16)>;

/// The groups that a launch names, and the ports of the guest that they open to this host.
pub fn of_launch(api: &Api, params: &Params) -> Result<(Vec<SecurityGroup>, GuestPorts)> {
    let (ids, names) = (params.list("SecurityGroupId"), params.list("SecurityGroup"));
    let known = all(api)?;
    let mut groups = Vec::new();
    for wanted in ids.iter().chain(&names) {
        let found = known.iter().find(|(id, group)| match ids.contains(wanted) {
            true => id == wanted,
            false => group.name == *wanted,
        });
        groups.push(found.ok_or_else(|| Error::NoPlace {
            kind: "security group",
            id: (*wanted).to_owned(),
        })?);
    }
    let mut ports = BTreeSet::new();
    for rule in groups
        .iter()
        .flat_map(|(_, group)| &group.rules)
        .filter(|rule| rule.is_for_this_host())
    {
        let protocol = match rule.protocol.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            // The gateway answers no ping from outside.
            "icmp" => continue,
            _ => return Err(Error::Unsupported("launching with a rule for all ports".into())),
        };
        let numbers = rule.ports.0.max(1)..=rule.ports.1;
        for port in numbers.take(MAX_PORTS + 1) {
            ports.insert((protocol, port as u16));
        }
    }
    if ports.len() > MAX_PORTS {
        return Err(Error::Unsupported(format!(
            "launching with more than {MAX_PORTS} open ports"
        )));
    }
    let named = groups.into_iter().map(|(id, group)| SecurityGroup {
        id: id.clone(),
        name: group.name.clone(),
    });
    Ok((named.collect(), ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(cidr: &str) -> Rule {
        Rule {
            id: String::new(),
            protocol: "tcp".into(),
            ports: (22, 22),
            cidr: cidr.into(),
            description: String::new(),
        }
    }

    #[test]
    fn a_rule_is_for_this_host_when_its_block_holds_the_loopback_address() {
        for cidr in ["0.0.0.0/0", "127.0.0.0/8", "127.0.0.1/32", "::/0", "::1/128"] {
            assert!(rule(cidr).is_for_this_host(), "{cidr}");
        }
        for cidr in [
            "10.0.0.0/8",
            "203.0.113.7/32",
            "2001:db8::/32",
            "127.0.0.1/33",
            "x",
            "127.0.0.1",
        ] {
            assert!(!rule(cidr).is_for_this_host(), "{cidr}");
        }
    }
}
