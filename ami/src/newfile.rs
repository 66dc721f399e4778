//! A file that appears under its name only when it is complete.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};

use crate::Error;
use crate::error::CREATE;

/// A file being written beside its future place. Until [`NewFile::publish`] it has no name (where the file
/// system knows `O_TMPFILE`), so that however the program ends, nothing half-written is left.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// The temporary name, on file systems that need one; removed on drop.
    named: Option<tempfile::TempPath>,
    target: PathBuf,
}

impl NewFile {
    /// Start a file that will be `target`.
    pub fn create(target: &Path) -> Result<Self, Error> {
        // A rename at the end would fail.
        if target.is_dir() {
            let error = std::io::ErrorKind::IsADirectory.into();
            return Err(Error::io("write", target, error));
        }
        let dir = parent(target);
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o644)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(dir);
        match unnamed {
            Ok(file) => Ok(Self {
                file,
                named: None,
                target: target.into(),
            }),
            // EOPNOTSUPP (file system) or EISDIR (old kernel): fall back to a name.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR)) => {
                let (file, path) = tempfile::Builder::new()
                    .prefix(".kiln-")
                    .tempfile_in(dir)
                    .map_err(|e| Error::io(CREATE, dir, e))?
                    .into_parts();
                Ok(Self {
                    file,
                    named: Some(path),
                    target: target.into(),
                })
            }
            Err(e) => Err(Error::io(CREATE, dir, e)),
        }
    }

    /// The open file, to read and write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Give the file its name with mode 0644, in place of whatever has it.
    ///
    /// The data is not forced to disk: a reader of an image checks every byte that it uses, so a file torn by
    /// a power cut is refused rather than believed.
    pub fn publish(self) -> Result<(), Error> {
        let fail = |e| Error::io("write", &self.target, e);
        self.file
            .set_permissions(std::fs::Permissions::from_mode(0o644))
            .map_err(fail)?;
        match self.named {
            Some(path) => path
                .persist(&self.target)
                .map_err(|e| Error::io("write", &self.target, e.error)),
            None => link_over(&self.file, &self.target).map_err(|e| Error::io("write", &self.target, e)),
        }
    }
}

/// Name an unnamed file. A link cannot replace, so it gets a temporary name first, which the rename consumes.
fn link_over(file: &File, target: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let temporary = tempfile::Builder::new()
        .prefix(".kiln-")
        .make_in(parent(target), |path| {
            let flags = AtFlags::AT_SYMLINK_FOLLOW;
            nix::unistd::linkat(AT_FDCWD, source.as_str(), AT_FDCWD, path, flags).map_err(io::Error::from)
        })?;
    temporary.into_temp_path().persist(target).map_err(|e| e.error)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_unusable_destination_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for (target, words) in [
            (
                dir.path().join("gone/out"),
                ["No such file", "make that directory"],
            ),
            (dir.path().to_owned(), ["is a directory", "name a file"]),
        ] {
            let error = NewFile::create(&target).unwrap_err();
            let text = format!("{error}; {}", error.hint());
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn a_file_has_no_name_until_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::write(&target, "old").unwrap();
        let new = NewFile::create(&target).unwrap();
        new.file().write_all(b"new").unwrap();
        drop(new);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let new = NewFile::create(&target).unwrap();
        new.file().write_all(b"new").unwrap();
        new.publish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            std::fs::metadata(&target).unwrap().permissions().mode() & 0o777,
            0o644
        );
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = NewFile::create(Path::new("/no/such/dir/out")).unwrap_err();
        assert!(error.to_string().contains("/no/such/dir"), "{error}");
    }
}
