//! An instance whose lock this process holds: what may be changed of it, and its removal.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::store::home::base_link;
use crate::store::instances::GONE;
use crate::store::lock::Lock;
use crate::store::process_lock::ProcessLock;
use crate::store::record::Record;
use crate::store::record_file;
use crate::store::replace::Durable;
use crate::{Error, Event, Result};

/// An instance whose lock this process holds: nobody else changes it until this is dropped.
#[derive(Debug)]
pub struct LockedInstance {
    pub(super) record: Record,
    pub(super) directory: PathBuf,
    pub(super) lock: Lock,
    /// The name of this process, once it runs the guest.
    pub(super) named: Option<ProcessLock>,
}

impl LockedInstance {
    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Names this process as the one that runs the guest, so that it can be ended though its socket cannot be
    /// reached. Without that the instance works all the same.
    pub fn name_process(&mut self) {
        match ProcessLock::take(&self.directory) {
            Ok(named) => self.named = Some(named),
            Err(error) => tracing::warn!(%error, "this process could be ended through its socket only"),
        }
    }

    /// The lock, to be handed to a child.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Moves to the state after `event` and writes it down durably.
    pub fn apply(&mut self, event: Event, reason: &str) -> Result<()> {
        self.update(event, reason, |_| {})
    }

    /// As [`apply`](LockedInstance::apply), with other changes to the record in the same stroke.
    pub fn update(&mut self, event: Event, reason: &str, change: impl FnOnce(&mut Record)) -> Result<()> {
        let state = self.record.state;
        let next = state.after(event).ok_or_else(|| Error::Transition {
            id: self.record.id.to_string(),
            state,
            event,
        })?;
        self.record.state = next;
        self.record.reason = reason.into();
        self.change(change)
    }

    /// Changes the record in another respect than its state.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        change(&mut self.record);
        // What goes away when it stops need not survive a power failure.
        let durable = if self.record.auto_remove {
            Durable::No
        } else {
            Durable::Yes
        };
        record_file::replace_in(&self.directory, &self.record, durable)
    }

    /// As [`change`](LockedInstance::change); a record that cannot be written stays as it was.
    pub fn change_if_written(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let before = self.record.clone();
        self.change(change).inspect_err(|_| self.record = before)
    }

    /// Removes a stopped instance: its volumes that are to go with it, then its directory.
    pub fn remove(self) -> Result<()> {
        self.remove_with(remove_directory)
    }

    /// The same in a process that may not remove its own directory: `directory` removes it.
    pub fn remove_with(mut self, directory: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.apply(Event::Terminate, "terminated")?;
        for volume in self.record.volumes.iter().filter(|v| v.delete_on_termination) {
            // Those inside the directory go with it.
            if !volume.path.starts_with(&self.directory) {
                let _ = fs::remove_file(&volume.path);
            }
        }
        directory(&self.directory)
    }
}

/// What is left of an instance without a readable record.
#[derive(Debug)]
pub struct Damaged {
    pub(super) directory: PathBuf,
    pub(super) _lock: Lock,
}

impl Damaged {
    /// Removes it.
    pub fn remove(self) -> Result<()> {
        remove_directory(&self.directory)
    }
}

/// Gone at once for everybody, then deleted at leisure. Whoever lists instances meanwhile may delete it, too, or
/// leave a lock's file there that it deletes next: both is the end of it.
pub(crate) fn remove_directory(directory: &Path) -> Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let gone = directory.with_file_name(format!("{GONE}{name}"));
    fs::rename(directory, &gone).map_err(Error::file("removing", directory))?;
    // There is none when the image is on another file system.
    let _ = fs::remove_file(base_link(directory));
    match fs::remove_dir_all(&gone) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(()),
        removed => removed.map_err(Error::file("removing", &gone)),
    }
}
