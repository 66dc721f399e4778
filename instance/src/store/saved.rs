//! A guest that was saved into the state directory of its instance: its memory, and the state of its machine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What a guest was saved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To become part of an image; removed when it has.
    Image,
    /// To go on from at the next start; removed when it does.
    Hibernation,
}

/// The files of a saved guest. That of the state is there once both are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFiles {
    /// RAM; zero pages are holes.
    pub memory: PathBuf,
    /// The state of processors and devices.
    pub state: PathBuf,
}

impl SavedFiles {
    /// Where they are in `directory`.
    pub fn new(directory: &Path, purpose: Purpose) -> SavedFiles {
        let name = match purpose {
            Purpose::Image => "snapshot",
            Purpose::Hibernation => "hibernated",
        };
        let file = |extension| directory.join(name).with_extension(extension);
        SavedFiles {
            memory: file("memory"),
            state: file("state"),
        }
    }

    /// Whether a guest was saved.
    pub fn exist(&self) -> bool {
        self.state.is_file()
    }

    /// Writes them: `save` writes the memory to a file that is empty, and returns the state.
    ///
    /// # Errors
    /// When the guest cannot be saved. Nothing is left then.
    pub fn write(&self, save: impl FnOnce(&File) -> Result<Vec<u8>>) -> Result<()> {
        self.remove()?;
        let written = self.create(save);
        if written.is_err() {
            let _ = self.remove();
        }
        written
    }

    fn create(&self, save: impl FnOnce(&File) -> Result<Vec<u8>>) -> Result<()> {
        let memory = private(&self.memory).map_err(Error::file("creating", &self.memory))?;
        let state = save(&memory)?;
        let draft = self.draft();
        private(&draft)
            .and_then(|mut file| io::Write::write_all(&mut file, &state))
            .and_then(|()| fs::rename(&draft, &self.state))
            .map_err(Error::file("writing", &self.state))
    }

    /// Removes them, the state first.
    ///
    /// # Errors
    /// When one that is there cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for path in [&self.state, &self.draft(), &self.memory] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("removing", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The state while it is written.
    fn draft(&self) -> PathBuf {
        self.state.with_extension("state.new")
    }
}

/// A new file for its owner alone: memory holds secrets.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn both_are_there_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let files = SavedFiles::new(dir.path(), Purpose::Hibernation);
        let count = || fs::read_dir(dir.path()).unwrap().count();
        assert!(!files.exist());
        files.remove().unwrap();
        let refused = files.write(|memory| {
            let mut memory = memory;
            memory.write_all(b"RAM").unwrap();
            assert!(!files.exist());
            Err(Error::NoRoot("x".into()))
        });
        assert!(refused.is_err());
        assert_eq!(count(), 0);
        for state in [b"first".as_slice(), b"second"] {
            files
                .write(|memory| {
                    let mut memory = memory;
                    memory.write_all(b"RAM").unwrap();
                    Ok(state.to_vec())
                })
                .unwrap();
            assert_eq!(fs::read(&files.state).unwrap(), state);
            assert_eq!(fs::read(&files.memory).unwrap(), b"RAM");
        }
        let mode = fs::metadata(&files.memory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(files, SavedFiles::new(dir.path(), Purpose::Image));
        assert!(files.exist());
        files.remove().unwrap();
        assert_eq!(count(), 0);
    }
}
