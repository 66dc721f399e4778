//! `own`: the process of a detached instance.

use std::sync::Arc;

use clap::Args;
use nix::sys::signal::Signal;

use super::{Context, Status, signals};
use crate::instance::assemble::{Assembly, PerRun};
use crate::instance::owner::Owner;
use crate::instance::{Error, InstanceId, Result, State, api, detach, service};

/// Run an instance whose lock is inherited
#[derive(Debug, Args)]
pub struct Own {
    id: InstanceId,
    #[command(flatten)]
    per_run: PerRun,
}

impl Own {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let (held, report) = detach::take_over(&context.store, &self.id)?;
        let turn = self.per_run.turn();
        let timeline = Arc::clone(&context.timeline);
        let served = turn.clone();
        let signals = signals::hold()?;
        let owner = service::own(held, &turn);
        tell(&owner, report)?;
        let surround = || {
            service::serve(&owner, &served, move || {
                timeline.mark(crate::timeline::Event::Ready)
            })?;
            let stopper = Arc::clone(&owner);
            let stop = move |signal| {
                if signal != Signal::SIGWINCH {
                    let _ = stopper.stop(api::STOP_PATIENCE, &format!("its process received {signal}"));
                }
            };
            signals.deliver(stop).map_err(Error::os("starting a thread"))
        };
        let mut assembly = Assembly::new(
            context.home().clone(),
            self.per_run,
            turn,
            Arc::clone(&context.timeline),
        );
        let (ending, held) = owner.run(
            |record, directory, console| assembly.build(record, directory, console),
            surround,
        )?;
        assembly.finish()?;
        if let Some(counted) = assembly.counted() {
            eprintln!("{}: {counted}", held.record().id);
        }
        if held.record().auto_remove {
            held.remove()?;
        }
        Ok(Status::from(&ending))
    }
}

/// Tells the command that waits for it whether the guest runs.
fn tell(owner: &Arc<Owner>, report: detach::Report) -> Result<()> {
    let (now, news) = owner.watch();
    let watch = move || {
        for next in std::iter::once(now).chain(news) {
            match (next.state, next.ending) {
                (State::Running, _) => return report.running(),
                (State::Stopped, Some(ending)) => return report.failed(&ending.to_string()),
                _ => {}
            }
        }
    };
    std::thread::Builder::new()
        .name("report".into())
        .spawn(watch)
        .map_err(Error::os("starting a thread"))?;
    Ok(())
}
