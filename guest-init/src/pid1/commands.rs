//! Installs `poweroff`, `reboot`, `halt` and `shutdown` in images that do not have them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::mounts::{self, MARK};
use crate::shutdown::NAMES;

/// This program in the running system, which has no other copy of it: its file is the initramfs's.
const PROGRAM: &str = "/run/guest-init/init";

/// Where programs are looked for (login(1), sudo's `secure_path`).
const PATHS: &[&str] = &[
    "usr/local/sbin",
    "usr/local/bin",
    "usr/sbin",
    "usr/bin",
    "sbin",
    "bin",
];

/// Where a command goes that the image does not have; the first folder that exists.
const PLACES: &[&str] = &["usr/sbin", "sbin"];

/// Makes the commands. A machine without them still ends when its host asks.
pub fn install() {
    let installed = expose().and_then(|()| link(Path::new("/")));
    if let Err(error) = installed {
        mounts::say(&format!("guest-init: there is no poweroff command: {error}"));
    }
}

/// Mounts this program's file where a path leads to it. It costs no memory: PID 1 and the agent run from the
/// same pages.
fn expose() -> io::Result<()> {
    fs::create_dir_all(MARK)?;
    fs::write(PROGRAM, "")?;
    let flags = MsFlags::MS_BIND;
    mount(Some("/proc/self/exe"), PROGRAM, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// Links each name to the program below `root`, unless the image has a program of this name anywhere: with
/// systemd-sysv or busybox, it stays what it is.
fn link(root: &Path) -> io::Result<()> {
    let present = |path: &Path| path.symlink_metadata().is_ok();
    for name in NAMES {
        if PATHS.iter().any(|folder| present(&root.join(folder).join(name))) {
            continue;
        }
        if let Some(folder) = PLACES
            .iter()
            .map(|place| root.join(place))
            .find(|place| place.is_dir())
        {
            symlink(PROGRAM, folder.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_the_image_stay_and_missing_ones_are_added() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["usr/sbin", "usr/bin"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        symlink("usr/sbin", root.path().join("sbin")).unwrap();
        // As systemd-sysv and busybox have them, there or not.
        symlink("../bin/systemctl", root.path().join("usr/sbin/poweroff")).unwrap();
        fs::write(root.path().join("usr/bin/halt"), "").unwrap();
        for _boot in 0..2 {
            link(root.path()).unwrap();
            let target = |name: &str| fs::read_link(root.path().join("sbin").join(name)).ok();
            assert_eq!(target("poweroff").unwrap(), Path::new("../bin/systemctl"));
            assert_eq!(target("halt"), None);
            assert_eq!(target("reboot").unwrap(), Path::new(PROGRAM));
            assert_eq!(target("shutdown").unwrap(), Path::new(PROGRAM));
        }
        // An image without any folder for them.
        link(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
