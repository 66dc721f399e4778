//! `ps`, `inspect` and `port`.

use std::net::SocketAddr;

use clap::Args;
use serde_json::Value;

use super::failure::Advice;
use super::{Context, Status, failure, output};
use crate::instance::network::open_ports;
use crate::instance::store::Entry;
use crate::instance::{Event, Record, State};

/// List instances
#[derive(Debug, Args)]
pub struct Ps {
    /// Stopped ones too
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    state: Option<State>,
    /// Only those with this tag
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::value::tag)]
    tag: Vec<(String, String)>,
}

fn parse_state(text: &str) -> Result<State, String> {
    let all = State::ALL.map(|s| s.to_string());
    State::ALL
        .into_iter()
        .find(|s| s.to_string() == text)
        .ok_or_else(|| format!("there is no such state; the states are {}", all.join(", ")))
}

impl Ps {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let mut records = Vec::new();
        let mut damaged = Vec::new();
        for entry in context.store.list()? {
            match entry {
                Entry::Known(record) if self.wants(&record) => records.push(*record),
                Entry::Known(_) => {}
                Entry::Damaged(error, id) => damaged.push((error, id)),
            }
        }
        if self.json {
            output::json(&records)?;
        } else if self.quiet {
            records.iter().for_each(|r| println!("{}", r.id));
        } else {
            let rows: Vec<_> = records.iter().map(row).collect();
            output::table(&["ID", "NAME", "STATE", "AGE", "IMAGE", "REASON"], &rows)?;
        }
        for (error, _) in damaged {
            failure::complain(&error.into());
        }
        Ok(Status::OK)
    }

    fn wants(&self, record: &Record) -> bool {
        let state = match self.state {
            Some(state) => record.state == state,
            None => self.all || record.state.owned(),
        };
        state
            && self
                .tag
                .iter()
                .all(|(key, value)| record.tags.get(key) == Some(value))
    }
}

fn row(record: &Record) -> Vec<String> {
    vec![
        record.id.to_string(),
        record.name.clone().unwrap_or_default(),
        match record.paused {
            Some(_) => "paused".into(),
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
            let id = context.store.find(text)?;
            let record = context.store.truth(&id)?;
            let mut value = serde_json::to_value(&record)?;
            if let Value::Object(fields) = &mut value {
                let directory = context.store.home().instance(&id);
                fields.insert("directory".into(), directory.display().to_string().into());
            }
            found.push(value);
        }
        output::json(&found)?;
        Ok(Status::OK)
    }
}

/// Show where the published ports of an instance can be reached
#[derive(Debug, Args)]
pub struct Ports {
    /// Id, beginning of an id, or name
    instance: String,
    /// Only where this port of the guest can be reached
    port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Ports {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let id = context.store.find(&self.instance)?;
        super::lifecycle::alive(context, &id, Event::Started)?;
        let mut ports = open_ports(&context.home().instance(&id))?;
        ports.retain(|p| self.port.is_none_or(|wanted| p.guest == wanted));
        match self.port {
            _ if self.json => output::json(&ports)?,
            Some(port) if ports.is_empty() => {
                let message = format!("port {port} of {} is not published", self.instance);
                return Err(Advice::new(message, format!("launch it with -p {port}")).into());
            }
            Some(_) => ports
                .iter()
                .for_each(|p| println!("{}", SocketAddr::new(p.address, p.host))),
            None => ports.iter().for_each(|p| println!("{p}")),
        }
        Ok(Status::OK)
    }
}
