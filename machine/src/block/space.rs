//! Space on the host's file systems.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;

/// Whether the error says that a file system or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Bytes that this user may still write to the file system of `path`. A quota may leave fewer.
///
/// # Errors
/// As the file system says.
pub fn free(path: &Path) -> io::Result<u64> {
    // O_PATH needs no right to read the file, and `fstatfs` is on the lists of the threads that call this.
    let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    free_at(&file)
}

/// The same for an open file.
///
/// # Errors
/// As [`free`].
pub(crate) fn free_at(file: &impl AsFd) -> io::Result<u64> {
    let found = fstatvfs(file)?;
    Ok(found.blocks_available() as u64 * found.fragment_size() as u64)
}

/// `error`, and where it says that there is no space, how much is left for `path`, and what to try.
pub fn explain(path: &Path, error: &io::Error) -> String {
    format!("{error}{}", left(path, error))
}

/// What [`explain`] adds to the error.
pub fn left(path: &Path, error: &io::Error) -> String {
    if !is_full(error) {
        return String::new();
    }
    let free = free(path).map_or_else(|_| "unknown".into(), |bytes| format!("{bytes} bytes"));
    format!(" (free on its file system: {free}); try to delete what is not needed there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_distinguished_from_other_errors_and_explained() {
        let directory = tempfile::tempdir().unwrap();
        for code in [libc::ENOSPC, libc::EDQUOT] {
            let error = io::Error::from_raw_os_error(code);
            assert!(is_full(&error));
            let text = explain(directory.path(), &error);
            assert!(text.contains(" bytes)"), "{text}");
        }
        let other = io::Error::from_raw_os_error(libc::EIO);
        assert!(!is_full(&other));
        assert_eq!(explain(directory.path(), &other), other.to_string());
        assert!(free(Path::new("/nonexistent")).is_err());
    }
}
