//! Holes in files: found where they are read, and left where zeros are written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

/// The unit of a tar archive. Data in front of more data is a multiple of it.
const UNIT: u64 = 512;
/// Segments kept of one file; behind the last one holes are read as zeros. A mebibyte of descriptions is
/// enough.
const SEGMENTS: usize = 64 * 1024;
/// What may become a hole: file systems have blocks of 4 KiB and more.
const BLOCK: usize = 4096;
/// Bytes read and written at a time.
const CHUNK: usize = 64 * 1024;

/// Bytes of a file that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// The stored segments of the first `size` bytes of `file`, in order. One for all where the file system does
/// not tell.
pub fn segments(file: &File, size: u64) -> Vec<Segment> {
    let whole = vec![Segment {
        offset: 0,
        length: size,
    }];
    let mut found: Vec<Segment> = Vec::new();
    let mut at = 0;
    while at < size {
        let begin = match seek(file, at, Whence::SeekData) {
            Ok(begin) => begin,
            // Nothing but a hole from here on, or the file has become shorter.
            Err(Errno::ENXIO) => break,
            Err(_) => return whole,
        };
        if begin >= size {
            break;
        }
        let end = match seek(file, begin, Whence::SeekHole) {
            Ok(end) if found.len() + 1 < SEGMENTS => end.clamp(begin + 1, size),
            Ok(_) => size,
            Err(_) => return whole,
        };
        at = end;
        let begin = begin / UNIT * UNIT;
        let end = end.next_multiple_of(UNIT).min(size);
        match found.last_mut() {
            Some(last) if begin <= last.offset + last.length => last.length = end - last.offset,
            _ => found.push(Segment {
                offset: begin,
                length: end - begin,
            }),
        }
    }
    found
}

fn seek(file: &File, offset: u64, whence: Whence) -> Result<u64, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    lseek64(file.as_fd(), offset, whence).map(|at| at.unsigned_abs())
}

/// Copies `from` to the empty file `to`; blocks of zeros become holes. Errors say on which side they were.
pub fn copy(from: &mut impl Read, to: &mut File) -> Result<(), CopyError> {
    let mut chunk = vec![0; CHUNK];
    let mut length = 0;
    loop {
        let filled = fill(from, &mut chunk).map_err(CopyError::Read)?;
        if filled == 0 {
            break;
        }
        for block in chunk[..filled].chunks(BLOCK) {
            let put = match block.iter().all(|&byte| byte == 0) {
                true => to.seek(SeekFrom::Current(block.len() as i64)).map(drop),
                false => to.write_all(block),
            };
            put.map_err(CopyError::Write)?;
        }
        length += filled as u64;
    }
    // A hole at the end is part of the file as well.
    to.set_len(length).map_err(CopyError::Write)
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum CopyError {
    /// The archive.
    Read(io::Error),
    /// The new file.
    Write(io::Error),
}

/// Fills `buffer` as far as there is something to read.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
