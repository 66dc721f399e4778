//! Shutdown: SIGTERM, then SIGKILL to all processes, then the file systems are synced and the machine stops.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

/// What the machine does in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Power off.
    Off,
    /// Start again.
    Reboot,
}

/// How long processes have to end by themselves.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Ends everything in order.
pub fn shut_down(end: End) -> ! {
    stop_processes();
    sync();
    for point in mount_points() {
        // Read-only is consistent, even where a file is still open for reading (our own program).
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, point.as_str(), None::<&str>, flags, None::<&str>);
    }
    sync();
    stop(match end {
        End::Off => RebootMode::RB_POWER_OFF,
        End::Reboot => RebootMode::RB_AUTOBOOT,
    })
}

/// Powers off where no other process runs yet.
pub fn off() -> ! {
    sync();
    stop(RebootMode::RB_POWER_OFF)
}

fn stop(mode: RebootMode) -> ! {
    // Succeeds by not returning. Should the machine refuse, PID 1 still must not end.
    let _ = reboot(mode);
    loop {
        std::thread::park();
    }
}

/// Asks all processes to end, waits, and ends what is left.
fn stop_processes() {
    let everyone = Pid::from_raw(-1);
    let _ = kill(everyone, Signal::SIGTERM);
    // Shells ignore the first and understand the second.
    let _ = kill(everyone, Signal::SIGHUP);
    let deadline = Instant::now() + TIMEOUT;
    let mut pause = Duration::from_millis(1);
    while others_left() && Instant::now() < deadline {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let _ = kill(everyone, Signal::SIGKILL);
    while others_left() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reaps what has ended and returns whether any child is left. Every process without a parent is PID 1's
/// child.
fn others_left() -> bool {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Mount points on disks, the innermost first.
fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let disks = mounts.lines().filter(|line| line.starts_with("/dev/"));
    let mut points: Vec<String> = disks
        .filter_map(|line| line.split(' ').nth(1))
        .map(|point| point.replace("\\040", " "))
        .collect();
    points.reverse();
    points
}

/// Lets signals through that PID 1 had blocked, for a child that handles them as usual.
pub fn restore_signals() {
    let _ = SigSet::empty().thread_set_mask();
}

/// Marks this process, which was forked from PID 1, as one that systemd leaves alone when it ends all others:
/// by an `@` at the beginning of its command line (systemd.io/ROOT_STORAGE_DAEMONS). So the host learns how
/// commands ended.
pub fn survive_systemd() {
    let status = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(address) = arguments_address(&status) {
        // SAFETY: the kernel says that this process's arguments begin there, in its own writable stack; the
        // program's name has at least one byte, and nobody reads it while this process has one thread.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(b'@') }
    }
}

/// `arg_start`, field 48 of `/proc/PID/stat` (proc_pid_stat(5)). The second field, in parentheses, may hold
/// spaces.
fn arguments_address(status: &str) -> Option<usize> {
    let (_, fields) = status.rsplit_once(") ")?;
    let address = fields.split(' ').nth(48 - 3)?.trim().parse().ok()?;
    (address != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_arguments_is_read_from_proc_stat() {
        let status = fs::read_to_string("/proc/self/stat").unwrap();
        let address = arguments_address(&status).unwrap();
        // SAFETY: the kernel says that the program's name is there; it has more than one byte.
        let first = unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
        let name = std::env::args_os().next().unwrap();
        assert_eq!(first, name.as_encoded_bytes()[0]);
        assert_eq!(arguments_address("1 (a) b) S 0"), None);
    }
}
