//! The root volume: a private, sparse file over the read-only root partition of an image.
//!
//! A block of 4 KiB is wholly in the volume file or wholly in the base. *The volume file's own holes are the
//! map*: what is data there is the volume's, what is a hole is still the base's. So there is no second
//! structure that a crash could leave out of step, and the map is rebuilt from `SEEK_DATA` when a volume is
//! opened. Four rules follow:
//!
//! - A write of part of a block first copies the block up from the base.
//! - Zeros over the base are written as data: neither a hole nor an unwritten extent may stand for them.
//! - A block may become a hole (discard, or write-zeroes with unmap) only where the base reads as zeros:
//!   where the base has a hole, beyond the base, or when the volume stands alone. Elsewhere a discard does
//!   nothing, since a hole would expose the base's old content.
//! - New blocks get their data before the file system says that they are data. ext4 (data=ordered), XFS,
//!   Btrfs and F2FS keep this order, so a crash loses unflushed writes only, block by block.
//!
//! The file of a volume that needs its base ends in a tail of one block, which names the base. Hydration
//! copies what is still missing and then cuts the tail off: a file without tail stands alone and is a plain
//! disk image. Volumes are whole mebibytes, so the length alone distinguishes the two.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::VolatileSlice;

use super::{Backend, sparse, split, vectored};

mod base;
mod files;
mod hydrate;
mod map;
#[cfg(test)]
mod model;

pub use base::{Base, MAX_CHUNK, Verify};
pub use files::Error;
pub use hydrate::Hydration;
use map::Map;

/// Bytes that are copied, mapped and discarded as one: what host file systems allocate.
pub const BLOCK: u64 = 4096;
/// A volume's size is a multiple of this.
pub const SIZE_UNIT: u64 = 1 << 20;

/// An open root volume.
pub struct Volume {
    file: File,
    size: u64,
    /// `None` when the volume stood alone already when it was opened.
    lazy: Option<Lazy>,
    /// Set once, when everything was copied.
    standalone: AtomicBool,
}

/// What a volume has besides its file as long as it needs its base.
struct Lazy {
    base: Base,
    /// Blocks under the base that are in the volume file.
    present: Map,
    /// Held while blocks go from the base to the file or back, so that hydration never overwrites newer data.
    /// A leaf: nothing else is locked meanwhile. Requests on blocks that are all present take no lock.
    transition: Mutex<()>,
    /// Whether a write that could not be taken back was logged: a guest could have it logged as often as it
    /// writes.
    logged: AtomicBool,
}

impl Lazy {
    fn new(base: Base, present: Map) -> Lazy {
        Lazy {
            base,
            present,
            transition: Mutex::new(()),
            logged: AtomicBool::new(false),
        }
    }

    /// Blocks that the base covers, in whole or in part.
    fn blocks(&self) -> u64 {
        self.base.len().div_ceil(BLOCK)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        // The lock guards no data of its own, so a panic elsewhere leaves nothing torn.
        self.transition
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `[offset, offset + len)` in blocks, as far as the base reaches.
    fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        let end = (offset + len).div_ceil(BLOCK).min(self.blocks());
        (offset / BLOCK).min(end)..end
    }
}

impl Volume {
    /// Whether the volume needs no base any more.
    pub fn stands_alone(&self) -> bool {
        self.standalone.load(Ordering::Acquire)
    }

    fn lazy(&self) -> Option<&Lazy> {
        self.lazy.as_ref().filter(|_| !self.stands_alone())
    }

    /// Copies `block` from the base into the file. The caller holds the transition lock.
    fn copy_up(&self, lazy: &Lazy, block: u64) -> io::Result<()> {
        let mut data = [0; BLOCK as usize];
        let slice = [VolatileSlice::from(&mut data[..])];
        lazy.base.read_at(block * BLOCK, &slice)?;
        self.store(lazy, block * BLOCK, &slice, block..block + 1)
    }

    /// Writes `buffers`, which cover `blocks` as far as the base reaches, and marks those as present. The
    /// caller holds the transition lock.
    fn store(
        &self,
        lazy: &Lazy,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        blocks: Range<u64>,
    ) -> io::Result<()> {
        let Err(error) = vectored::write_all_at(&self.file, offset, buffers) else {
            lazy.present.insert(blocks);
            return Ok(());
        };
        // A full disk may have let a part through. It must not pass for the volume's data when the map is
        // rebuilt.
        for block in blocks.filter(|&block| !lazy.present.contains(block)) {
            if let Err(error) = sparse::punch(&self.file, block * BLOCK, BLOCK)
                && !lazy.logged.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(block, "a failed write could not be taken back: {error}");
            }
        }
        Err(error)
    }

    /// Writes where some of `blocks` are still in the base.
    fn write_up(
        &self,
        lazy: &Lazy,
        offset: u64,
        len: u64,
        buffers: &[VolatileSlice<'_>],
        blocks: Range<u64>,
    ) -> io::Result<()> {
        let _held = lazy.lock();
        let end = offset + len;
        for (edge, partial) in [(blocks.start, offset), (blocks.end - 1, end)] {
            let inside = edge * BLOCK < partial && partial < (edge + 1) * BLOCK;
            if inside && !lazy.present.contains(edge) {
                self.copy_up(lazy, edge)?;
            }
        }
        self.store(lazy, offset, buffers, blocks)
    }

    /// Makes the whole blocks of a range holes wherever that reads as zeros, and calls `elsewhere` with the
    /// rest.
    fn unmap(
        &self,
        offset: u64,
        len: u64,
        mut elsewhere: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(BLOCK) * BLOCK, end / BLOCK * BLOCK);
        if first >= last {
            return elsewhere(offset, len);
        }
        elsewhere(offset, first - offset)?;
        let mut at = first;
        while at < last {
            let (until, reads_as_zeros) = self.under(at, last)?;
            if reads_as_zeros {
                self.make_hole(at, until)?;
            } else {
                elsewhere(at, until - at)?;
            }
            at = until;
        }
        elsewhere(last, end - last)
    }

    /// How far from `at` on, a block's start, the volume has the same thing under it, and whether that reads
    /// as zeros.
    fn under(&self, at: u64, end: u64) -> io::Result<(u64, bool)> {
        let Some(lazy) = self.lazy() else {
            return Ok((end, true));
        };
        Ok(match lazy.base.next_data(at)? {
            None => (end, true),
            // A block that has any data in the base is not a hole.
            Some(data) if data.start / BLOCK * BLOCK > at => ((data.start / BLOCK * BLOCK).min(end), true),
            Some(data) => (data.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(end), false),
        })
    }

    fn make_hole(&self, start: u64, end: u64) -> io::Result<()> {
        match self.lazy() {
            None => sparse::punch(&self.file, start, end - start),
            Some(lazy) => {
                let _held = lazy.lock();
                sparse::punch(&self.file, start, end - start)?;
                lazy.present.remove(lazy.touched(start, end - start));
                Ok(())
            }
        }
    }

    /// Writes zeros as data.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const PIECE: u64 = 256 << 10;
        let mut zeros = vec![0; len.min(PIECE) as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(PIECE);
            self.write_at(offset + done, &[VolatileSlice::from(&mut zeros[..part as usize])])?;
            done += part;
        }
        Ok(())
    }
}

impl Backend for Volume {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let Some(lazy) = self.lazy() else {
            return vectored::read_exact_at(&self.file, offset, buffers);
        };
        let end = offset + total(buffers);
        let mut at = offset;
        let mut rest = buffers;
        let mut kept;
        while at < end {
            let block = at / BLOCK;
            let (until, in_file) = if block >= lazy.blocks() {
                (end, true)
            } else {
                let run = lazy
                    .present
                    .run_end(block, end.div_ceil(BLOCK).min(lazy.blocks()));
                ((run * BLOCK).min(end), lazy.present.contains(block))
            };
            let (front, back) = if until == end {
                (rest.to_vec(), Vec::new())
            } else {
                split(rest, (until - at) as usize)
            };
            if in_file {
                vectored::read_exact_at(&self.file, at, &front)?;
            } else {
                lazy.base.read_at(at, &front)?;
            }
            kept = back;
            rest = &kept;
            at = until;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = total(buffers);
        if let Some(lazy) = self.lazy()
            && let blocks = lazy.touched(offset, len)
            && !lazy.present.contains_all(blocks.clone())
        {
            return self.write_up(lazy, offset, len, buffers, blocks);
        }
        vectored::write_all_at(&self.file, offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.unmap(offset, len, |_, _| Ok(())) {
            // A discard is advice.
            Err(error) if sparse::is_unsupported(&error) => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            match self.unmap(offset, len, |offset, len| self.write_zeros(offset, len)) {
                Err(error) if sparse::is_unsupported(&error) => {}
                done => return done,
            }
        }
        self.write_zeros(offset, len)
    }

    fn direct(&self, offset: u64, len: u64) -> Option<(BorrowedFd<'_>, u64)> {
        let present = |lazy: &Lazy| lazy.present.contains_all(lazy.touched(offset, len));
        self.lazy()
            .is_none_or(present)
            .then(|| (self.file.as_fd(), offset))
    }
}

fn total(buffers: &[VolatileSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}
