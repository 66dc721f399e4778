//! Holding the file systems still while the host copies their disks (FIFREEZE, linux/fs.h).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{fail, failed};
use crate::proto::message::FREEZE_MAX;
use crate::proto::{Error, Failure, Kind, Reason, read_frame, write_frame};

/// The frozen file systems and which freeze it was; thawing empties it. A leaf lock.
static FROZEN: Mutex<(u64, Vec<File>)> = Mutex::new((0, Vec::new()));

#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_readwrite!(freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(thaw, b'X', 120, libc::c_int);

    /// FIFREEZE.
    pub fn fifreeze(fd: i32) -> nix::Result<()> {
        // SAFETY: the ioctl ignores its argument; a pointer to a live integer satisfies any reading of it.
        unsafe { freeze(fd, &mut 0) }.map(drop)
    }

    /// FITHAW.
    pub fn fithaw(fd: i32) -> nix::Result<()> {
        // SAFETY: as above.
        unsafe { thaw(fd, &mut 0) }.map(drop)
    }
}

/// Freezes for as long as the host stays connected, and for `seconds` at most: a host that dies in the middle
/// of its copy must not leave the guest hanging.
pub fn serve(seconds: u32, connection: &mut File) -> Result<(), Error> {
    let generation = match freeze(seconds) {
        Ok(generation) => generation,
        Err(failure) => return fail(connection, &failure),
    };
    let answered = write_frame(connection, Kind::Done, b"");
    // Nothing more is expected: whatever comes, the host's end most likely, is the end.
    let _ = read_frame(connection);
    thaw_generation(generation);
    answered
}

/// Freezes every file system that has a disk, for `seconds` at most. Returns which freeze it is.
fn freeze(seconds: u32) -> Result<u64, Failure> {
    if seconds == 0 || seconds > FREEZE_MAX {
        let message = format!("a freeze takes 1 to {FREEZE_MAX} seconds, not {seconds}");
        return Err(Failure {
            reason: Reason::Other,
            message,
        });
    }
    let mut frozen = FROZEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !frozen.1.is_empty() {
        return Err(Failure {
            reason: Reason::Other,
            message: "the file systems are frozen already".to_owned(),
        });
    }
    // The innermost mount first: its own freezing writes to no other disk afterwards.
    for path in mounts_with_disks().iter().rev() {
        let result = File::open(path).and_then(|file| {
            ioctl::fifreeze(file.as_raw_fd())?;
            Ok(file)
        });
        match result {
            Ok(file) => frozen.1.push(file),
            Err(error) => {
                thaw_all(&mut frozen.1);
                return Err(failed(
                    format_args!("the file system at {path} could not be frozen"),
                    error,
                ));
            }
        }
    }
    frozen.0 += 1;
    let generation = frozen.0;
    drop(frozen);
    let watchdog = move || {
        thread::sleep(Duration::from_secs(seconds.into()));
        thaw_generation(generation);
    };
    match thread::Builder::new().spawn(watchdog) {
        Ok(_) => Ok(generation),
        Err(error) => {
            // Without a thread that ends it, the freeze could last forever.
            let _ = thaw();
            Err(failed("the freeze has no watchdog", error))
        }
    }
}

/// Thaws what is frozen. Nothing frozen is a failure: the watchdog was faster, so the copy may be
/// inconsistent.
pub fn thaw() -> Result<(), Failure> {
    let mut frozen = FROZEN.lock().unwrap_or_else(PoisonError::into_inner);
    if frozen.1.is_empty() {
        return Err(Failure {
            reason: Reason::Other,
            message: "nothing is frozen (any more)".to_owned(),
        });
    }
    thaw_all(&mut frozen.1);
    Ok(())
}

/// Thaws if it is still this freeze that holds.
fn thaw_generation(generation: u64) {
    let mut frozen = FROZEN.lock().unwrap_or_else(PoisonError::into_inner);
    if frozen.0 == generation {
        thaw_all(&mut frozen.1);
    }
}

fn thaw_all(frozen: &mut Vec<File>) {
    for file in frozen.drain(..).rev() {
        // A file system that is not frozen any more was thawed by another program.
        let _ = ioctl::fithaw(file.as_raw_fd());
    }
}

fn mounts_with_disks() -> Vec<String> {
    parse_mounts(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// Mount points of writable file systems on block devices, each device once.
fn parse_mounts(text: &str) -> Vec<String> {
    let mut devices = Vec::new();
    let mut points = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [device, point, _, options, ..] = fields[..] else {
            continue;
        };
        let writable = options.split(',').any(|option| option == "rw");
        if device.starts_with("/dev/") && writable && !devices.contains(&device) {
            devices.push(device);
            points.push(point.replace("\\040", " "));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_disks_are_frozen_and_each_once() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda / ext4 rw,relatime 0 0\n/dev/vda /mnt ext4 rw 0 0\n\
                      /dev/vdb /data\\040disk ext4 rw 0 0\n/dev/vdc /ro ext4 ro 0 0\n\
                      tmpfs /tmp tmpfs rw 0 0\n";
        assert_eq!(parse_mounts(mounts), ["/", "/data disk"]);
    }

    #[test]
    fn absurd_durations_are_refused() {
        assert!(freeze(0).is_err() && freeze(FREEZE_MAX + 1).is_err());
        assert!(thaw().is_err(), "nothing was frozen");
    }
}
