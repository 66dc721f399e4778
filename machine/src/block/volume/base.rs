//! The base of a root volume: the root partition of an image, never written.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::VolatileSlice;

use super::map::Map;
use crate::block::{sparse, vectored};

/// Largest chunk that can be verified: a guest's first read of a byte waits for the whole of its chunk.
pub const MAX_CHUNK: u64 = 16 << 20;

/// Says whether a chunk of the base, by its number, has the content that the image promises: reads it to its
/// end.
pub type Verify = Box<dyn Fn(u64, &mut dyn Read) -> io::Result<bool> + Send + Sync>;

/// A read-only range of a file. Beyond its end it reads as zeros.
pub struct Base {
    file: Arc<File>,
    offset: u64,
    len: u64,
    identity: [u8; 32],
    verifier: Option<Verifier>,
}

struct Verifier {
    chunk: u64,
    verify: Verify,
    /// Chunks that were found right. A chunk is read from the file again afterwards: what is cached is
    /// trusted.
    verified: Map,
    /// Held while a chunk is read, so that two who want it do not both. A leaf: nothing else is locked
    /// meanwhile.
    reading: Mutex<()>,
}

/// A range of a file, from front to back.
struct Chunk<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Chunk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Base {
    /// The range `[offset, offset + len)` of `file`. `identity` names its content, such as its
    /// digest: a volume remembers it, and opens over no other base.
    pub fn new(file: impl Into<Arc<File>>, offset: u64, len: u64, identity: [u8; 32]) -> Self {
        Base {
            file: file.into(),
            offset,
            len,
            identity,
            verifier: None,
        }
    }

    /// Has each chunk of `chunk` bytes (the last may be shorter) verified before its first byte is used.
    ///
    /// # Errors
    /// When `chunk` is 0 or larger than [`MAX_CHUNK`].
    pub fn verified_by(mut self, chunk: u64, verify: Verify) -> io::Result<Self> {
        if chunk == 0 || chunk > MAX_CHUNK {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("chunks of {chunk} bytes"),
            ));
        }
        let verified = Map::new(self.len.div_ceil(chunk));
        self.verifier = Some(Verifier {
            chunk,
            verify,
            verified,
            reading: Mutex::default(),
        });
        Ok(self)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Names the content.
    pub fn identity(&self) -> &[u8; 32] {
        &self.identity
    }

    pub(super) fn file(&self) -> (&File, u64) {
        (&self.file, self.offset)
    }

    /// Fills all of `buffers` from `offset` on.
    ///
    /// # Errors
    /// `InvalidData` when a chunk is not what the image promises; otherwise what the file system says.
    pub fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let wanted: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let there = self.len.saturating_sub(offset).min(wanted);
        self.verify(offset, there)?;
        if there == wanted {
            return vectored::read_exact_at(&self.file, self.offset + offset, buffers);
        }
        let mut segments = crate::block::split(buffers, there as usize);
        vectored::read_exact_at(&self.file, self.offset + offset, &segments.0)?;
        for buffer in segments.1.drain(..) {
            zero(&buffer);
        }
        Ok(())
    }

    fn verify(&self, offset: u64, len: u64) -> io::Result<()> {
        let Some(Verifier {
            chunk,
            verify,
            verified,
            reading,
        }) = &self.verifier
        else {
            return Ok(());
        };
        if len == 0 {
            return Ok(());
        }
        for number in offset / chunk..=(offset + len - 1) / chunk {
            if verified.contains(number) {
                continue;
            }
            let _held = reading.lock().unwrap_or_else(PoisonError::into_inner);
            if verified.contains(number) {
                continue; // by another thread meanwhile
            }
            let start = number * chunk;
            let mut content = Chunk {
                file: &self.file,
                at: self.offset + start,
                left: (self.len - start).min(*chunk),
            };
            if !verify(number, &mut content)? {
                let what = format!("chunk {number} (byte {start}) of the image's root partition is damaged");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            verified.insert(number..number + 1);
        }
        Ok(())
    }

    /// The first range at or after `from`, in bytes of the base, that is not a hole; it is cut at the base's
    /// end. `None` when only holes follow.
    pub fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        if from >= self.len {
            return Ok(None);
        }
        let found = sparse::next_data(&self.file, self.offset + from)?;
        Ok(found.and_then(|range| {
            let start = range.start - self.offset;
            (start < self.len).then(|| start..(range.end - self.offset).min(self.len))
        }))
    }
}

fn zero(buffer: &VolatileSlice<'_>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < buffer.len() {
        let part = (buffer.len() - done).min(ZEROS.len());
        if let Ok(rest) = buffer.subslice(done, part) {
            rest.copy_from(&ZEROS[..part]);
        }
        done += part;
    }
}
