//! Pausing and resuming an instance, by request and for lack of disk space.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::InstanceProcess;
use crate::process::guest::{GuestControl, SpaceHook};
use crate::store::pause::{NoSpace, Paused};
use crate::{Error, Result, State};

/// How long a request to go on waits for what came of the writes that wait for space. They are few and the
/// answer is quick; a file system that hangs must not hold the request.
const RETRY_TIMEOUT: Duration = Duration::from_secs(5);

impl InstanceProcess {
    /// Stops the guest where it is, and returns when nothing of it runs.
    pub fn pause(&self) -> Result<()> {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let control = self.running_control("the pause")?;
        if self.record().paused.is_some_and(|paused| paused.requested) {
            return Err(Error::PausedAlready(self.id.to_string()));
        }
        if !control.pause() {
            return Err(Error::HasEnded(self.id.to_string()));
        }
        self.change_paused(|paused| paused.requested = true);
        Ok(())
    }

    /// Goes on after a pause. When writes wait for space they are carried out again at once.
    ///
    /// # Errors
    /// When the instance is not paused, or there is still no space.
    pub fn resume(&self) -> Result<()> {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let control = self.running_control("the request to go on")?;
        let Some(paused) = self.record().paused else {
            return Err(Error::NotPaused(self.id.to_string()));
        };
        if paused.requested {
            self.change_paused(|paused| paused.requested = false);
            control.resume();
        }
        if paused.no_space.is_none() {
            return Ok(());
        }
        match self.retry(&*control) {
            Some(full) => Err(Error::StillFull {
                id: self.id.to_string(),
                full: Box::new(full),
            }),
            None => Ok(()),
        }
    }

    /// Waits until the instance is paused, or goes on, other than `paused` says; or for `timeout`. Returns
    /// how it is; `None` when it has ended.
    pub fn wait_for_pause(&self, paused: bool, timeout: Duration) -> Option<bool> {
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |inner| {
                inner.held.is_some() && inner.record.paused.is_some() == paused
            })
            .unwrap_or_else(PoisonError::into_inner);
        inner.held.as_ref().map(|_| inner.record.paused.is_some())
    }

    /// A guest that is to shut down in order has to run for it.
    pub(super) fn resume_to_stop(&self) {
        if self.record().paused.is_some()
            && let Err(error) = self.resume()
        {
            tracing::warn!("the guest cannot shut down in order: {error}");
        }
    }

    /// What a guest reports about space goes into the record of its process.
    pub(super) fn space_hook(self: &Arc<Self>) -> SpaceHook {
        let process = Arc::downgrade(self);
        Box::new(move |report| {
            if let Some(process) = process.upgrade() {
                process.set_no_space(report);
            }
        })
    }

    /// The guest's processors are held for want of space, or go on.
    fn set_no_space(&self, report: Option<NoSpace>) {
        let before = self.record().paused.and_then(|paused| paused.no_space);
        // The record first: it has room kept back, and leaves some for the message.
        self.change_paused(|paused| paused.no_space = report.clone());
        match report {
            Some(full) if before.is_none() => tracing::warn!(
                "{} is paused: {full}; it goes on when there is space, by itself or when it is resumed",
                self.id
            ),
            None if before.is_some() => tracing::warn!("{} goes on: there is space again", self.id),
            _ => {}
        }
    }

    /// Has the waiting writes carried out again, and waits for what came of it: what is still missing, if
    /// anything.
    fn retry(&self, control: &dyn GuestControl) -> Option<NoSpace> {
        let before = self.lock().space_reports;
        control.retry();
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), RETRY_TIMEOUT, |inner| {
                inner.space_reports == before && inner.held.is_some()
            })
            .unwrap_or_else(PoisonError::into_inner);
        inner.record.paused.clone().and_then(|paused| paused.no_space)
    }

    /// Changes the reason for the pause, also in the record.
    fn change_paused(&self, change: impl FnOnce(&mut Paused)) {
        let mut inner = self.lock();
        inner.space_reports += 1;
        let mut paused = inner.record.paused.clone().unwrap_or_default();
        change(&mut paused);
        let paused = (paused != Paused::default()).then_some(paused);
        let reason = match &paused {
            Some(paused) => paused.to_string(),
            None if inner.record.paused.is_some() => "resumed".into(),
            None => inner.record.reason.clone(),
        };
        let written = inner.change(|record| {
            record.paused = paused;
            if record.state == State::Running {
                record.reason = reason;
            }
        });
        if let Err(error) = written {
            tracing::warn!(%error, "the pause is not recorded");
        }
        self.changed.notify_all();
    }

    /// Control over the guest, which must run; `what` is asked for.
    pub(super) fn running_control(&self, what: &'static str) -> Result<Arc<dyn GuestControl>> {
        let inner = self.lock();
        let control = inner.control.clone();
        control
            .filter(|_| matches!(inner.record.state, State::Running | State::Stopping))
            .ok_or_else(|| Error::NotRunning {
                what,
                id: self.id.to_string(),
                state: inner.record.state,
            })
    }
}
