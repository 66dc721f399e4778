//! `start`, `stop`, `reboot` and `terminate`: the same step for each instance named; one that fails does not keep the
//! others from theirs.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::failure::{Advice, TimedOut};
use super::options::HostOptions;
use super::stream::{line, note};
use super::wait::Waiting;
use super::{Context, Status, failure, value};
use instance::api;
use instance::api::client::{Client, StatusEvent};
use instance::process::detach;
use instance::process::launch::empty_ephemeral;
use instance::process::per_run::PerRun;
use instance::service::shutdown;
use instance::store::LockedInstance;
use instance::store::pause::Paused;
use instance::{Error, Event, InstanceId, State};

/// Start stopped instances
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    host: HostOptions,
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Start {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each(context, "start", &self.instances, |id| {
            let mut held = shutdown::hold(&context.store, id, Event::Start)?;
            begin(&mut held)?;
            let per_run = PerRun {
                host: self.host.into(),
                ..PerRun::default()
            };
            detach::spawn(held, &per_run)?;
            self.waiting.run(context, std::slice::from_ref(id))
        })
    }
}

/// Makes a stopped instance pending again.
pub fn begin(held: &mut LockedInstance) -> Result<(), Error> {
    empty_ephemeral(held.record())?;
    held.update(Event::Start, "started", |record| {
        record.ending = None;
        record.ready = false;
    })
}

/// Ask instances to power off
#[derive(Debug, Args)]
pub struct Stop {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Seconds to wait before the guest is ended without its consent; 0 ends it at once
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = value::seconds)]
    time: Duration,
}

impl Stop {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        for_each(context, "stop", &self.instances, |id| {
            Ok(shutdown::stop(&context.store, id, self.time)?)
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
        for_each(context, "reboot", &self.instances, |id| {
            running(context, id, Event::Rebooted)?;
            wait_ready(context, id, api::STOP_TIMEOUT)?;
            Ok(client(context, id).reboot()?)
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
        for_each(context, "terminate", &self.instances, |id| {
            terminate(context, id, self.time)
        })
    }
}

fn terminate(context: &Context, id: &InstanceId, timeout: Duration) -> anyhow::Result<()> {
    match shutdown::stop(&context.store, id, timeout) {
        Err(Error::Damaged { .. }) => return Ok(shutdown::remove_damaged(&context.store, id)?),
        // Its process has removed it (`--rm`) since it was looked up.
        Err(Error::NoInstance(_)) => return Ok(()),
        stopped => stopped?,
    }
    match context.store.hold(id, Event::Terminate) {
        Ok(held) => remove(held),
        Err(Error::NoInstance(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes an instance and says which volumes stay.
fn remove(held: LockedInstance) -> anyhow::Result<()> {
    let kept: Vec<_> = held
        .record()
        .volumes
        .iter()
        .filter(|v| !v.delete_on_termination)
        .cloned()
        .collect();
    held.remove()?;
    for volume in kept {
        note(format_args!("{} stays: {}", volume.id, volume.path.display()));
    }
    Ok(())
}

/// Checks that `id` runs, and is not paused; `event` is what it is wanted for.
pub fn running(context: &Context, id: &InstanceId, event: Event) -> Result<(), Error> {
    alive(context, id, event)?.map_or(Ok(()), |paused| Err(stands_still(id, &paused)))
}

/// Checks that `id` runs, be it paused or not, and says why it is paused.
pub fn alive(context: &Context, id: &InstanceId, event: Event) -> Result<Option<Paused>, Error> {
    let record = context.store.reconcile(id)?;
    match record.state {
        State::Pending | State::Running => Ok(record.paused),
        state => Err(Error::Transition {
            id: id.to_string(),
            state,
            event,
        }),
    }
}

/// Why nothing can be asked of the guest of `id`.
fn stands_still(id: &InstanceId, paused: &Paused) -> Error {
    Error::Refused(format!("{id} is {paused}; `vmm resume {id}` lets it go on"))
}

/// Waits until the agent of `id` answers.
pub fn wait_ready(context: &Context, id: &InstanceId, timeout: Duration) -> anyhow::Result<()> {
    let client = client(context, id);
    let (sender, receiver) = std::sync::mpsc::channel();
    // The thread ends with the process, or when the instance does.
    std::thread::Builder::new().name("wait".into()).spawn(move || {
        let paused_or_ready = |news: &StatusEvent| news.paused.is_some() || news.ready;
        let found = client.watch().map(|mut news| news.find(paused_or_ready));
        let _ = sender.send(found);
    })?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(Some(StatusEvent {
            paused: Some(paused), ..
        }))) => Err(stands_still(id, &paused).into()),
        Ok(Ok(Some(_))) => Ok(()),
        Ok(Ok(None)) => {
            let message = format!("{id} ended before its agent answered");
            Err(Advice::new(message, format!("`vmm logs {id}` shows what it printed")).into())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(TimedOut(format!(
            "the agent of {id} has not answered within {} s",
            timeout.as_secs()
        ))
        .into()),
    }
}

/// Speaks to the owner of `id`.
pub fn client(context: &Context, id: &InstanceId) -> Client {
    Client::new(id.clone(), context.store.home().instance(id))
}

/// Does `step` for each instance, prints what was typed when it succeeds as docker does, and complains when it does not.
pub fn for_each(
    context: &Context,
    verb: &str,
    instances: &[String],
    step: impl Fn(&InstanceId) -> anyhow::Result<()>,
) -> anyhow::Result<Status> {
    let mut status = Status::OK;
    let mut printed = Ok(());
    for text in instances {
        let done = context
            .store
            .find(text)
            .map_err(anyhow::Error::from)
            .and_then(|id| step(&id));
        match done.with_context(|| format!("cannot {verb} {text}")) {
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
