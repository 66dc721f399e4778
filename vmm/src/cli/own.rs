//! `own`: the process of a detached instance.

use std::sync::Arc;

use clap::Args;
use nix::sys::signal::Signal;

use super::stream::{Stream, note};
use super::{Context, Status, failure, signals};
use instance::api;
use instance::process::assemble::Assembly;
use instance::process::detach;
use instance::process::instance_process::InstanceProcess;
use instance::process::per_run::PerRun;
use instance::service::hosting;
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
        let (held, report) = detach::take_over(context.service.store(), &self.id)?;
        let determinism = self.per_run.determinism();
        let timeline = Arc::clone(&context.timeline);
        let served = determinism.clone();
        let signals = signals::hold()?;
        let process = hosting::take_charge(held, &determinism);
        process.explain_failures(failure::line);
        let mut report = Some(report);
        let on_started = || {
            hosting::serve(&process, &served, move || {
                timeline.mark(machine::timeline::Event::Ready)
            })?;
            let stopper = Arc::clone(&process);
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
        let (ending, held) = process.run(
            |record, directory, console| {
                // Threads only after this; and without it the report stays here until the record says why.
                if report.is_some() {
                    assembly.confine(record, directory, record.auto_remove)?;
                }
                if let Some(report) = report.take() {
                    tell(&process, report)?;
                }
                assembly.build(record, directory, console)
            },
            on_started,
        )?;
        Stream::Error.put(assembly.finish()?.as_bytes())?;
        if let Some(counted) = assembly.counted() {
            note(format_args!("{}: {counted}", held.record().id));
        }
        if held.record().auto_remove {
            assembly.remove(held)?;
        }
        Ok(Status::from(&ending))
    }
}

/// Tells the command that waits for it whether the guest runs.
fn tell(process: &Arc<InstanceProcess>, report: detach::Report) -> Result<()> {
    let (now, news) = process.watch()?;
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
