//! The process's descriptors: those that it has inherited and must not hand on, and how many it may have.
#![allow(unsafe_code)]

use std::fs;
use std::io;

use super::launch::MAX_VOLUMES;
use machine::net::user::SOCKETS_CAP;
use machine::virtio::vsock::MAX_STREAMS;

/// Connections served at once; attached consoles and watchers stay connected. One more is answered with 503.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// Descriptors that the process of an instance may have. The soft limit is 1,024 almost everywhere, for
/// programs that call select(2); a busy guest may bring more sockets than that, and one that is refused would
/// be a connection lost.
const LIMIT: libc::rlim_t = 4096;
/// Of a volume: two files, a ring and a doorbell for each of eight queues, an interrupt.
const EACH_VOLUME: usize = 32;
/// A control connection has a stream of its own, and may have one to the guest.
const EACH_CONNECTION: usize = 2;
/// Processors, published ports, consoles, the log and what else there are few of.
const REST: usize = 1024;
const _: () = assert!(
    SOCKETS_CAP + MAX_STREAMS + MAX_VOLUMES * EACH_VOLUME + MAX_CONNECTIONS * EACH_CONNECTION + REST
        <= LIMIT as usize
);

/// Raises the limit of this process's descriptors to what an instance may need, or as far as it may. One call
/// where that is allowed: the hard limit becomes the same, which nothing here has to exceed.
pub fn raise_limit() {
    let both = libc::rlimit {
        rlim_cur: LIMIT,
        rlim_max: LIMIT,
    };
    // SAFETY: the kernel reads one structure, which lives until it returns.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &both) } == 0 {
        return;
    }
    let mut own = both;
    // SAFETY: the kernel writes one structure, and reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut own) == 0 {
            own.rlim_cur = own.rlim_max;
            // What cannot be raised stays: the guest runs all the same.
            libc::setrlimit(libc::RLIMIT_NOFILE, &own);
        }
    }
}

/// The first descriptor that is not a standard stream.
const FIRST: libc::c_uint = 3;

/// Marks all descriptors but the standard streams to be closed in programs that this process starts. Its own
/// are marked anyway; those that it has inherited without the mark, such as a shell's lock or pipe, would be
/// held open by an instance for as long as that runs.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_from_children() -> io::Result<()> {
    // SAFETY: takes numbers only, and closes nothing in this process.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked == 0 { Ok(()) } else { one_by_one() }
}

/// The same before Linux 5.11, which knows the flag first.
fn one_by_one() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if descriptor >= FIRST as libc::c_int {
            // SAFETY: takes numbers only. That of the directory itself is closed by now or soon, which is an
            // error of no interest.
            unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    /// As a shell leaves it to what it starts.
    fn inheritable() -> OwnedFd {
        let (end, _) = nix::unistd::pipe().unwrap();
        fcntl(&end, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        end
    }

    fn is_handed_on(descriptor: &OwnedFd) -> bool {
        let number = descriptor.as_raw_fd();
        let child = std::process::Command::new("test")
            .args(["-e", &format!("/proc/self/fd/{number}")])
            .status();
        child.unwrap().success()
    }

    #[test]
    fn inherited_descriptors_are_not_passed_to_children() {
        for mark in [keep_from_children, one_by_one] {
            let descriptor = inheritable();
            assert!(is_handed_on(&descriptor));
            mark().unwrap();
            assert!(!is_handed_on(&descriptor));
        }
    }
}
