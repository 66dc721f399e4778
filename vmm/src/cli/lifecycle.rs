//! `start`, `stop`, `reboot`, `pause`, `resume` and `terminate`: the same request for each named instance; a
//! failure does not affect the others.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::options::HostOptions;
use super::snapshot::note_boot;
use super::stream::{line, note};
use super::wait::Waiting;
use super::{Context, Status, failure, value};
use instance::service::{StartInstance, StopInstance, TerminateInstance};

/// Start stopped instances
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    host: HostOptions,
    /// Boot, even if the instance was hibernated; what its guest had in memory is lost
    #[arg(long)]
    cold: bool,
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Start {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("start", &self.instances, |instance| {
            let request = StartInstance {
                instance: instance.into(),
                host: self.host.into(),
                cold: self.cold,
            };
            let started = context.service.start_instance(&request)?;
            note_boot(&started);
            self.waiting.run(context, &[started.id])
        })
    }
}

/// Ask instances to power off
#[derive(Debug, Args)]
pub struct Stop {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Seconds that the guest has to power off before it is killed; 0 kills it at once
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = value::seconds)]
    time: Duration,
    /// Save the guest where it is: the next start goes on from there
    #[arg(long, conflicts_with = "time")]
    hibernate: bool,
}

impl Stop {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("stop", &self.instances, |instance| {
            if self.hibernate {
                context.service.hibernate_instance(instance)?;
                return Ok(());
            }
            let request = StopInstance {
                instance: instance.into(),
                timeout: self.time,
            };
            context.service.stop_instance(&request)?;
            Ok(())
        })
    }
}

/// Ask instances to restart
#[derive(Debug, Args)]
pub struct Reboot {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Reboot {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("reboot", &self.instances, |instance| {
            context.service.reboot_instance(instance)?;
            Ok(())
        })
    }
}

/// Stop the processors and devices of instances; the guest does not notice
#[derive(Debug, Args)]
pub struct Pause {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Pause {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("pause", &self.instances, |instance| {
            context.service.pause_instance(instance)?;
            Ok(())
        })
    }
}

/// Resume paused instances
#[derive(Debug, Args)]
pub struct Resume {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Resume {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("resume", &self.instances, |instance| {
            context.service.resume_instance(instance)?;
            Ok(())
        })
    }
}

/// Stop instances and remove them with their volumes
#[derive(Debug, Args)]
pub struct Terminate {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Seconds that a running guest has to power off
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = value::seconds)]
    time: Duration,
}

impl Terminate {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each("terminate", &self.instances, |instance| {
            let request = TerminateInstance {
                instance: instance.into(),
                timeout: self.time,
            };
            for volume in context.service.terminate_instance(&request)?.kept {
                note(format_args!("{} stays: {}", volume.id, volume.path.display()));
            }
            Ok(())
        })
    }
}

/// Does `step` for each instance. On success prints the name as it was typed, as docker does; reports each
/// failure.
fn for_each(
    verb: &str,
    instances: &[String],
    step: impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Status> {
    let mut status = Status::OK;
    let mut printed = Ok(());
    for text in instances {
        match step(text).with_context(|| format!("cannot {verb} {text}")) {
            // The others get their step all the same.
            Ok(()) => printed = printed.and(line(text)),
            Err(error) => {
                failure::complain(&error);
                status = Status::VMM_FAILED;
            }
        }
    }
    printed?;
    Ok(status)
}
