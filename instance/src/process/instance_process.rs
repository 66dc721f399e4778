//! The process that runs an instance's guest, from the first instruction to the last record.
//!
//! The instance process knows nothing of devices: it is given a way to build a [`Guest`] and a way to ask the
//! guest's agent to shut down. What it adds is the life cycle: the record, reboots, requests to stop with a
//! deadline, readiness, and events for subscribers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::console::Console;
use crate::process::guest::{Beginning, Guest, GuestControl};
use crate::process::subscription::{Subscribers, Subscription};
use crate::store::LockedInstance;
use crate::store::pause::Paused;
use crate::store::record::{Ending, Record};
use crate::{Error, Event, InstanceId, Result, State};
use machine::Outcome;
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::Determinism;

mod pause;
mod save;
mod tags;

/// Events that a subscriber may lag behind before it is cut off; a run has about ten.
const EVENT_BACKLOG: usize = 256;
/// Between two attempts to reach an agent that is not there yet.
const AGENT_RETRY: Duration = Duration::from_millis(100);

/// What the guest is asked for when it is asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownKind {
    /// Power off.
    PowerOff,
    /// Restart.
    Reboot,
}

/// Asks the agent in the guest of the instance kept in this directory to shut down.
pub type Ask = Box<dyn Fn(&Path, ShutdownKind) -> Result<()> + Send + Sync>;

/// One event: the state of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusEvent {
    /// Its state.
    pub state: State,
    /// Whether the guest's agent is there.
    pub ready: bool,
    /// Why it is paused, if it is. A process of an older release does not say.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// How it ended, once it has.
    pub ending: Option<Ending>,
}

/// The instance process of one instance, shared by the thread that runs the guest and those that take
/// requests.
pub struct InstanceProcess {
    id: InstanceId,
    directory: PathBuf,
    console: Console,
    ask: Ask,
    determinism: Determinism,
    /// Locked while a request to pause or to go on is carried out. Locked before `inner`.
    pausing: Mutex<()>,
    /// What the record says of an error; the error's own message without it.
    explain: OnceLock<fn(&Error) -> String>,
    // Locked while the record is written, and nothing else is locked meanwhile but the console (a leaf).
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    /// `None` once the instance is stopped and handed back.
    held: Option<LockedInstance>,
    /// The last record, kept after `held` is gone.
    record: Record,
    killer: Option<Arc<dyn Fn() + Send + Sync>>,
    /// There while `killer` is.
    control: Option<Arc<dyn GuestControl>>,
    /// Counts what was reported about pauses and space.
    space_reports: u64,
    /// A stop was requested: a reset from the guest no longer means a reboot.
    stopping: bool,
    killed: bool,
    /// The guest has executed its first instruction in this process.
    ran: bool,
    /// How the image's main program has ended in this run, if it has.
    exited: Option<u8>,
    /// How this run has begun.
    beginning: Beginning,
    /// The guest was saved to go on at the next start.
    hibernated: bool,
    watchers: Subscribers<StatusEvent>,
}

impl InstanceProcess {
    /// Takes charge of `held`, which is pending. `determinism` is the machine's.
    pub fn new(
        held: LockedInstance,
        console: Console,
        ask: Ask,
        determinism: Determinism,
    ) -> Arc<InstanceProcess> {
        let record = held.record().clone();
        Arc::new(InstanceProcess {
            id: record.id.clone(),
            directory: held.directory().to_path_buf(),
            console,
            ask,
            determinism,
            pausing: Mutex::default(),
            explain: OnceLock::new(),
            inner: Mutex::new(Inner {
                held: Some(held),
                record,
                killer: None,
                control: None,
                space_reports: 0,
                stopping: false,
                killed: false,
                ran: false,
                exited: None,
                beginning: Beginning::default(),
                hibernated: false,
                watchers: Subscribers::default(),
            }),
            changed: Condvar::new(),
        })
    }

    /// Has the record say what `explain` makes of an error that ends the machine: its message, and what to
    /// try.
    pub fn explain_failures(&self, explain: fn(&Error) -> String) {
        // Who has set it first has the same words.
        let _ = self.explain.set(explain);
    }

    /// The instance's id.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Its state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its record as it is now.
    pub fn record(&self) -> Record {
        self.lock().record.clone()
    }

    /// Whether a guest has run at all: if not, the volumes hold nothing of anybody's.
    pub fn has_run(&self) -> bool {
        self.lock().ran
    }

    /// How the run has begun.
    pub fn beginning(&self) -> Beginning {
        self.lock().beginning.clone()
    }

    /// Runs the guest, again after each reboot, until it ends for good; then writes that down and hands the
    /// instance back, stopped. `build` makes one inner. `surround` sets up what serves the guest's users; it
    /// is called once, when the first run has begun, because nothing needs it before.
    pub fn run(
        self: &Arc<Self>,
        mut build: impl FnMut(&Record, &Path, &Console) -> Result<Box<dyn Guest>>,
        on_started: impl FnOnce() -> Result<()>,
    ) -> Result<(Ending, LockedInstance)> {
        let mut on_started = Some(on_started);
        let ending = loop {
            let record = self.record();
            match self.live(&mut build, &record, &mut on_started) {
                Ok(Some(ending)) => break ending,
                Ok(None) => {}
                Err(error) => {
                    let explain = self.explain.get().copied().unwrap_or(ToString::to_string);
                    break Ending::Failed(explain(&error));
                }
            }
        };
        self.finish(ending)
    }

    /// One inner. `None` means that the guest wants another one.
    fn live(
        self: &Arc<Self>,
        build: &mut impl FnMut(&Record, &Path, &Console) -> Result<Box<dyn Guest>>,
        record: &Record,
        on_started: &mut Option<impl FnOnce() -> Result<()>>,
    ) -> Result<Option<Ending>> {
        let mut guest = build(record, &self.directory, &self.console)?;
        guest.report_space(self.space_hook());
        {
            let mut inner = self.lock();
            let killer = guest.killer();
            if inner.killed {
                killer();
            }
            inner.killer = Some(killer);
            let control = guest.control();
            // They may have changed while the machine was built.
            if inner.record.tags != record.tags {
                control.set_tags(self.shown_tags(&inner.record));
            }
            inner.control = Some(control);
            inner.ran = true;
            inner.beginning = guest.beginning();
            inner.exited = None;
        }
        let mut begun = Ok(());
        let outcome = guest.run(&mut || {
            begun = self.begun(on_started.take());
            if begun.is_err() {
                self.kill();
            }
        });
        self.console.connect_input(None);
        self.console.connect_size(None);
        let mut inner = self.lock();
        inner.killer = None;
        inner.control = None;
        begun?;
        let panic = self.console.take_panic();
        Ok(match (outcome?, panic) {
            (Outcome::Killed, _) if inner.hibernated => Some(Ending::Hibernated),
            (Outcome::Killed, _) => Some(Ending::Killed),
            (Outcome::Reset | Outcome::TripleFault, Some(line)) => Some(Ending::Panicked(line)),
            (Outcome::TripleFault, None) => Some(Ending::Crashed),
            (Outcome::PowerOff, _) => Some(inner.exited.map_or(Ending::PoweredOff, Ending::Exited)),
            (Outcome::Reset, None) if inner.stopping => Some(Ending::PoweredOff),
            (Outcome::Reset, None) => None,
        })
    }

    /// The guest runs: says so to subscribers, after what serves the first run is there.
    fn begun(&self, on_started: Option<impl FnOnce() -> Result<()>>) -> Result<()> {
        let (event, reason) = match on_started {
            Some(on_started) => {
                self.console.prepare();
                on_started()?;
                (Event::Started, launched(&self.beginning()))
            }
            None => (Event::Rebooted, "rebooted by the guest".to_owned()),
        };
        let mut inner = self.lock();
        if !inner.stopping {
            inner.update(event, &reason, |r| {
                // A guest that goes on may be ready already in its first run.
                r.ready &= event == Event::Started;
                r.paused = None;
                r.owner = Some(std::process::id());
            })?;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn finish(&self, ending: Ending) -> Result<(Ending, LockedInstance)> {
        self.console.close();
        let mut inner = self.lock();
        let written = inner.update(Event::Ended, &ending.to_string(), |r| {
            r.ending = Some(ending.clone());
            r.ready = false;
            r.paused = None;
            r.owner = None;
        });
        inner.watchers.clear();
        let held = inner.held.take();
        self.changed.notify_all();
        drop(inner);
        written?;
        // `held` is taken here and nowhere else, and `run` is called once.
        held.map(|held| (ending, held))
            .ok_or_else(|| Error::HasEnded(self.id.to_string()))
    }

    /// The guest's agent is there, and whoever waits for it does not know it yet.
    pub fn note_ready(&self) {
        if let Some(control) = self.control() {
            control.mark_ready();
        }
    }

    /// The launch is over, and those who waited for it have been notified: gives back memory.
    pub fn give_back(&self) {
        if let Some(control) = self.control() {
            control.give_back();
        }
    }

    fn control(&self) -> Option<Arc<dyn GuestControl>> {
        self.lock().control.clone()
    }

    /// The guest's agent has connected.
    pub fn set_ready(&self) {
        let mut inner = self.lock();
        if inner.held.is_some() && !inner.record.ready {
            // Subscribers are notified first; that the disk has it too matters to a later listing only.
            if let Err(error) = inner.change(|r| r.ready = true) {
                tracing::warn!(%error, "readiness is not recorded");
            }
            self.changed.notify_all();
        }
    }

    /// The image's main program has ended with this status; the guest is about to power off.
    pub fn set_exited(&self, status: u8) {
        self.lock().exited = Some(status);
    }

    /// Waits until the agent is there. `false` when the instance ended or `timeout` ran out before.
    pub fn wait_ready(&self, timeout: Duration) -> bool {
        let over = |inner: &mut Inner| !inner.record.ready && inner.held.is_some();
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, over)
            .unwrap_or_else(PoisonError::into_inner);
        inner.record.ready && inner.held.is_some()
    }

    /// Asks the guest to power off, and ends it without its consent when it has not obeyed after `timeout`.
    /// Returns at once. A guest that is paused by request goes on for it, as with `docker stop`.
    pub fn stop(self: &Arc<Self>, timeout: Duration, reason: &str) -> Result<()> {
        self.lock().begin_stop(reason)?;
        self.changed.notify_all();
        if timeout.is_zero() {
            self.kill();
            return Ok(());
        }
        let process = Arc::clone(self);
        self.determinism.take();
        sandbox::spawn("stop", Kind::Control, move || {
            let deadline = Instant::now() + timeout;
            process.resume_to_stop();
            process.ask_until(ShutdownKind::PowerOff, deadline);
            process.determinism.give();
            if !process.wait_ended(deadline) {
                process.kill();
            }
        })
        .map_err(Error::os("starting a thread"))?;
        Ok(())
    }

    /// Asks the guest to restart.
    pub fn reboot(&self) -> Result<()> {
        let (state, ready, paused) = {
            let inner = self.lock();
            (
                inner.record.state,
                inner.record.ready,
                inner.record.paused.clone(),
            )
        };
        let (what, id) = ("the reboot", self.id.to_string());
        if let Some(paused) = paused {
            let paused = Box::new(paused);
            return Err(Error::StandsStill { what, id, paused });
        }
        match (state, ready) {
            (State::Running, true) => {
                (self.ask)(&self.directory, ShutdownKind::Reboot)?;
                // Whoever asks from now on means the next inner.
                let mut inner = self.lock();
                inner.change(|r| r.ready = false)?;
                self.changed.notify_all();
                Ok(())
            }
            (State::Running, false) => Err(Error::NotReady { what, id }),
            _ => Err(Error::NotRunning { what, id, state }),
        }
    }

    /// Ends the guest without its consent.
    pub fn kill(&self) {
        let mut inner = self.lock();
        inner.stopping = true;
        inner.killed = true;
        if let Some(killer) = &inner.killer {
            killer();
        }
    }

    /// Where the instance stands, and everything new from here on until it ends.
    pub fn watch(&self) -> Result<(StatusEvent, Subscription<StatusEvent>)> {
        let mut inner = self.lock();
        let subscribed = inner.watchers.add(EVENT_BACKLOG);
        if inner.held.is_none() {
            inner.watchers.clear();
        }
        let subscription = subscribed.map_err(Error::os("subscribing to events"))?;
        Ok((status(&inner.record), subscription))
    }

    /// Where the instance stands.
    pub fn status(&self) -> StatusEvent {
        status(&self.lock().record)
    }

    /// Tries to reach the agent until it has taken the request, the guest has ended or it is too late.
    fn ask_until(&self, shutdown: ShutdownKind, deadline: Instant) {
        while Instant::now() < deadline {
            match (self.ask)(&self.directory, shutdown) {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the agent is not there yet"),
            }
            if self.wait_ended(deadline.min(Instant::now() + AGENT_RETRY)) {
                return;
            }
        }
    }

    /// Waits until the instance has ended; `false` when that has not happened by `deadline`.
    fn wait_ended(&self, deadline: Instant) -> bool {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |inner| inner.held.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        inner.held.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A stop that cannot be written down is one all the same: only a state that forbids it refuses it.
    fn begin_stop(&mut self, reason: &str) -> Result<()> {
        self.stopping = true;
        match self.update(Event::Stop, reason, |_| {}) {
            Err(refused @ Error::Transition { .. }) => Err(refused),
            Err(error) => {
                tracing::warn!(%error, "the stop is not recorded");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn update(&mut self, event: Event, reason: &str, change: impl FnOnce(&mut Record)) -> Result<()> {
        let Some(held) = &mut self.held else {
            let (id, state) = (self.record.id.to_string(), self.record.state);
            return Err(Error::Transition { id, state, event });
        };
        let written = held.update(event, reason, change);
        self.publish();
        written
    }

    fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let written = held.change(change);
        self.publish();
        written
    }

    /// Publishes the state of the instance.
    fn publish(&mut self) {
        if let Some(held) = &self.held {
            self.record = held.record().clone();
        }
        self.watchers.publish(&status(&self.record));
    }
}

/// What is said of a run that has begun so.
fn launched(beginning: &Beginning) -> String {
    match beginning {
        Beginning::Booted { instead: None } => "launched".into(),
        Beginning::Booted { instead: Some(why) } => format!("launched; it boots: {why}"),
        Beginning::Restored => "launched from a running guest".into(),
    }
}

fn status(record: &Record) -> StatusEvent {
    StatusEvent {
        state: record.state,
        ready: record.ready,
        paused: record.paused.clone(),
        ending: record.ending.clone(),
    }
}

#[cfg(test)]
#[path = "instance_process_tests.rs"]
mod tests;
