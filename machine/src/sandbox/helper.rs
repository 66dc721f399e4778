//! A small process that carries out one operation which the confined process may not do. It is started before
//! the confinement and takes requests through a socket.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Starts a process that runs `serve` with its end of a socket and ends; returns the other end. The caller's
/// process must have one thread only. Of its descriptors the new process has the socket alone: locks and
/// streams end with the caller's.
///
/// # Errors
/// When there is no socket or no process to be had.
pub fn start_helper(serve: impl FnOnce(UnixStream)) -> io::Result<UnixStream> {
    let (socket, theirs) = UnixStream::pair()?;
    // SAFETY: this process has one thread, so the child finds every lock as if it had taken it itself.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if close_all_but(theirs.as_raw_fd()).is_ok() {
                serve(theirs);
            }
            // Neither destructors nor buffers: they are the other process's.
            // SAFETY: takes a number only.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(socket),
    }
}

/// Closes all descriptors but one.
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
        // In a child, whose descriptors are not needed.
        // SAFETY: the child makes system calls only.
        match unsafe { libc::fork() } {
            0 => {
                let done = close_all_but(1).is_ok();
                // SAFETY: as above.
                unsafe {
                    let open = [0, 1, 2].map(|fd| libc::fcntl(fd, libc::F_GETFD) >= 0);
                    libc::_exit(i32::from(!(done && open == [false, true, false])));
                }
            }
            child => {
                assert!(child > 0, "{}", io::Error::last_os_error());
                let mut status = -1;
                // SAFETY: the kernel writes one number, which lives until it returns.
                let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
                assert_eq!((ended, status), (child, 0));
            }
        }
    }
}
