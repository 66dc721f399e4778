//! Mounts: those of the initramfs, the root file system, and the move to it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::{Error, os};
use crate::command_line::CommandLine;
use crate::config::Config;

/// A file system that the kernel makes.
struct Kernel {
    point: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NODEV);

/// Mounted first, in this order; they move to the root file system later.
const EARLY: &[Kernel] = &[
    Kernel {
        point: "/proc",
        kind: "proc",
        flags: SAFE,
        options: "",
    },
    Kernel {
        point: "/sys",
        kind: "sysfs",
        flags: SAFE,
        options: "",
    },
    Kernel {
        point: "/dev",
        kind: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        options: "mode=0755",
    },
];

/// Mounted in the root file system when PID 1 stays ours; an init of the image's own mounts them itself.
const LATE: &[Kernel] = &[
    Kernel {
        point: "/dev/pts",
        kind: "devpts",
        // Terminals are devices: programs that open one by its name, as apt does for its log, must be let.
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=0620,ptmxmode=0666",
    },
    Kernel {
        point: "/dev/shm",
        kind: "tmpfs",
        flags: SAFE,
        options: "mode=1777",
    },
    Kernel {
        point: "/run",
        kind: "tmpfs",
        flags: SAFE,
        options: "mode=0755",
    },
    Kernel {
        point: "/tmp",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
    },
    Kernel {
        point: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: SAFE,
        options: "",
    },
];

/// Marks guest-init as PID 1 for programs, as `/run/systemd/system` does for systemd.
pub const MARK: &str = "/run/guest-init";

/// Links that programs expect in `/dev`.
const DEV_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what everything else needs.
pub fn early() -> Result<(), Error> {
    EARLY.iter().try_for_each(|entry| {
        let mounted = attach(entry);
        // With CONFIG_DEVTMPFS_MOUNT the kernel may have been first.
        if mounted == Err(Errno::EBUSY) {
            Ok(())
        } else {
            mounted.map_err(os(format!("mounting {}", entry.point)))
        }
    })
}

/// Mounts the rest in the running system. What the kernel does not offer is left out.
pub fn late() {
    for entry in LATE {
        let _ = attach(entry);
    }
    for (target, link) in DEV_LINKS {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    let _ = fs::create_dir(MARK);
}

fn attach(entry: &Kernel) -> nix::Result<()> {
    let Kernel {
        point,
        kind,
        flags,
        options,
    } = entry;
    // A failure shows in the mount.
    let _ = fs::create_dir_all(point);
    mount(Some(*kind), *point, Some(*kind), *flags, Some(*options))
}

/// What the machine says.
pub fn command_line() -> CommandLine {
    CommandLine::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Mounts the root file system at `point`.
pub fn root(config: &Config, point: &str) -> Result<(), Error> {
    let Config {
        root_device: device,
        root_filesystem: filesystem,
        root_writable,
        ..
    } = config;
    fs::create_dir_all(point).map_err(os(format!("making {point}")))?;
    let mut flags = MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_RDONLY, !root_writable);
    let mounted = mount(
        Some(device.as_str()),
        point,
        Some(filesystem.as_str()),
        flags,
        None::<&str>,
    );
    mounted.map_err(|error| Error::Mount {
        device: device.clone(),
        filesystem: filesystem.clone(),
        source: error.into(),
    })
}

/// Makes `point` the root and frees the initramfs.
pub fn switch_root(point: &str) -> Result<(), Error> {
    let root = Path::new(point);
    for entry in EARLY {
        let target = root.join(entry.point.trim_start_matches('/'));
        // An image without the folder gets one if its root is writable; the mount fails otherwise.
        let _ = fs::create_dir_all(&target);
        mount(
            Some(entry.point),
            &target,
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .map_err(os(format!("moving {} to the root file system", entry.point)))?;
    }
    free_initramfs();
    chdir(root).map_err(os("entering the root file system"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(os("moving the root file system"))?;
    chroot(".").map_err(os("changing the root"))?;
    chdir("/").map_err(os("entering the root"))
}

/// The initramfs is RAM: what was in it (the modules, mostly) is given back. This program's file stays: its
/// pages are in use for as long as it runs, and the system's commands are links to it.
fn free_initramfs() {
    for path in ["/lib", "/etc"] {
        let _ = fs::remove_dir_all(path);
    }
}

/// Prints a line into the kernel's log, which reaches every console.
pub fn say(text: &str) {
    for line in text.lines() {
        let written = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/kmsg")
            .and_then(|mut log| log.write_all(format!("<2>{line}\n").as_bytes()));
        if written.is_err() {
            eprintln!("{line}");
        }
    }
}

/// Prints a line on the console, whatever the kernel's log level, and returns when it has left the machine.
pub fn print(line: &str) {
    let console = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/dev/console");
    if let Ok(mut console) = console
        && console.write_all(format!("{line}\n").as_bytes()).is_ok()
    {
        let _ = nix::sys::termios::tcdrain(&console);
    }
}
