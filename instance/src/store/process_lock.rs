//! Finding the process that runs an instance without asking it: to end one that cannot be reached through its
//! socket.
//!
//! The instance's lock says that there is such a process, but not which one: open-file-description locks
//! belong to no process. The record has a process id, which is the launching command's while the machine is
//! being built. So the process that runs the guest holds a second lock, a record lock on a file of its own,
//! whose holder the kernel names (`fcntl(2)`, `F_GETLK`). That the id may be another process's by the time
//! that a signal is sent is excluded by a pidfd: it is opened, then the lock is looked at again, and what
//! still holds it is what was opened.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::store::lock::{is_locked, question, request};
use crate::{Error, Result};

/// The file in the state directory whose lock names the process.
const FILE: &str = "owner";

/// Held by the process that runs an instance: the kernel names the holder to those who ask. The lock ends
/// with the process.
#[derive(Debug)]
pub struct ProcessLock {
    /// No other descriptor of this file may be closed in this process: that would give up the lock.
    _file: File,
}

impl ProcessLock {
    /// Names this process as the one that runs the instance kept in `directory`, whose lock it holds.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn take(directory: &Path) -> Result<ProcessLock> {
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("opening", &path))?;
        fcntl(&file, FcntlArg::F_SETLK(&request())).map_err(|e| Error::file("locking", &path)(e.into()))?;
        Ok(ProcessLock { _file: file })
    }
}

/// A process that runs an instance. It stays this process: the descriptor is not given to another one with
/// the same id.
#[derive(Debug)]
pub struct ProcessHandle {
    descriptor: OwnedFd,
}

impl ProcessHandle {
    /// The process that runs the instance kept in `directory`; `None` when none has named itself, or none
    /// that can be seen from here. Must not be asked by that process itself.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn find(directory: &Path) -> Result<Option<ProcessHandle>> {
        let path = directory.join(FILE);
        let failed = || Error::file("asking about", &path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed()(e)),
        };
        let mut named = holder(&file).map_err(failed())?;
        while let Some(id) = named {
            let opened = open(id);
            let again = holder(&file).map_err(failed())?;
            match opened {
                Ok(descriptor) if again == named => return Ok(Some(ProcessHandle { descriptor })),
                Err(error) if again == named && error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(failed()(error));
                }
                // It has ended meanwhile.
                _ => named = again,
            }
        }
        Ok(None)
    }

    /// Sends it a signal. One that has ended already is fine.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let none: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: takes numbers and a pointer that may be null.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.descriptor.as_raw_fd(),
                signal as i32,
                none,
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits until it has ended; `false` when that has not happened within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut ended = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut ended, timeout) {
                Err(Errno::EINTR) => {}
                polled => return polled.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// The process that holds the lock, as far as it can be seen from here.
fn holder(file: &File) -> io::Result<Option<i32>> {
    let mut lock = question();
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((is_locked(&lock) && lock.l_pid > 0).then_some(lock.l_pid))
}

fn open(id: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    match i32::try_from(opened) {
        // SAFETY: the kernel has just made the descriptor for us.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::store::sockets;

    const DIRECTORY: &str = "KILN_TEST_DIRECTORY";

    /// A process that has named itself as the one that runs the instance kept in a directory, and does
    /// nothing else: it takes connections, but no thread of it answers.
    pub struct Stuck(Child);

    impl Stuck {
        /// Starts it; it holds `lock` for as long as it lives.
        pub fn start(directory: &Path, lock: Stdio) -> Stuck {
            let this = "store::process_lock::tests::a_process_of_its_own";
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--ignored", "--nocapture", this])
                .env(DIRECTORY, directory)
                .stdin(lock)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().ends_with("ready")));
            Stuck(child)
        }

        /// How it has ended.
        pub fn end_signal(mut self) -> Option<i32> {
            self.0.wait().unwrap().signal()
        }

        /// Kills it, and returns as soon as the kill does.
        pub fn kill(&mut self) {
            self.0.kill().unwrap();
        }
    }

    impl Drop for Stuck {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    #[ignore = "other tests run it as a process of its own"]
    fn a_process_of_its_own() {
        let Some(directory) = std::env::var_os(DIRECTORY) else {
            return;
        };
        let _named = ProcessLock::take(directory.as_ref()).unwrap();
        let _socket = sockets::bind(directory.as_ref(), sockets::CONTROL).unwrap();
        io::stdout().write_all(b"\nready\n").unwrap();
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_process_is_found_and_ended_and_not_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ProcessHandle::find(dir.path()).unwrap().is_none());
        let stuck = Stuck::start(dir.path(), Stdio::null());
        let process = ProcessHandle::find(dir.path()).unwrap().unwrap();
        assert!(!process.wait(Duration::ZERO));
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait(Duration::from_secs(60)));
        assert_eq!(stuck.end_signal(), Some(libc::SIGKILL));
        // Its id is free now, and the descriptor means nobody else.
        process.signal(Signal::SIGKILL).unwrap();
        assert!(ProcessHandle::find(dir.path()).unwrap().is_none());
    }
}
