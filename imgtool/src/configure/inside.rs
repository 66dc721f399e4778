//! Paths below a root whose links somebody else has made. They are followed as inside the root, where `/` is the
//! root itself: none leads to another place of this machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// Opens a file below `root` for writing, made if it is not there.
///
/// # Errors
/// `NOENT` or `NOTDIR` when its directory is not there.
pub fn create(root: &Path, path: &str) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = openat2(open(root)?, path, flags, mode, ResolveFlags::IN_ROOT)?;
    Ok(File::from(file))
}

/// Where the directory `name` of `root` is, made if it is not there: a path without links.
pub fn directory(root: &Path, name: &str) -> io::Result<PathBuf> {
    let root = open(root)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let find = || openat2(&root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let found = match find() {
        Err(Errno::NOENT) => {
            // A link that leads nowhere is in the way, and stays.
            mkdirat(&root, name, Mode::from_raw_mode(0o755))?;
            find()?
        }
        found => found?,
    };
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn open(root: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    /// A root, and a directory beside it that nothing may reach.
    fn root() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        let (root, outside) = (place.join("root"), place.join("outside"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(&outside).unwrap();
        (dir, root, outside)
    }

    #[test]
    fn no_file_is_made_outside_of_the_root() {
        let (_dir, root, outside) = root();
        symlink(&outside, root.join("etc/apt")).unwrap();
        assert_eq!(create(&root, "etc/apt/x").unwrap_err(), Errno::NOENT);
        symlink("../../outside/x", root.join("etc/x")).unwrap();
        assert_eq!(create(&root, "etc/x").unwrap_err(), Errno::NOENT);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        create(&root, "etc/y").unwrap().write_all(b"inside").unwrap();
        assert_eq!(fs::read(root.join("etc/y")).unwrap(), b"inside");
    }

    #[test]
    fn a_directory_is_found_where_the_roots_own_programs_find_it() {
        let (_dir, root, outside) = root();
        assert_eq!(directory(&root, "run").unwrap(), root.join("run"), "made");
        fs::create_dir_all(root.join("var/tmp")).unwrap();
        symlink("/var/tmp", root.join("tmp")).unwrap();
        assert_eq!(directory(&root, "tmp").unwrap(), root.join("var/tmp"));
        symlink("../../../../etc", root.join("dev")).unwrap();
        assert_eq!(directory(&root, "dev").unwrap(), root.join("etc"));
        symlink(&outside, root.join("proc")).unwrap();
        assert!(directory(&root, "proc").is_err(), "it leads nowhere");
    }
}
