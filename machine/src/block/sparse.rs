//! Holes of files: where they are, how to make them, how to write zeros without one.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Zeros are written from here, this many at a time: few system calls, little memory.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The first range of data at or after `from`, or `None` when only a hole is left.
///
/// # Errors
/// What `lseek` says; on a file system without holes all of the file is data.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = seek(file, from, libc::SEEK_DATA)? else {
        return Ok(None);
    };
    let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(start);
    Ok(Some(start..end))
}

/// `None` when there is nothing of that kind from `from` on (ENXIO).
fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    let from = libc::off64_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: lseek takes no pointer; the descriptor is open for as long as `file` is borrowed.
    let result = unsafe { libc::lseek64(file.as_raw_fd(), from, whence) };
    match u64::try_from(result) {
        Ok(offset) => Ok(Some(offset)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Makes `[offset, offset + len)` a hole, which reads as zeros. The file keeps its length.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
}

/// Writes zeros that are data, not a hole.
pub fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..part as usize], offset + done)?;
        done += part;
    }
    Ok(())
}

/// Whether the error says that the file system has no such operation.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, len) = (
        libc::off64_t::try_from(offset).map_err(invalid)?,
        libc::off64_t::try_from(len).map_err(invalid)?,
    );
    loop {
        // SAFETY: fallocate takes no pointer; the descriptor is open for as long as `file` is borrowed.
        if unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Shares the blocks of `source[offset..offset + len]` with the start of `target` (reflink): nothing is
/// copied until one of the two is written.
///
/// # Errors
/// Where the file systems cannot share, or the range is not a whole number of blocks.
pub fn clone_range(source: &File, offset: u64, len: u64, target: &File) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_raw_fd().into(),
        src_offset: offset,
        src_length: len,
        dest_offset: 0,
    };
    // SAFETY: the ioctl reads one file_clone_range, which lives until it returns; both descriptors are open.
    if unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &range) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kind of file system that `file` is on: the magic number of `statfs(2)`.
pub fn file_system(file: &File) -> io::Result<i64> {
    let mut found = MaybeUninit::<libc::statfs64>::zeroed();
    // SAFETY: fstatfs fills one statfs64, which lives until it returns; the descriptor is open.
    if unsafe { libc::fstatfs64(file.as_raw_fd(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed and then filled; every bit pattern is a valid statfs64.
    let found = unsafe { found.assume_init() };
    // The width of the field depends on the architecture and C library.
    #[allow(clippy::unnecessary_cast)]
    let kind = found.f_type as i64 & 0xffff_ffff;
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_and_made() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
        write_zeros(&file, 8192, 12288).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), Some(8192..20480));
        punch(&file, 12288, 4096).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), Some(8192..12288));
        assert_eq!(next_data(&file, 12288).unwrap(), Some(16384..20480));
        assert_eq!(next_data(&file, 20480).unwrap(), None);
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}
