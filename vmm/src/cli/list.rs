//! `ps`, `inspect` and `port`.

use std::net::SocketAddr;

use clap::Args;
use serde_json::Value;

use super::failure::Advice;
use super::output::READY;
use super::{Context, Status, failure, output};
use ami::Protocol;
use instance::service::{DescribeInstances, DescribedInstances};
use instance::store::network::Port;
use instance::{Record, State};

/// List instances
#[derive(Debug, Args)]
pub struct Ps {
    /// Include stopped instances
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Only instances in this state; ready and paused ones are also running
    #[arg(long, value_name = "STATE")]
    state: Option<Shown>,
    /// Only instances with this tag
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::value::tag)]
    tag: Vec<(String, String)>,
}

/// A state as the list shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    State(State),
    /// Running, and the guest's agent is there.
    Ready,
    /// Running, and paused.
    Paused,
}

/// [`Shown::Paused`] in words.
const PAUSED: &str = "paused";

impl std::str::FromStr for Shown {
    type Err = String;

    fn from_str(text: &str) -> Result<Shown, String> {
        match text {
            READY => return Ok(Shown::Ready),
            PAUSED => return Ok(Shown::Paused),
            _ => {}
        }
        let found = State::ALL.into_iter().find(|s| s.to_string() == text);
        found.map(Shown::State).ok_or_else(|| {
            let all = State::ALL.map(|s| s.to_string()).join(", ");
            format!("there is no such state; the states are {all}, {READY} and {PAUSED}")
        })
    }
}

impl Shown {
    fn is(self, state: State, ready: bool, paused: bool) -> bool {
        match self {
            Shown::State(wanted) => state == wanted,
            Shown::Ready => state == State::Running && ready && !paused,
            Shown::Paused => paused,
        }
    }
}

impl Ps {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let request = DescribeInstances {
            tags: self.tag.clone(),
            ..DescribeInstances::default()
        };
        let DescribedInstances { mut records, damaged } = context.service.describe_instances(&request)?;
        records.retain(|record| self.wants(record));
        if self.json {
            output::json(&records)?;
        } else if self.quiet {
            output::lines(records.iter().map(|r| &r.id))?;
        } else {
            let rows: Vec<_> = records.iter().map(row).collect();
            output::table(&["ID", "NAME", "STATE", "AGE", "IMAGE", "REASON"], &rows)?;
        }
        for (_, error) in damaged {
            failure::complain(&error.into());
        }
        Ok(Status::OK)
    }

    fn wants(&self, record: &Record) -> bool {
        match self.state {
            Some(wanted) => wanted.is(record.state, record.ready, record.paused.is_some()),
            None => self.all || record.state.has_process(),
        }
    }
}

fn row(record: &Record) -> Vec<String> {
    vec![
        record.id.to_string(),
        record.name.clone().unwrap_or_default(),
        match record.paused {
            Some(_) => PAUSED.into(),
            None => output::state(record.state, record.ready),
        },
        output::age(record.launched),
        format!("{} ({})", record.image.name, record.image.id),
        record.reason.clone(),
    ]
}

/// Show all that is known of instances, as JSON
#[derive(Debug, Args)]
pub struct Inspect {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Inspect {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let mut found = Vec::new();
        for text in &self.instances {
            let record = context.service.describe_instance(text)?;
            let mut value = serde_json::to_value(&record)?;
            if let Value::Object(fields) = &mut value {
                let directory = context.home().instance(&record.id);
                fields.insert("directory".into(), directory.display().to_string().into());
            }
            found.push(value);
        }
        output::json(&found)?;
        Ok(Status::OK)
    }
}

/// A port of the guest, of either protocol unless one is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GuestPort {
    number: u16,
    protocol: Option<Protocol>,
}

impl std::str::FromStr for GuestPort {
    type Err = String;

    /// As the list shows it: `80/tcp`.
    fn from_str(text: &str) -> Result<GuestPort, String> {
        let (number, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((number, protocol)) => (number, Some(protocol.parse()?)),
        };
        let number = number.parse().map_err(|_| format!("{number:?} is not a port"))?;
        Ok(GuestPort { number, protocol })
    }
}

impl GuestPort {
    fn is(self, port: &Port) -> bool {
        port.guest == self.number && self.protocol.is_none_or(|wanted| wanted == port.protocol)
    }
}

impl std::fmt::Display for GuestPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.protocol {
            Some(protocol) => write!(f, "{}/{protocol}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

/// Show where the published ports of an instance can be reached
#[derive(Debug, Args)]
pub struct Ports {
    /// Id, beginning of an id, or name
    instance: String,
    /// Only this port of the guest
    #[arg(value_name = "PORT[/tcp|/udp]")]
    port: Option<GuestPort>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Ports {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let mut ports = context.service.published_ports(&self.instance)?;
        ports.retain(|p| self.port.is_none_or(|wanted| wanted.is(p)));
        match self.port {
            _ if self.json => output::json(&ports)?,
            Some(port) if ports.is_empty() => {
                let message = format!("port {port} of {} is not published", self.instance);
                return Err(Advice::new(message, format!("launch it with -p {port}")).into());
            }
            Some(_) => output::lines(ports.iter().map(|p| SocketAddr::new(p.address, p.host)))?,
            None => output::lines(&ports)?,
        }
        Ok(Status::OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_displayed_state_is_a_valid_filter() {
        for state in State::ALL {
            for ready in [false, true] {
                let shown: Shown = output::state(state, ready).parse().unwrap();
                assert!(shown.is(state, ready, false), "{state} {ready}");
            }
        }
        assert!(Shown::State(State::Running).is(State::Running, true, false));
        assert!(!Shown::Ready.is(State::Stopping, true, false));
        let paused: Shown = PAUSED.parse().unwrap();
        assert!(paused.is(State::Running, true, true) && !paused.is(State::Running, true, false));
        assert!(!Shown::Ready.is(State::Running, true, true));
        assert!(Shown::State(State::Running).is(State::Running, true, true));
        assert!("up".parse::<Shown>().unwrap_err().contains("ready"));
    }

    #[test]
    fn displayed_ports_can_be_parsed() {
        let port: Port = "8053:53/udp".parse().unwrap();
        let shown = port.to_string();
        let (guest, _) = shown.split_once(" -> ").unwrap();
        for (text, same) in [(guest, true), ("53", true), ("53/tcp", false), ("54/udp", false)] {
            assert_eq!(text.parse::<GuestPort>().unwrap().is(&port), same, "{text}");
        }
        for text in ["", "x", "53/", "53/sctp", "70000", "/udp"] {
            assert!(text.parse::<GuestPort>().is_err(), "{text}");
        }
    }
}
