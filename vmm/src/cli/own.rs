//! `own`: the process of a detached instance.

use std::sync::Arc;

use clap::Args;
use nix::sys::signal::Signal;

use super::stream::note;
use super::{Context, Status, signals};
use instance::api;
use instance::guest::readiness;
use instance::process::assemble::Assembly;
use instance::process::detach;
use instance::process::owner::Owner;
use instance::process::per_run::PerRun;
use instance::{Error, InstanceId, Result, State};
use machine::sandbox::{self, Kind};

/// Run an instance whose lock is inherited
#[derive(Debug, Args)]
pub struct Own {
    id: InstanceId,
    /// What is asked of this run, as JSON
    #[arg(value_parser = PerRun::from_json)]
    per_run: PerRun,
}

impl Own {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let (held, report) = detach::take_over(&context.store, &self.id)?;
        let determinism = self.per_run.determinism();
        let timeline = Arc::clone(&context.timeline);
        let served = determinism.clone();
        let signals = signals::hold()?;
        let owner = readiness::own(held, &determinism);
        let mut report = Some(report);
        let on_started = || {
            readiness::serve(&owner, &served, move || {
                timeline.mark(machine::timeline::Event::Ready)
            })?;
            let stopper = Arc::clone(&owner);
            let stop = move |signal| {
                if signal != Signal::SIGWINCH {
                    let _ = stopper.stop(api::STOP_TIMEOUT, &format!("its process received {signal}"));
                }
            };
            signals.deliver(stop).map_err(Error::os("starting a thread"))
        };
        let mut assembly = Assembly::new(
            context.home().clone(),
            self.per_run,
            determinism,
            Arc::clone(&context.timeline),
        );
        let (ending, held) = owner.run(
            |record, directory, console| {
                // Threads only after this; and without it the report stays here until the record says why.
                if report.is_some() {
                    assembly.confine(record, directory, record.auto_remove)?;
                }
                if let Some(report) = report.take() {
                    tell(&owner, report)?;
                }
                assembly.build(record, directory, console)
            },
            on_started,
        )?;
        assembly.finish()?;
        if let Some(counted) = assembly.counted() {
            note(format_args!("{}: {counted}", held.record().id));
        }
        if held.record().auto_remove {
            held.remove_by(assembly.janitor())?;
        }
        Ok(Status::from(&ending))
    }
}

/// Tells the command that waits for it whether the guest runs.
fn tell(owner: &Arc<Owner>, report: detach::Report) -> Result<()> {
    let (now, news) = owner.watch()?;
    let watch = move || {
        for next in std::iter::once(now).chain(news) {
            match (next.state, next.ending) {
                (State::Running, _) => return report.running(),
                (State::Stopped, Some(ending)) => return report.failed(&ending.to_string()),
                _ => {}
            }
        }
    };
    sandbox::spawn("report", Kind::Control, watch).map_err(Error::os("starting a thread"))?;
    Ok(())
}
