//! The content-addressed store: downloaded files by SHA-256, and what is made from them.
//!
//! ```text
//! $XDG_CACHE_HOME/kiln/
//!   blobs/ab/abcd…     a file whose SHA-256 is its name; complete or absent
//!   partial/abcd…      a download under way, locked by its writer, resumed after an interruption
//!   releases/…         the last InRelease of each suite, for revalidation; its signature is verified at every use
//!   roots/…            results of a recipe's stages, each with the digest of its bytes next to it
//! ```
//!
//! A blob appears by `rename`, so that a reader never meets half of one; a writer holds a lock on the partial
//! file, so that two processes that want the same blob download it once. Readers check the digest again: a
//! damaged cache costs a download, never a wrong image.

mod digest;

use crate::advice::Advice;
use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use displaydoc::Display;
use sha2::Digest as _;

pub use digest::{ParseDigestError, Sha256};

/// What goes wrong in the store.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// no place for the cache: neither XDG_CACHE_HOME nor HOME is set
    NoHome,
    /// cannot write {path} to the cache: {source}
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// cannot write {path}: the disk is full
    Full {
        /// What was to be written.
        path: PathBuf,
    },
    /// cannot use {path} in the cache: {source}
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// the digest of {what} is {found}, not the expected {expected}
    Digest {
        /// The file, as the user knows it.
        what: String,
        /// The expected digest.
        expected: Sha256,
        /// The digest of the bytes.
        found: Sha256,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NoHome => "set XDG_CACHE_HOME to a directory".into(),
            Self::ReadOnly { .. } => {
                "set XDG_CACHE_HOME to a writable directory; a read-only cache serves what it \
                 already holds"
                    .into()
            }
            Self::Full { .. } => {
                "free some space there, or choose another place with XDG_CACHE_HOME or TMPDIR".into()
            }
            Self::Io { .. } => "check that the file system is healthy and that you own the directory".into(),
            Self::Digest { .. } => {
                "again in a while, or another mirror: this one is out of step, or someone changed \
                 the file on its way"
                    .into()
            }
        })
    }
}

impl Error {
    /// Sorts an input or output error by what a person can do about it.
    pub fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

/// A cache directory. Cheap to clone; two processes may use one directory at a time.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`. Nothing is created until something is written.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The user's store: `$XDG_CACHE_HOME/kiln`, or `$HOME/.cache/kiln`; `variable` gives a variable's value.
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let set = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| Some(set("HOME")?.join(".cache")))
            .ok_or(Error::NoHome)?;
        Ok(Self::at(cache.join("kiln")))
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn blob_path(&self, digest: &Sha256) -> PathBuf {
        let name = digest.to_string();
        self.root.join("blobs").join(&name[..2]).join(name)
    }

    /// Whether the blob is there with this size. Does not read it.
    pub fn has(&self, digest: &Sha256, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == size)
    }

    /// The blob's bytes, checked; `None` if it is absent, of another size or damaged. A damaged blob is
    /// removed where that is possible, so that the next download replaces it.
    pub fn get(&self, digest: &Sha256, size: u64) -> Result<Option<Vec<u8>>, Error> {
        if !self.has(digest, size) {
            return Ok(None);
        }
        let path = self.blob_path(digest);
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, e)),
        };
        if Sha256::of(&data) == *digest {
            return Ok(Some(data));
        }
        // A read-only cache keeps its damaged file; the caller downloads to a place of its own.
        let _ = fs::remove_file(path);
        Ok(None)
    }

    /// Stores `data`, whose digest the store computes.
    pub fn put(&self, data: &[u8]) -> Result<Sha256, Error> {
        let digest = Sha256::of(data);
        if !self.has(&digest, data.len() as u64) {
            self.write_atomic(&self.blob_path(&digest), data)?;
        }
        Ok(digest)
    }

    /// A small named file, such as the last InRelease of a suite; `None` if it was never written.
    pub fn read_named(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(data) => Ok(Some(data)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// Writes a small named file, all of it or nothing.
    pub fn write_named(&self, name: &str, data: &[u8]) -> Result<(), Error> {
        self.write_atomic(&self.root.join(name), data)
    }

    fn write_atomic(&self, path: &Path, data: &[u8]) -> Result<(), Error> {
        let dir = path.parent().unwrap_or(&self.root);
        make_dir(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io(dir, e))?;
        file.write_all(data).map_err(|e| Error::io(path, e))?;
        file.persist(path).map_err(|e| Error::io(path, e.error))?;
        Ok(())
    }

    /// Begins or continues the download of a blob. Waits while another process downloads it; `None` when
    /// that one has finished it meanwhile.
    pub fn partial(&self, digest: &Sha256, size: u64) -> Result<Option<Partial>, Error> {
        let dir = self.root.join("partial");
        make_dir(&dir)?;
        let path = dir.join(digest.to_string());
        loop {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path);
            let file = file.map_err(|e| Error::io(&path, e))?;
            file.lock().map_err(|e| Error::io(&path, e))?;
            if self.has(digest, size) {
                // The file that was just opened may be a new, empty one.
                if same_file(&file, &path) {
                    let _ = fs::remove_file(&path);
                }
                return Ok(None);
            }
            // The lock holds for the inode: the one before us may have moved or removed it.
            if same_file(&file, &path) {
                return Ok(Some(Partial {
                    file,
                    path,
                    target: self.blob_path(digest),
                    digest: *digest,
                    size,
                }));
            }
        }
    }
}

/// Creates a directory of the store and its parents.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// A blob under way. It holds the lock of its file until dropped; dropping it keeps the bytes for a
/// resumption.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    digest: Sha256,
    size: u64,
}

impl Partial {
    /// Bytes that are here already, from an earlier attempt.
    pub fn len(&self) -> Result<u64, Error> {
        Ok(self.file.metadata().map_err(|e| Error::io(&self.path, e))?.len())
    }

    /// Whether nothing is here yet.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Forgets the bytes of earlier attempts.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(|e| Error::io(&self.path, e))
    }

    /// Appends bytes. On a full disk the partial file is given up, so that it frees its space.
    pub fn append(&mut self, data: &[u8]) -> Result<(), Error> {
        self.file.write_all(data).map_err(|e| {
            let error = Error::io(&self.path, e);
            if matches!(error, Error::Full { .. }) {
                let _ = fs::remove_file(&self.path);
            }
            error
        })
    }

    /// Checks the whole against its digest and makes it a blob. `what` names it in an error. A file of the
    /// wrong digest or size is removed.
    pub fn finish(mut self, what: &str) -> Result<(), Error> {
        let wrong = |found| Error::Digest {
            what: what.to_owned(),
            expected: self.digest,
            found,
        };
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|e| Error::io(&self.path, e))?;
        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self
                .file
                .read(&mut buffer)
                .map_err(|e| Error::io(&self.path, e))?
            {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let found = Sha256::from_hasher(hasher);
        if found != self.digest || self.len()? != self.size {
            let _ = fs::remove_file(&self.path);
            return Err(wrong(found));
        }
        if let Some(dir) = self.target.parent() {
            make_dir(dir)?;
        }
        fs::rename(&self.path, &self.target).map_err(|e| Error::io(&self.target, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("kiln"));
        (dir, store)
    }

    #[test]
    fn a_blob_is_read_back_and_a_damaged_one_is_not() {
        let (_dir, store) = store();
        let digest = store.put(b"hello").unwrap();
        assert_eq!(store.get(&digest, 5).unwrap().as_deref(), Some(&b"hello"[..]));
        assert_eq!(store.get(&digest, 6).unwrap(), None);

        fs::write(store.blob_path(&digest), b"hellO").unwrap();
        assert_eq!(store.get(&digest, 5).unwrap(), None);
        assert!(!store.has(&digest, 5), "the damaged blob must be gone");
    }

    #[test]
    fn a_partial_download_continues_and_is_checked() {
        let (_dir, store) = store();
        let digest = Sha256::of(b"hello world");
        let mut first = store.partial(&digest, 11).unwrap().unwrap();
        first.append(b"hello ").unwrap();
        drop(first);
        let mut second = store.partial(&digest, 11).unwrap().unwrap();
        assert_eq!(second.len().unwrap(), 6);
        second.append(b"world").unwrap();
        second.finish("greeting").unwrap();
        assert_eq!(store.get(&digest, 11).unwrap().unwrap(), b"hello world");
        assert!(store.partial(&digest, 11).unwrap().is_none());
        assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn wrong_bytes_never_become_a_blob() {
        let (_dir, store) = store();
        let digest = Sha256::of(b"right");
        let mut partial = store.partial(&digest, 5).unwrap().unwrap();
        partial.append(b"wrong").unwrap();
        let error = partial.finish("pkg.deb").unwrap_err().report();
        assert!(error.contains("pkg.deb") && error.contains("try:"), "{error}");
        assert!(!store.has(&digest, 5));
        assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn two_writers_make_one_blob() {
        let (_dir, store) = store();
        let data = vec![7; 100_000];
        let digest = Sha256::of(&data);
        let wrote: usize = std::thread::scope(|scope| {
            let run = || {
                let Some(mut partial) = store.partial(&digest, 100_000).unwrap() else {
                    return 0;
                };
                partial.restart().unwrap();
                for chunk in data.chunks(1000) {
                    partial.append(chunk).unwrap();
                }
                partial.finish("x").unwrap();
                1
            };
            let writers: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            writers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(wrote, 1);
        assert_eq!(store.get(&digest, 100_000).unwrap().unwrap(), data);
    }

    #[test]
    fn errors_say_what_to_try() {
        let full = Error::io("/x", io::Error::from(io::ErrorKind::StorageFull)).report();
        assert!(full.contains("disk is full") && full.contains("try:"), "{full}");
        let read_only = Error::io("/x", io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        assert!(read_only.report().contains("XDG_CACHE_HOME"));
    }
}
