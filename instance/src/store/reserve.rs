//! Room kept back for the record, on a file system that the guest's writes may fill.
//!
//! An instance's volumes and its record are on the same file system. When the guest has filled it, a stop
//! could not be recorded, and the instance could not be stopped. So each running instance keeps a file of
//! zeros next to its record: a writer that finds no space deletes it, writes, and creates it again when there
//! is space.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use machine::block::space::is_full;

/// Bytes: some ten records of ordinary size, with what file systems need beside them.
const SIZE: usize = 64 << 10;
/// Its name in the state directory.
const RESERVE: &str = "ballast";

/// Runs `write` in `directory`, and once more without the reserve when there is no room for it.
pub fn with_room<T>(directory: &Path, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let written = match write() {
        Err(error) if is_full(&error) && fs::remove_file(directory.join(RESERVE)).is_ok() => write(),
        written => written,
    };
    if written.is_ok() {
        lay(directory);
    }
    written
}

/// Lays the reserve if it is not there. Where there is no room for it, the next write tries again.
fn lay(directory: &Path) {
    let path = directory.join(RESERVE);
    let Ok(mut file) = File::create_new(&path) else {
        return;
    };
    if let Err(error) = file.write_all(&vec![0; SIZE]) {
        tracing::debug!(%error, "no room is kept for the record");
        let _ = fs::remove_file(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> io::Error {
        io::Error::from(io::ErrorKind::StorageFull)
    }

    #[test]
    fn a_full_file_system_gives_the_reserve_up_and_gets_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = directory.path().join(RESERVE);
        with_room(directory.path(), || Ok(())).unwrap();
        assert_eq!(fs::metadata(&reserve).unwrap().len(), SIZE as u64);
        let mut tries = 0;
        let written = with_room(directory.path(), || {
            tries += 1;
            if reserve.exists() { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(written.unwrap(), 2);
        assert!(reserve.exists());
    }

    #[test]
    fn without_a_reserve_and_for_other_errors_the_write_fails() {
        let directory = tempfile::tempdir().unwrap();
        let mut tries = 0;
        let mut fail = |error: fn() -> io::Error| {
            with_room(directory.path(), || {
                tries += 1;
                Err::<(), _>(error())
            })
        };
        assert!(fail(full).is_err());
        lay(directory.path());
        assert!(fail(|| io::ErrorKind::PermissionDenied.into()).is_err());
        assert_eq!(tries, 2);
        assert!(directory.path().join(RESERVE).exists());
    }
}
