//! Requests for the instance process itself: hold the lock, run the guest, and serve the control socket.
//!
//! A command that launches in the foreground runs the instance itself; a detached one is run by a process
//! that [`detach`](crate::process::detach) has started.

use std::path::Path;
use std::sync::Arc;

use crate::api;
use crate::guest::{agent, clock_sync, readiness};
use crate::process::assemble::{Assembly, TerminalSize};
use crate::process::console::Console;
use crate::process::detach::Report;
use crate::process::guest::Beginning;
use crate::process::instance_process::InstanceProcess;
use crate::process::launch::Fresh;
use crate::process::per_run::PerRun;
use crate::store::LockedInstance;
use crate::store::home::Home;
use crate::store::record::Ending;
use crate::{Error, Record, Result, State};
use machine::sandbox::{self, Kind};
use machine::timeline::Timeline;
use machine::virtio::determinism::Determinism;

/// Lines of the console that are kept of a guest that has ended.
const LAST_LINES: usize = 12;

/// An instance that this process runs. No other thread may have been started before it runs: the process
/// confines itself.
pub struct Host {
    process: Arc<InstanceProcess>,
    assembly: Assembly,
    determinism: Determinism,
}

/// How a guest has ended for good.
#[derive(Debug)]
pub struct Hosted {
    /// The end.
    pub ending: Ending,
    /// The record as it was written then; the instance may be removed.
    pub record: Record,
    /// The last lines of the console.
    pub last_lines: String,
    /// What was measured and is to be shown, as tables.
    pub tables: String,
    /// How many instructions there were, in words, where they were counted.
    pub counted: Option<String>,
}

impl Host {
    /// Takes charge of `held`, which is pending. `timeline` has been running since the process began.
    pub fn new(held: LockedInstance, home: &Home, per_run: PerRun, timeline: Arc<Timeline>) -> Host {
        let determinism = per_run.determinism();
        let assembly = Assembly::new(home.clone(), per_run, determinism.clone(), timeline);
        Host {
            process: take_charge(held, &determinism),
            assembly,
            determinism,
        }
    }

    /// The instance was launched by this process, which has opened `fresh` for it.
    pub fn launched_here(self, fresh: Fresh) -> Host {
        Host {
            assembly: self.assembly.with(fresh),
            ..self
        }
    }

    /// A command of the caller runs in place of the image's main program.
    pub fn without_main(self, without_main: bool) -> Host {
        Host {
            assembly: self.assembly.without_main(without_main),
            ..self
        }
    }

    /// The console is shown on a terminal of this size.
    pub fn on_terminal(self, size: TerminalSize) -> Host {
        Host {
            assembly: self.assembly.on_terminal(size),
            ..self
        }
    }

    /// The instance process.
    pub fn process(&self) -> &Arc<InstanceProcess> {
        &self.process
    }

    /// Whether instructions are time.
    pub fn determinism(&self) -> &Determinism {
        &self.determinism
    }

    /// Runs the guest until it ends for good. `on_started` is called when it runs and its sockets are there.
    /// `report`, if there is one, passes that on to the process that started this one. An instance that is
    /// not to outlive its run is removed.
    ///
    /// # Errors
    /// When the end cannot be written down, or what was measured cannot.
    pub fn run(
        mut self,
        mut report: Option<Report>,
        on_started: impl FnOnce() -> Result<()>,
    ) -> Result<Hosted> {
        let (process, determinism) = (&self.process, &self.determinism);
        let assembly = &mut self.assembly;
        let noted = Arc::clone(process);
        let serve = || {
            serve(process, determinism, move || noted.note_ready())?;
            on_started()
        };
        let build = |record: &Record, directory: &Path, console: &Console| {
            // Threads only after this; and without it the report stays here until the record says why.
            if let Some(report) = report.take() {
                assembly.confine(record, directory, record.auto_remove)?;
                report_start(process, report)?;
            }
            assembly.build(record, directory, console)
        };
        let (ending, held) = process.run(build, serve)?;
        let hosted = Hosted {
            ending,
            record: held.record().clone(),
            last_lines: self.process.console().last_lines(LAST_LINES),
            tables: self.assembly.finish()?,
            counted: self.assembly.counted(),
        };
        // What never ran is nothing to keep.
        if hosted.record.auto_remove || self.assembly.is_launched_here() && !self.process.has_run() {
            self.assembly.remove(held)?;
        }
        Ok(hosted)
    }
}

/// Reports to the command that waits for it whether the guest runs.
fn report_start(process: &Arc<InstanceProcess>, report: Report) -> Result<()> {
    let (now, events) = process.watch()?;
    let process = Arc::clone(process);
    let watch = move || {
        for next in std::iter::once(now).chain(events) {
            let instead = match process.beginning() {
                Beginning::Booted { instead } => instead,
                Beginning::Restored => None,
            };
            match (next.state, next.ending) {
                (State::Running, _) => return report.running(instead.as_deref()),
                (State::Stopped, Some(ending)) => return report.failed(&ending.to_string()),
                _ => {}
            }
        }
    };
    sandbox::spawn("report", Kind::Control, watch).map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// The instance process of `held`, which is this one.
fn take_charge(mut held: LockedInstance, determinism: &Determinism) -> Arc<InstanceProcess> {
    held.name_process();
    let console = Console::new(held.directory());
    let asked = determinism.clone();
    let ask = move |directory: &Path, shutdown| agent::ask_to_shut_down(directory, &asked, shutdown);
    InstanceProcess::new(held, console, Box::new(ask), determinism.clone())
}

/// Opens the instance process's sockets. `on_ready` is called when the guest's agent says that it is there.
fn serve(
    process: &Arc<InstanceProcess>,
    determinism: &Determinism,
    on_ready: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    readiness::listen_for_readiness(process, determinism.clone(), on_ready)?;
    readiness::listen_for_end(process, determinism.clone())?;
    if !determinism.is_enabled() {
        clock_sync::start(process)?;
    }
    api::serve(Arc::clone(process))
}
