//! `pause` and `resume`.

use clap::Args;

use super::lifecycle::{alive, client, for_each};
use super::{Context, Status};
use instance::Event;

/// Stop instances where they are
#[derive(Debug, Args)]
pub struct Pause {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Pause {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each(context, "pause", &self.instances, |id| {
            alive(context, id, Event::Started)?;
            Ok(client(context, id).pause()?)
        })
    }
}

/// Let paused instances go on
#[derive(Debug, Args)]
pub struct Resume {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Resume {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each(context, "resume", &self.instances, |id| {
            alive(context, id, Event::Started)?;
            Ok(client(context, id).resume()?)
        })
    }
}
