//! A disk that is a plain file or a part of one: additional volumes, and images that need no base.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use vm_memory::VolatileSlice;

use super::{Backend, sparse, vectored};

/// A plain file, or a part of one, as a disk.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    /// Where the disk begins in the file.
    start: u64,
    size: u64,
}

impl RawFile {
    /// Opens the disk at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        Self::new(OpenOptions::new().read(true).write(!read_only).open(path)?)
    }

    /// A disk over an open file; its size is the file's now.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(RawFile { file, start: 0, size })
    }

    /// A disk over the `size` bytes of an open file from `start` on.
    pub fn part(file: File, start: u64, size: u64) -> Self {
        RawFile { file, start, size }
    }
}

impl Backend for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        vectored::read_exact_at(&self.file, self.start + offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        vectored::write_all_at(&self.file, self.start + offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match sparse::punch(&self.file, self.start + offset, len) {
            // A discard is advice.
            Err(error) if sparse::is_unsupported(&error) => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            match sparse::punch(&self.file, self.start + offset, len) {
                Err(error) if sparse::is_unsupported(&error) => {}
                done => return done,
            }
        }
        sparse::write_zeros(&self.file, self.start + offset, len)
    }
    fn direct(&self, offset: u64, _len: u64) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), self.start + offset))
    }
}
