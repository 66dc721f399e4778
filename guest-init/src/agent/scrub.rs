//! Removing what belongs to one instance from the copy of its root file system that becomes an image: its
//! identity, logs and shell histories. Users, authorized keys and data are content of the image and stay.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{identity, secrets};

/// Folders whose content goes.
const EMPTIED: &[&str] = &[
    "tmp",
    "var/tmp",
    "var/lib/dhcp",
    "var/lib/cloud/data",
    "var/lib/cloud/instances",
    "var/lib/cloud/sem",
    "var/log/journal",
];

/// cloud-init's link to what it knows of the current instance. It does not replace one that leads nowhere.
const CLOUD_INSTANCE: &str = "var/lib/cloud/instance";

/// Where logs are: files keep their owner and mode for the program that writes them, and lose their content.
const LOGS: &str = "var/log";

/// Histories of interactive programs in home folders.
const HISTORIES: &[&str] = &[
    ".ash_history",
    ".bash_history",
    ".lesshst",
    ".python_history",
    ".sqlite_history",
    ".wget-hsts",
];

/// Removes everything from the file system mounted at `root`.
///
/// # Errors
/// When something that is there cannot be removed: the image would hold a secret.
pub fn scrub(root: &Path) -> io::Result<()> {
    identity::remove(root);
    secrets::remove(root)?;
    if root.join("etc").is_dir() {
        fs::write(root.join("etc/machine-id"), "")?;
    }
    for folder in EMPTIED {
        empty(&root.join(folder))?;
    }
    truncate_all(&root.join(LOGS))?;
    remove_if_there(&root.join(CLOUD_INSTANCE))?;
    for home in homes(root) {
        for history in HISTORIES {
            remove_if_there(&home.join(history))?;
        }
    }
    Ok(())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Root's home folder and those below `/home`.
fn homes(root: &Path) -> Vec<std::path::PathBuf> {
    let users = fs::read_dir(root.join("home"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    users.chain([root.join("root")]).collect()
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn truncate_all(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            truncate_all(&entry.path())?;
        } else if kind.is_file() {
            File::options().write(true).truncate(true).open(entry.path())?;
        }
    }
    Ok(())
}

/// What is in a folder; nothing where there is none, or a link to another place.
fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match folder.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::read_dir(folder)?.collect(),
        _ => Ok(Vec::new()),
    }
}

/// `struct fstrim_range` (linux/fs.h).
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    min_len: u64,
}

#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_readwrite!(fitrim, b'X', 121, super::Range);
}

/// Gives the blocks that the file system at `root` does not use back to the disk, so that the image does not
/// hold what is deleted.
///
/// # Errors
/// When the disk takes no discards.
#[allow(unsafe_code)]
pub fn trim(root: &Path) -> io::Result<()> {
    let folder = File::open(root)?;
    // What was freed is free once the journal is committed.
    nix::unistd::syncfs(&folder)?;
    let mut range = Range {
        start: 0,
        len: u64::MAX,
        min_len: 0,
    };
    // SAFETY: FITRIM reads and writes one fstrim_range, which lives until the call returns.
    unsafe { ioctl::fitrim(folder.as_raw_fd(), &mut range) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_the_instance_is_removed_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let gone = [
            "tmp/x/y",
            "var/tmp/z",
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "var/lib/kiln/instance-id",
            "var/lib/cloud/instances/i-1/sem",
            "var/log/journal/0/system.journal",
            "root/.bash_history",
            "home/ann/.python_history",
        ];
        let kept = [
            "etc/ssh/sshd_config",
            "home/ann/.ssh/authorized_keys",
            "srv/data",
            "usr/sbin/make-ssl-cert",
            "var/lib/mysql/ibdata1",
        ];
        let emptied = ["etc/machine-id", "var/log/nginx/access.log"];
        for path in gone.iter().chain(&kept).chain(&emptied) {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), "text").unwrap();
        }
        std::os::unix::fs::symlink(at("srv"), at("var/lib/dhcp")).unwrap();
        std::os::unix::fs::symlink(at("var/lib/cloud/instances/i-1"), at("var/lib/cloud/instance")).unwrap();
        scrub(dir.path()).unwrap();
        assert!(
            at("var/lib/cloud/instance").symlink_metadata().is_err(),
            "a link to nowhere"
        );
        for path in gone {
            assert!(!at(path).exists(), "{path}");
        }
        for path in kept {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), "text", "{path}");
        }
        for path in emptied {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), "", "{path}");
        }
        assert!(at("tmp").is_dir() && at("var/log/nginx").is_dir());
    }
}
