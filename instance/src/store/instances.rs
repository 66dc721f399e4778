//! The directory of all instances, and how the state of each is derived.
//!
//! ```text
//! instances/                 one directory for all
//!   .names                   lock: held while a name is being claimed
//!   i-0123456789abcdef0/     an instance; complete from the moment it has this name
//!     instance.json          the record, replaced atomically
//!     lock                   held by the process that runs the guest, to its end
//!     reserve                room for the record when the guest has filled the file system
//!     …                      volumes, console log, sockets
//!   i-0123456789abcdef0.ami  a hard link to its image
//!   .new-i-…/  .gone-i-…/    being made, being removed; swept when their maker has died
//! ```
//!
//! Only the holder of `lock` writes the record. When the record says that a process runs the guest but nobody
//! holds the lock, the instance process was killed: whoever notices takes the lock and writes that down. So
//! after `kill -9` of anything at any moment the next command derives the right state.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::store::home::{BASE_SUFFIX, Home, base_link, create_private, create_private_new};
use crate::store::id::valid_name;
use crate::store::lock::Lock;
use crate::store::locked::{Damaged, LockedInstance};
use crate::store::record::{Ending, Record};
use crate::store::record_file;
use crate::{Error, Event, InstanceId, Result, State};

/// How long a claim on a name or on a stopped instance waits for another command that is about to finish.
const TIMEOUT: Duration = Duration::from_secs(3);
/// After this long an unfinished directory that nobody holds has no maker any more.
const ABANDONED: Duration = Duration::from_secs(60);

const LOCK: &str = "lock";
const NEW: &str = ".new-";
/// Begins the name of a directory that is being removed.
pub(super) const GONE: &str = ".gone-";

/// All instances of a user.
#[derive(Debug, Clone)]
pub struct Store {
    home: Home,
}

/// One entry of a listing.
#[derive(Debug)]
pub enum Entry {
    /// The record, reconciled with the lock.
    Known(Box<Record>),
    /// The record cannot be read.
    Damaged(Error, InstanceId),
}

impl Store {
    /// The instances kept below `home`.
    pub fn new(home: Home) -> Store {
        Store { home }
    }

    /// Where things are.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Makes the directory of a new instance and takes hold of it. Claims the record's name. `fill` puts
    /// further files into the directory (given as it is named *now*) before anybody can see it.
    pub fn create(
        &self,
        mut record: Record,
        fill: impl FnOnce(&Path, &mut Record) -> Result<()>,
    ) -> Result<LockedInstance> {
        let _claim = match &record.name {
            Some(name) => {
                create_private(&self.home.instances())?;
                Some(self.claim(name)?)
            }
            None => None,
        };
        let id = record.id.to_string();
        let under_way = self.home.instances().join(format!("{NEW}{id}"));
        create_private_new(&under_way)?;
        let made = (|| {
            let lock = take(&under_way, &record.id)?;
            fill(&under_way, &mut record)?;
            record_file::write_first(&under_way, &record)?;
            let directory = self.home.instance(&record.id);
            fs::rename(&under_way, &directory).map_err(Error::file("creating", &directory))?;
            Ok(LockedInstance {
                record,
                directory,
                lock,
                named: None,
            })
        })();
        if made.is_err() {
            let _ = fs::remove_dir_all(&under_way);
            let _ = fs::remove_file(base_link(&self.home.instances().join(&*id)));
        }
        made
    }

    /// Checks that no instance has `name`; the lock returned keeps it so until the instance exists.
    fn claim(&self, name: &str) -> Result<Lock> {
        let lock = Lock::take(&self.home.instances().join(".names"), TIMEOUT)?
            .ok_or_else(|| Error::Busy("the list of names".into()))?;
        self.check_name(name)?;
        Ok(lock)
    }

    /// Checks that `name` is one, and that no instance has it.
    pub fn check_name(&self, name: &str) -> Result<()> {
        if !valid_name(name) {
            return Err(Error::Malformed(
                name.into(),
                "name (1 to 63 letters, digits, `.`, `_`, `-`; the first is a letter or digit or `_`; not in \
                 the form of an id)",
            ));
        }
        for id in self.ids()? {
            if let Ok(Some(other)) = record_file::read(&self.home.instance(&id))
                && other.name.as_deref() == Some(name)
                && other.state != State::Terminated
            {
                return Err(Error::NameTaken {
                    name: name.into(),
                    holder: other.id.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Locks an instance that does not run.
    pub fn hold(&self, id: &InstanceId, event: Event) -> Result<LockedInstance> {
        let directory = self.home.instance(id);
        let refused = |state| Error::Transition {
            id: id.to_string(),
            state,
            event,
        };
        let record = self.reconcile(id)?;
        if record.state.has_process() {
            return Err(refused(record.state));
        }
        let lock = unless_removed(id, &directory, Lock::take(&directory.join(LOCK), TIMEOUT))?
            .ok_or_else(|| Error::Busy(id.to_string()))?;
        let record = record_file::read(&directory)?.ok_or_else(|| Error::NoInstance(id.to_string()))?;
        if record.state.after(event).is_none() {
            return Err(refused(record.state));
        }
        Ok(LockedInstance {
            record,
            directory,
            lock,
            named: None,
        })
    }

    /// Takes over an instance whose lock was inherited from the process that held it.
    pub fn inherit(&self, id: &InstanceId, lock: Lock) -> Result<LockedInstance> {
        let directory = self.home.instance(id);
        let record = record_file::read(&directory)?.ok_or_else(|| Error::NoInstance(id.to_string()))?;
        Ok(LockedInstance {
            record,
            directory,
            lock,
            named: None,
        })
    }

    /// The record in `directory` as it is written there, not reconciled with the lock.
    pub fn record_in(directory: &Path) -> Result<Record> {
        record_file::read(directory)?.ok_or_else(|| Error::NoInstance(directory.display().to_string()))
    }

    /// Takes hold of what is left of an instance whose record cannot be read, to remove it.
    pub fn hold_damaged(&self, id: &InstanceId) -> Result<Damaged> {
        let directory = self.home.instance(id);
        let lock = Lock::try_take(&directory.join(LOCK))?.ok_or_else(|| Error::Busy(id.to_string()))?;
        Ok(Damaged {
            directory,
            _lock: lock,
        })
    }

    /// The record of `id`, corrected if its process is gone.
    pub fn reconcile(&self, id: &InstanceId) -> Result<Record> {
        let directory = self.home.instance(id);
        loop {
            let record = record_file::read(&directory)?.ok_or_else(|| Error::NoInstance(id.to_string()))?;
            if !record.state.has_process() || Lock::is_held(&directory.join(LOCK))? {
                return Ok(record);
            }
            let taken = unless_removed(id, &directory, Lock::try_take(&directory.join(LOCK)))?;
            let Some(lock) = taken else {
                continue;
            };
            // The instance process may have written its last change between the reading and the taking.
            let Some(record) = record_file::read(&directory)? else {
                continue;
            };
            if !record.state.has_process() {
                return Ok(record);
            }
            let mut held = LockedInstance {
                record,
                directory: directory.clone(),
                lock,
                named: None,
            };
            held.record.ending = Some(Ending::Lost);
            held.record.paused = None;
            held.apply(Event::Lost, "the process that ran it vanished")?;
            let record = held.record.clone();
            if record.auto_remove {
                held.remove()?;
            }
            return Ok(record);
        }
    }

    /// Every instance, oldest first, each reconciled with its lock. Sweeps what killed commands have left
    /// behind.
    pub fn list(&self) -> Result<Vec<Entry>> {
        self.sweep();
        let mut entries = Vec::new();
        for id in self.ids()? {
            match self.reconcile(&id) {
                Ok(record) if record.auto_remove && record.ending == Some(Ending::Lost) => {}
                Ok(record) => entries.push(Entry::Known(Box::new(record))),
                Err(Error::NoInstance(_)) => {}
                Err(error) => entries.push(Entry::Damaged(error, id)),
            }
        }
        entries.sort_by_key(|entry| match entry {
            Entry::Known(record) => (record.launched, record.launch_index, record.id.clone()),
            Entry::Damaged(_, id) => (u64::MAX, 0, id.clone()),
        });
        Ok(entries)
    }

    /// The instance that a person means by `text`: a name, an id or the beginning of exactly one id.
    pub fn find(&self, text: &str) -> Result<InstanceId> {
        if let Ok(id) = text.parse::<InstanceId>() {
            return if self.home.instance(&id).is_dir() {
                Ok(id)
            } else {
                Err(Error::NoInstance(text.into()))
            };
        }
        let ids = self.ids()?;
        for id in &ids {
            if let Ok(Some(record)) = record_file::read(&self.home.instance(id))
                && record.name.as_deref() == Some(text)
            {
                return Ok(id.clone());
            }
        }
        // Two digits at least, so that a slip of the finger does not pick an instance.
        let begun: Vec<_> = ids
            .into_iter()
            .filter(|id| text.len() >= 4 && id.as_str().starts_with(text))
            .collect();
        match begun.as_slice() {
            [] => Err(Error::NoInstance(text.into())),
            [id] => Ok(id.clone()),
            several => Err(Error::Ambiguous {
                text: text.into(),
                candidates: several
                    .iter()
                    .map(InstanceId::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
                image: false,
            }),
        }
    }

    fn ids(&self) -> Result<Vec<InstanceId>> {
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let path = self.home.instances();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("reading", &path)(e)),
        };
        Ok(entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect())
    }

    /// Removes directories whose making or removal was cut short. What cannot be removed now is left for the
    /// next time.
    fn sweep(&self) {
        for name in self.names().unwrap_or_default() {
            let path = self.home.instances().join(&name);
            let abandoned = name.starts_with(GONE) || name.starts_with(NEW) && is_old(&path);
            if abandoned && let Ok(Some(_lock)) = Lock::try_take(&path.join(LOCK)) {
                let _ = fs::remove_dir_all(&path);
            }
            // Its instance is being made before the link is, and is renamed before the link is removed.
            if let Some(id) = name.strip_suffix(BASE_SUFFIX)
                && !self.home.instances().join(format!("{NEW}{id}")).exists()
                && !self.home.instances().join(id).exists()
            {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// An instance can be removed by its process between any two steps of another command: that is no failure of
/// the step, and the instance is simply not there any more.
fn unless_removed<T>(id: &InstanceId, directory: &Path, step: Result<T>) -> Result<T> {
    match step {
        Err(Error::File { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !directory.exists() =>
        {
            Err(Error::NoInstance(id.to_string()))
        }
        step => step,
    }
}

fn take(directory: &Path, id: &InstanceId) -> Result<Lock> {
    Lock::try_take(&directory.join(LOCK))?.ok_or_else(|| Error::Busy(id.to_string()))
}

fn is_old(path: &Path) -> bool {
    let age = || {
        SystemTime::now()
            .duration_since(fs::metadata(path).ok()?.modified().ok()?)
            .ok()
    };
    age().is_some_and(|age| age > ABANDONED)
}

#[cfg(test)]
#[path = "instances_tests.rs"]
pub(crate) mod tests;
