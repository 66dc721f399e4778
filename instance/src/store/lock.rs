//! A lock that ends with its holder.
//!
//! It is an open-file-description lock (`fcntl(2)`, `F_OFD_SETLK`): the kernel drops it when the last
//! descriptor of the open file is closed, however the process ended, and it passes to a child that inherits
//! the descriptor, so an instance can change hands with no moment in between. Unlike `flock`, it can be
//! *asked about* without being taken (`F_OFD_GETLK`), so a command that only looks never makes another one
//! fail.

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::{Error, Result};

/// An exclusive lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock at `path` (the file is created if need be), or returns `None` if another process holds
    /// it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>> {
        let file = open(path)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&request())) {
            Ok(_) => Ok(Some(Lock { file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(e) => Err(Error::file("locking", path)(e.into())),
        }
    }

    /// The lock of an open file that has no name yet, and so cannot be anybody else's.
    pub fn of_new(file: File) -> Result<Lock> {
        fcntl(&file, FcntlArg::F_OFD_SETLK(&request()))
            .map_err(|e| Error::os("locking a new file")(e.into()))?;
        Ok(Lock { file })
    }

    /// Takes the lock, waiting for the holder at most `timeout`.
    pub fn take(path: &Path, timeout: Duration) -> Result<Option<Lock>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(lock) = Lock::try_take(path)? {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the lock at `path` is held. Does not take it. A missing file is a free lock.
    pub fn is_held(path: &Path) -> Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::file("opening", path)(e)),
        };
        let mut probe = question();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe))
            .map_err(|e| Error::file("asking about", path)(e.into()))?;
        Ok(is_locked(&probe))
    }

    /// Whether the file that is locked is still the one at `path`, for files that a holder may remove.
    pub fn is_at(&self, path: &Path) -> bool {
        let same = |one: &Metadata, other: &Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
        match (self.file.metadata(), path.metadata()) {
            (Ok(locked), Ok(there)) => same(&locked, &there),
            _ => false,
        }
    }

    /// A second descriptor of the same lock, to be inherited by a child process.
    pub fn share(&self) -> Result<OwnedFd> {
        self.file
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::os("duplicating a lock"))
    }

    /// The lock behind a descriptor that was inherited from a parent that [`share`](Lock::share)d it. Taking
    /// it again is harmless when it is held through this very open file, and fails when it is not.
    pub fn inherit(descriptor: OwnedFd) -> Result<Lock> {
        let file = File::from(descriptor);
        fcntl(&file, FcntlArg::F_OFD_SETLK(&request()))
            .map_err(|e| Error::os("taking over an inherited lock")(e.into()))?;
        Ok(Lock { file })
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::file("opening", path))
}

/// A request for the whole file, exclusively. Open-file-description locks want `l_pid` to be zero.
pub(super) fn request() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The question who holds the whole file. A read lock asks the same as a write lock when all holders are
/// exclusive, and needs no write access.
pub(super) fn question() -> libc::flock {
    libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        ..request()
    }
}

/// Whether a [`question`] was answered with a holder.
pub(super) fn is_locked(answer: &libc::flock) -> bool {
    answer.l_type != libc::F_UNLCK as libc::c_short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_even_within_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path).unwrap());
        let held = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::is_held(&path).unwrap());
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(!Lock::is_held(&path).unwrap());
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn a_query_does_not_make_another_process_fail_to_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let asker = {
            let path = path.clone();
            std::thread::spawn(move || (0..2000).filter(|_| Lock::is_held(&path).unwrap()).count())
        };
        while !asker.is_finished() {
            assert!(Lock::try_take(&path).unwrap().is_some());
        }
        asker.join().unwrap();
    }

    #[test]
    fn a_shared_descriptor_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::try_take(&path).unwrap().unwrap();
        let heir = first.share().unwrap();
        drop(first);
        assert!(Lock::is_held(&path).unwrap());
        let second = Lock::inherit(heir).unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(second);
        assert!(!Lock::is_held(&path).unwrap());
    }

    #[test]
    fn a_killed_holder_leaves_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_take(&path).unwrap().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .stdin(held.share().unwrap())
            .spawn()
            .unwrap();
        drop(held);
        assert!(Lock::is_held(&path).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!Lock::is_held(&path).unwrap());
    }
}
