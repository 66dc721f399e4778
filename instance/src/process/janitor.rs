//! A small process that removes an instance's directory when the instance process is done with it.
//!
//! The instance process is confined to the directory (`machine::sandbox`), so it cannot remove it: that is a
//! change of the directory above, where the other instances are. The janitor is made before, knows one
//! directory, takes one request and reads nothing from the instance process but that.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::{ForkResult, fork};

use crate::store::remove_directory;
use crate::{Error, Result};

/// The request.
const REMOVE: u8 = b'r';
/// Bytes of an answer that are read: a sentence.
const ANSWER_MAX: u64 = 1024;

/// The instance process's end.
#[derive(Debug)]
pub struct Janitor {
    socket: UnixStream,
}

impl Janitor {
    /// Starts the process for `directory`. The caller's process must have one thread only.
    pub fn start(directory: &Path) -> Result<Janitor> {
        let failed = Error::os("starting the process that removes the instance");
        let (socket, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return Err(failed(error)),
        };
        // SAFETY: this process has one thread, so the child finds every lock as if it had taken it itself.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => Ok(Janitor { socket }),
            Ok(ForkResult::Child) => {
                serve(&theirs, directory);
                // Neither destructors nor buffers: they are the instance process's.
                // SAFETY: takes a number only.
                unsafe { libc::_exit(0) }
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Has the directory removed, and returns when it is.
    pub fn remove(mut self) -> Result<()> {
        let mut answer = String::new();
        let asked = self.socket.write_all(&[REMOVE]).and_then(|()| {
            self.socket.shutdown(Shutdown::Write)?;
            self.socket.take(ANSWER_MAX).read_to_string(&mut answer)
        });
        match asked {
            Ok(_) if answer == "removed" => Ok(()),
            Ok(_) if answer.is_empty() => Err(Error::os("removing the instance")(
                io::ErrorKind::BrokenPipe.into(),
            )),
            Ok(_) => Err(Error::Removal(answer)),
            Err(error) => Err(Error::os("removing the instance")(error)),
        }
    }
}

/// In the new process: waits for the request, or for the instance process's end.
fn serve(mut socket: &UnixStream, directory: &Path) {
    if close_all_but(socket.as_raw_fd()).is_err() {
        return;
    }
    let mut request = [0];
    if !matches!(socket.read(&mut request), Ok(1)) || request != [REMOVE] {
        return;
    }
    let answer = match remove_directory(directory) {
        Ok(()) => "removed".to_owned(),
        Err(error) => error.to_string(),
    };
    let _ = socket.write_all(answer.as_bytes());
}

/// Closes all descriptors but one: the instance's lock and the instance process's streams must end with the
/// instance process.
fn close_all_but(kept: i32) -> io::Result<()> {
    let close = |first: u32, last: u32| {
        // SAFETY: takes numbers only. Nothing in this process uses the descriptors any more.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let kept = u32::try_from(kept).map_err(io::Error::other)?;
    if kept > 0 {
        close(0, kept - 1)?;
    }
    close(kept + 1, u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_closed_but_one() {
        // In a child, whose descriptors nobody needs.
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let done = close_all_but(1).is_ok();
                // SAFETY: as above.
                unsafe {
                    let open = [0, 1, 2].map(|fd| libc::fcntl(fd, libc::F_GETFD) >= 0);
                    libc::_exit(i32::from(!(done && open == [false, true, false])));
                }
            }
            ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }
}
