//! The page cache: dropping a file from it before a cold launch, and checking that it was dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Error, Result};

/// Share of a file that may stay in the page cache when a launch is called cold: read-ahead and another
/// reader of the file may hold a few pages.
const MAY_STAY: f64 = 0.02;

/// Takes `path` out of the page cache. Needs no privilege: pages that are clean and mapped by nobody go.
/// Fails when they do not, as on tmpfs, where the page cache is the file.
pub fn drop_file(path: &Path) -> Result<()> {
    let failed = |source| Error::File {
        what: "dropping from the page cache",
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Dirty pages stay; the data must be on the disk first.
    file.sync_data().map_err(failed)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(|e| failed(e.into()))?;
    let resident = resident_share(&file).map_err(failed)?;
    if resident > MAY_STAY {
        return Err(Error::Warm {
            path: path.into(),
            percent: (resident * 100.0).ceil() as u32,
        });
    }
    Ok(())
}

/// Brings `path` into the page cache by reading it.
pub fn read_file(path: &Path) -> Result<()> {
    let failed = |source| Error::File {
        what: "reading into the page cache",
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    io::copy(&mut file, &mut io::sink()).map_err(failed)?;
    Ok(())
}

/// The share of the file's pages that are in the page cache, 0 to 1.
#[allow(unsafe_code)]
fn resident_share(file: &File) -> io::Result<f64> {
    const PAGE: usize = 4096;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(0.0);
    }
    let mut pages = vec![0_u8; length.div_ceil(PAGE)];
    // SAFETY: a new private read-only mapping of an open file, which nobody reads through.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range was just mapped, and `pages` has a byte for each page of it.
    let asked = unsafe { libc::mincore(address, length, pages.as_mut_ptr()) };
    let failed = (asked != 0).then(io::Error::last_os_error);
    // SAFETY: the mapping is ours and nothing points into it.
    unsafe { libc::munmap(address, length) };
    match failed {
        Some(error) => Err(error),
        None => Ok(pages.iter().filter(|&&page| page & 1 == 1).count() as f64 / pages.len() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_read_is_resident() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![1_u8; 1 << 20]).unwrap();
        read_file(&path).unwrap();
        assert!(resident_share(&File::open(&path).unwrap()).unwrap() > 0.9);
        assert_eq!(resident_share(&File::open("/dev/null").unwrap()).unwrap(), 0.0);
    }

    #[test]
    fn a_file_is_dropped_or_the_failure_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![1_u8; 1 << 20]).unwrap();
        match drop_file(&path) {
            Ok(()) => assert!(resident_share(&File::open(&path).unwrap()).unwrap() <= MAY_STAY),
            // The temporary directory may be in memory.
            Err(error) => assert!(matches!(error, Error::Warm { .. }), "{error}"),
        }
    }
}
