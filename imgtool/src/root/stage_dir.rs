//! Directories of builds under way: each is locked by its build, and one that no build has locked is what a
//! killed build has left.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::TempDir;

/// How their names begin.
const PREFIX: &str = "stage-";

/// A directory for one stage, removed when it is dropped.
#[derive(Debug)]
pub struct StageDir {
    dir: TempDir,
    /// Holds the lock. Closed after the directory is gone.
    _locked: File,
}

impl StageDir {
    /// Makes one in `scratch`, and removes what killed builds have left there.
    ///
    /// # Errors
    /// When none is available.
    pub fn new(scratch: &Path) -> io::Result<StageDir> {
        sweep(scratch);
        loop {
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(scratch)?;
            let locked = File::open(dir.path())?;
            locked.lock()?;
            // Another build may have found it before it was locked.
            if dir.path().exists() {
                return Ok(StageDir { dir, _locked: locked });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes the directories that nobody has locked. What cannot be removed, because a build without root left
/// files of other users in it, stays.
fn sweep(scratch: &Path) {
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        let Ok(file) = File::open(entry.path()).and_then(|file| match ours && file.metadata()?.is_dir() {
            true => Ok(file),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }) else {
            continue;
        };
        if file.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_builds_left_is_removed_and_what_is_in_use_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let killed = scratch.path().join("stage-killed");
        fs::create_dir_all(killed.join("root/etc")).unwrap();
        fs::write(killed.join("output.tar"), "half").unwrap();
        for other in ["stage-file", "other"] {
            fs::write(scratch.path().join(other), "kept").unwrap();
        }
        let first = StageDir::new(scratch.path()).unwrap();
        assert!(!killed.exists());
        let second = StageDir::new(scratch.path()).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().is_dir());
        assert!(scratch.path().join("stage-file").exists() && scratch.path().join("other").exists());
    }
}
