//! Dropping capabilities, and `no_new_privs`.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;

use super::{Plan, Right};

/// A capability that a launch may need (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Files of others: kept when the user is root and a given file is not theirs to use without it.
    DacOverride = 1,
    /// Ports below 1024.
    NetBindService = 10,
    /// Tap devices that belong to another user.
    NetAdmin = 12,
}

impl Capability {
    fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// `struct __user_cap_header_struct` (linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, of which version 3 takes two: the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Drops all capabilities but those that `plan` needs, and every way to gain some.
pub(super) fn drop_all_but(plan: &Plan) -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let permitted = permitted()?;
    if permitted == 0 {
        return Ok(());
    }
    let wanted = plan.capabilities.iter().fold(0, |all, one| all | one.bit());
    // Fails where the kernel is older than ambient capabilities, and then there are none.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    set(permitted & wanted, permitted)?;
    let files = if all_can_be_used(plan) {
        0
    } else {
        Capability::DacOverride.bit()
    };
    let kept = permitted & (wanted | files);
    set(kept, kept)
}

/// Whether the files of `plan` can be used as things are.
fn all_can_be_used(plan: &Plan) -> bool {
    plan.files.iter().all(|(path, right)| {
        let write = matches!(right, Right::Write | Right::Device);
        let opened = OpenOptions::new().read(true).write(write).open(path);
        !opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    })
}

fn header() -> Header {
    Header {
        version: VERSION,
        pid: 0,
    }
}

fn permitted() -> io::Result<u64> {
    let (mut header, mut data) = (header(), [Data::default(); 2]);
    // SAFETY: the kernel reads the header and writes two data structures, all of which live until it returns.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

fn set(effective: u64, permitted: u64) -> io::Result<()> {
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    };
    let (mut header, data) = (header(), [half(0), half(32)]);
    // SAFETY: the kernel reads the header and two data structures, all of which live until it returns.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
