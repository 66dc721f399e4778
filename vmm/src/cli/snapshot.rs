//! `snapshot`, `warm` and `clone`: a guest that runs, kept in an image or doubled.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::options::HostOptions;
use super::request::{Hardware, NetworkArgs};
use super::stream::{line, note};
use super::wait::{Waiting, wait_for};
use super::{Context, Status, value};
use instance::process::per_run::PerRun;
use instance::process::restore::Begin;
use instance::service::{CloneInstance, Launched, RunInstances, SnapshotInstance, WaitFor, WarmImage};

/// Make a warm image of a running instance
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Id, beginning of an id, or name
    instance: String,
    /// The image's name
    name: String,
    /// A paragraph for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl Snapshot {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let request = SnapshotInstance {
            instance: self.instance.clone(),
            name: self.name,
            description: self.description,
        };
        let made = context.service.snapshot_instance(&request);
        let made = made.with_context(|| format!("cannot make a warm image of {}", self.instance))?;
        note(format_args!("vmm: {}", made.warning));
        line(made.id)?;
        Ok(Status::OK)
    }
}

/// Launch an image, and make a warm image of what runs then
#[derive(Debug, Args)]
pub struct Warm {
    /// An AMI file, or the id or name of an image in the store
    image: String,
    /// Write the warm image here
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// When: its agent answers, its SSH server greets, or something listens on its port N
    #[arg(long, value_name = "agent|ssh|port=N", default_value = "agent", value_parser = wait_for)]
    at: WaitFor,
    /// How long to wait for that
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    wait_timeout: Duration,
    #[command(flatten)]
    hardware: Hardware,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    host: HostOptions,
}

impl Warm {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let launch = RunInstances {
            config: self.network.config(self.hardware.config()?)?,
            user_data: self.network.user_data()?,
            per_run: PerRun {
                host: self.host.into(),
                ..PerRun::default()
            },
            ..RunInstances::of(&self.image)
        };
        let request = WarmImage {
            launch,
            at: self.at,
            timeout: self.wait_timeout,
            output: self.output,
        };
        let made = context.service.warm_image(&request);
        let made = made.with_context(|| format!("cannot make a warm image of {}", self.image))?;
        note(format_args!("vmm: {}", made.warning));
        line(format_args!("{} {}", made.id, request.output.display()))?;
        Ok(Status::OK)
    }
}

/// Launch instances that go on from where an instance is
#[derive(Debug, Args)]
pub struct Clone {
    /// Id, beginning of an id, or name
    instance: String,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// A name for the clone
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    host: HostOptions,
}

impl Clone {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let request = CloneInstance {
            instance: self.instance.clone(),
            count: self.count,
            name: self.name,
            host: self.host.into(),
        };
        let launched = context.service.clone_instance(&request);
        let launched = launched.with_context(|| format!("cannot clone {}", self.instance))?;
        let mut ids = Vec::new();
        for clone in launched {
            line(&clone.id)?;
            ids.push(clone.id);
        }
        self.waiting.run(context, &ids)?;
        Ok(Status::OK)
    }
}

/// Says why the kernel of a launched instance boots, where a saved guest was to go on.
pub fn note_boot(launched: &Launched) {
    if let Some(why) = &launched.booted {
        note(format_args!(
            "vmm: {} boots instead of going on: {why}",
            launched.id
        ));
    }
}

/// How a run begins.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Warm images")]
pub struct BeginOptions {
    /// Boot the image's kernel, even if the image holds a running guest
    #[arg(long, conflicts_with = "warm_only")]
    pub cold: bool,
    /// Go on from the running guest that the image holds, or fail
    #[arg(long)]
    pub warm_only: bool,
}

impl From<BeginOptions> for Begin {
    fn from(BeginOptions { cold, warm_only }: BeginOptions) -> Begin {
        match (cold, warm_only) {
            (true, _) => Begin::Boot,
            (false, true) => Begin::RestoreOnly,
            (false, false) => Begin::Restore,
        }
    }
}
