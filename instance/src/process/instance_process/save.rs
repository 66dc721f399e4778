//! Saving the guest: for an image, and for a hibernation.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use super::InstanceProcess;
use crate::process::guest::GuestControl;
use crate::store::saved::{Purpose, SavedFiles};
use crate::{Error, Result};

impl InstanceProcess {
    /// Writes memory and state of the guest, which is paused by request, into the state directory.
    ///
    /// # Errors
    /// When it is not paused so, or cannot be saved.
    pub fn save(&self) -> Result<()> {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let control = self.running_control("the snapshot")?;
        if !self.is_paused_by_request() {
            return Err(Error::NotPaused(self.id.to_string()));
        }
        self.write(Purpose::Image, &*control)
    }

    /// Saves the guest where it is and ends it, so that the next start goes on from there. One that cannot be
    /// saved goes on now.
    ///
    /// # Errors
    /// When it does not run, is removed when it stops, or cannot be saved.
    pub fn hibernate(self: &Arc<Self>) -> Result<()> {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let control = self.running_control("the hibernation")?;
        let record = self.record();
        if record.auto_remove {
            return Err(Error::HibernationRemoved(record.label().to_owned()));
        }
        let was_paused = self.is_paused_by_request();
        if !was_paused && !control.pause() {
            return Err(Error::HasEnded(self.id.to_string()));
        }
        let saved = self.write(Purpose::Hibernation, &*control);
        if saved.is_err() && !was_paused {
            control.resume();
        }
        saved?;
        {
            let mut inner = self.lock();
            inner.begin_stop("hibernated by request")?;
            inner.hibernated = true;
        }
        self.changed.notify_all();
        self.kill();
        Ok(())
    }

    fn is_paused_by_request(&self) -> bool {
        self.record().paused.is_some_and(|paused| paused.requested)
    }

    fn write(&self, purpose: Purpose, control: &dyn GuestControl) -> Result<()> {
        SavedFiles::new(&self.directory, purpose).write(|memory: &File| control.save(memory))
    }
}
