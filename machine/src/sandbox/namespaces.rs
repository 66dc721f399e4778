//! A network of its own for a process whose guest has none (network_namespaces(7)): its only interface is a
//! loopback that is down, so that no socket leads anywhere. Landlock closes TCP, but has no rules for UDP.
//!
//! Other kinds of namespaces are not used, because they would add no protection: Landlock restricts files,
//! `mount` and System V IPC are on no list of system calls, a process that may neither signal nor trace
//! cannot use a process id, and a PID namespace would need one more process for each instance.
#![allow(unsafe_code)]

use std::{fs, io};

/// What the kernel offers to who we are. Changes nothing.
pub fn offered() -> Result<String, String> {
    // SAFETY: the child makes system calls only, none of which waits for a lock of this process, and ends.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(missing(&io::Error::last_os_error())),
        0 => {
            let status = unshare().map_or_else(|error| error.raw_os_error().unwrap_or(255), |_| 0);
            // SAFETY: takes a number only.
            unsafe { libc::_exit(status) }
        }
        child => child,
    };
    let mut status = 0;
    // SAFETY: the kernel writes the status, which lives until it returns.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(missing(&io::Error::last_os_error()));
    }
    match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
        Some(0) => Ok("instances without a network have no way to the host's (namespaces)".into()),
        Some(error) => Err(missing(&io::Error::from_raw_os_error(error))),
        // Some filters of system calls kill who makes the wrong one.
        None => Err(missing(&io::Error::other("who asked for one was killed"))),
    }
}

/// Leaves the host's network; there is no way back. The calling thread must be the only one.
pub(super) fn leave_network() -> Result<(), String> {
    let ids = Ids::own();
    let taken = unshare().and_then(|way| match way {
        Way::Privileged => Ok(()),
        Way::OwnUsers => ids.keep(),
    });
    taken.map_err(|error| missing(&error))
}

fn missing(error: &io::Error) -> String {
    format!(
        "no network namespace ({error}; without root it takes user namespaces, which \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns or \
         user.max_user_namespaces may forbid)"
    )
}

/// How a namespace was come by.
enum Way {
    /// By a capability.
    Privileged,
    /// In a namespace of users, in which the caller has no number yet.
    OwnUsers,
}

fn unshare() -> io::Result<Way> {
    let unshare = |flags| {
        // SAFETY: takes a number only; no memory or descriptor is unshared.
        match unsafe { libc::unshare(flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match unshare(libc::CLONE_NEWNET) {
        Ok(()) => Ok(Way::Privileged),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET).map(|()| Way::OwnUsers)
        }
        Err(error) => Err(error),
    }
}

/// Numbers of a user and a group.
struct Ids {
    user: u32,
    group: u32,
}

impl Ids {
    fn own() -> Ids {
        // SAFETY: neither takes anything or can fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        Ids { user, group }
    }

    /// Has the same numbers in the new namespace, and no others (user_namespaces(7), "Defining user and group
    /// ID mappings").
    fn keep(&self) -> io::Result<()> {
        let Ids { user, group } = self;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
    }
}
