//! What a program that calls this crate remembers besides instances and images: documents of JSON, by kind
//! and name.
//!
//! ```text
//! documents/
//!   KIND/
//!     UUID.json      a document with its name; the UUID follows from the name, which may be any text
//!     UUID.lock      held by whoever changes it; it is removed with the document
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::home::{Home, create_private};
use crate::store::lock::Lock;
use crate::store::replace::{Durable, replace};
use crate::{Error, Result};

/// UUIDv5 namespace of the names of documents.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b69_6c6e_0000_5000_8000_646f_6375_6d65);
const EXTENSION: &str = "json";

/// The documents of one kind.
#[derive(Debug, Clone)]
pub struct Documents {
    directory: PathBuf,
}

/// A document as it is kept.
#[derive(Serialize, Deserialize)]
struct Named<T> {
    name: String,
    document: T,
}

/// A document that nobody else changes meanwhile.
#[derive(Debug)]
pub struct LockedDocument {
    path: PathBuf,
    name: String,
    _lock: Lock,
}

impl Documents {
    /// Those of `kind`, a word of letters and dashes.
    pub fn new(home: &Home, kind: &str) -> Documents {
        Documents {
            directory: home.state().join("documents").join(kind),
        }
    }

    /// The document of that name, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        Ok(self.read(self.path(name))?.map(|named| named.document))
    }

    /// Every document by its name, in the order of the names.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn list<T: DeserializeOwned>(&self) -> Result<Vec<(String, T)>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("reading", &self.directory)(error)),
        };
        let mut all = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_some_and(|extension| extension == EXTENSION)
                && let Some(named) = self.read::<T>(path)?
            {
                all.push((named.name, named.document));
            }
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    /// Takes hold of the document of that name, whether it exists or not.
    ///
    /// # Errors
    /// When another program has it for longer than `timeout`.
    pub fn lock(&self, name: &str, timeout: Duration) -> Result<LockedDocument> {
        create_private(&self.directory)?;
        let path = self.path(name);
        let lock_file = path.with_extension("lock");
        loop {
            let lock = Lock::take(&lock_file, timeout)?.ok_or_else(|| Error::Busy(name.to_owned()))?;
            // Its holder may have removed the file since it was opened.
            if lock.is_at(&lock_file) {
                return Ok(LockedDocument {
                    path,
                    name: name.to_owned(),
                    _lock: lock,
                });
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let id = Uuid::new_v5(&NAMESPACE, name.as_bytes());
        self.directory.join(format!("{id}.{EXTENSION}"))
    }

    fn read<T: DeserializeOwned>(&self, path: PathBuf) -> Result<Option<Named<T>>> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("reading", &path)(error)),
        };
        let named =
            serde_json::from_slice(&text).map_err(|e| Error::file("reading", &path)(io::Error::other(e)))?;
        Ok(Some(named))
    }
}

impl LockedDocument {
    /// Replaces the document.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put<T: Serialize>(&self, document: &T) -> Result<()> {
        let named = Named {
            name: self.name.clone(),
            document,
        };
        let written = serde_json::to_vec(&named)
            .map_err(io::Error::from)
            .and_then(|text| replace(&self.path, &text, Durable::Yes));
        written.map_err(Error::file("writing", &self.path))
    }

    /// Removes the document, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::file("removing", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for LockedDocument {
    /// Without a document there is no need for its lock. It is held until the file is gone.
    fn drop(&mut self) {
        if !self.path.exists() {
            let _ = fs::remove_file(self.path.with_extension("lock"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn documents_of_any_name_are_kept_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::new(&Home::at(dir.path()), "things");
        assert!(documents.list::<u32>().unwrap().is_empty());
        let names = ["../../x", "b/é", &"long".repeat(60)];
        for (number, name) in (0..).zip(names) {
            documents.lock(name, NOW).unwrap().put(&number).unwrap();
        }
        assert_eq!(documents.get::<u32>("b/é").unwrap(), Some(1));
        let listed: Vec<_> = documents
            .list::<u32>()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(listed, names);
        documents.lock("b/é", NOW).unwrap().remove().unwrap();
        assert_eq!(documents.get::<u32>("b/é").unwrap(), None);
        documents.lock("b/é", NOW).unwrap().remove().unwrap();
        let files = fs::read_dir(&documents.directory).unwrap().count();
        assert_eq!(files, 4, "two documents and their locks");
    }

    #[test]
    fn who_waits_for_a_document_that_is_removed_holds_the_lock_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::new(&Home::at(dir.path()), "things");
        let inside = AtomicU32::new(0);
        let enter = || {
            for _ in 0..50 {
                // There never is a document, so that the lock comes and goes.
                let held = documents.lock("x", Duration::from_secs(60)).unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(held);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(enter);
            }
        });
        assert_eq!(fs::read_dir(&documents.directory).unwrap().count(), 0);
    }

    #[test]
    fn one_at_a_time_changes_a_document() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::new(&Home::at(dir.path()), "things");
        let held = documents.lock("x", NOW).unwrap();
        assert!(matches!(documents.lock("x", NOW), Err(Error::Busy(_))));
        documents.lock("y", NOW).unwrap();
        drop(held);
        documents.lock("x", NOW).unwrap();
    }

    #[test]
    fn what_is_no_document_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::new(&Home::at(dir.path()), "things");
        let held = documents.lock("x", NOW).unwrap();
        fs::write(&held.path, b"{").unwrap();
        let error = documents.get::<u32>("x").unwrap_err().to_string();
        assert!(error.contains("documents/things"), "{error}");
    }
}
