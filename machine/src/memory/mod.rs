//! Guest RAM: regions of anonymous host memory at guest-physical addresses, and file parts placed into them.
#![allow(unsafe_code)]

mod backed;
mod part;
pub mod saved;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use backed::give_back;
pub use part::{Part, PartError, PartReader, Placement};
use vm_memory::mmap::MmapRegionError;
pub use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

/// Guest RAM as devices and the loader share it. One concrete type: nothing here is generic over memory.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// Size of a guest page in bytes, and the least that a host has.
pub const PAGE: u64 = 4096;

/// Why guest RAM could not be made.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// reserving {bytes} bytes of guest RAM failed: {source}; try a machine with less memory
    Reserve {
        /// Size of the region in bytes.
        bytes: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// the RAM regions overlap, are unsorted or empty
    Regions,
}

/// Bytes of a large page: what the page tables of x86-64, and of arm64 with pages of 4 KiB, map by one entry
/// of the second level.
const LARGE_PAGE: u64 = 2 << 20;
/// How often a place with a wanted alignment is tried: there may be holes of the same size, and another thread
/// may take the place first.
const ATTEMPTS: usize = 64;

/// Reserves RAM at the given (guest-physical address, length in bytes) pairs, sorted by address. The host
/// gives pages when they are first touched: transparent huge pages where it can, because one fault then
/// serves 2 MiB. Such a page can be one in the nested page tables too if it begins at the same place in the
/// host's addresses and in the guest's.
pub fn allocate(ranges: &[(u64, u64)]) -> Result<Memory, Error> {
    let regions = ranges
        .iter()
        .map(|&(start, bytes)| {
            let reserve = |source| Error::Reserve { bytes, source };
            let len = usize::try_from(bytes).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
            let mapping = map_aligned(start, len).map_err(|error| reserve(io::Error::other(error)))?;
            backed::forget(mapping.as_ptr(), len);
            advise_huge_pages(mapping.as_ptr(), len);
            GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(Error::Regions)
        })
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions)
        .map(Arc::new)
        .map_err(|_| Error::Regions)
}

/// The same, in a file that other processes map, too: the ranges lie in it one after the other.
pub fn allocate_in(file: &File, ranges: &[(u64, u64)]) -> Result<Memory, Error> {
    let mut end = 0;
    let regions = ranges
        .iter()
        .map(|&(start, bytes)| {
            let reserve = |source| Error::Reserve { bytes, source };
            let len = usize::try_from(bytes).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
            let offset = end;
            end += bytes;
            file.set_len(end).map_err(reserve)?;
            let file = FileOffset::new(file.try_clone().map_err(reserve)?, offset);
            let mapping =
                MmapRegion::from_file(file, len).map_err(|error| reserve(io::Error::other(error)))?;
            GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(Error::Regions)
        })
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions)
        .map(Arc::new)
        .map_err(|_| Error::Regions)
}

/// Maps `len` bytes at an address that is as far behind the beginning of a large page as `guest` is; anywhere
/// where the host does not let that be.
fn map_aligned(guest: u64, len: usize) -> Result<MmapRegion, MmapRegionError> {
    // Linux aligns what is whole large pages itself since 6.7. The mappings that are not aligned keep the
    // holes taken that the next one would be in otherwise.
    let mut refused = Vec::new();
    let mut mapping = MmapRegion::new(len)?;
    while len as u64 >= LARGE_PAGE
        && !(mapping.as_ptr() as u64)
            .wrapping_sub(guest)
            .is_multiple_of(LARGE_PAGE)
    {
        if refused.len() == ATTEMPTS {
            tracing::debug!("guest RAM is not aligned for large pages");
            break;
        }
        refused.push(mapping);
        let _frame = Frame::new(guest, len)?;
        mapping = MmapRegion::new(len)?;
    }
    Ok(mapping)
}

/// Address space that is taken around an aligned hole, in which the next mapping of the hole's size fits.
struct Frame {
    start: usize,
    hole: usize,
    hole_len: usize,
    len: usize,
}

impl Frame {
    fn new(guest: u64, hole_len: usize) -> Result<Frame, MmapRegionError> {
        let len = hole_len + 2 * LARGE_PAGE as usize;
        let flags = libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_PRIVATE;
        // SAFETY: a new mapping wherever the kernel has room.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(MmapRegionError::Mmap(io::Error::last_os_error()));
        }
        let start = start as usize;
        // At least a page is left on both sides.
        let first = start as u64 + PAGE.max(host_page());
        let hole = (first + guest.wrapping_sub(first) % LARGE_PAGE) as usize;
        let frame = Frame {
            start,
            hole,
            hole_len,
            len,
        };
        frame.unmap(hole, hole_len);
        Ok(frame)
    }

    /// Unmaps a part of it.
    fn unmap(&self, start: usize, len: usize) {
        // SAFETY: the range is of the mapping that `new` made, nobody has its address, and it is unmapped once.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let behind = self.hole + self.hole_len;
        self.unmap(self.start, self.hole - self.start);
        self.unmap(behind, self.start + self.len - behind);
    }
}

/// Best effort: without huge pages everything works, only slower.
fn advise_huge_pages(start: *mut u8, len: usize) {
    // SAFETY: the range is whole pages of a live anonymous mapping of ours, and advice about the size of its
    // pages does not change its content.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
}

/// Bytes of a page of the host, the granularity of a mapping: arm64 hosts may have pages of 16 or 64 KiB.
pub fn host_page() -> u64 {
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).unwrap_or(PAGE).max(PAGE)
}

/// Has the host give pages of `memory` one by one, whatever it does for other processes. For RAM that many
/// machines share until they write to it: where 2 MiB were free when a guest was saved, one byte that it writes
/// there could cost a huge page, and the time to clear it.
pub(crate) fn advise_small_pages(memory: &Memory) {
    for region in memory.iter() {
        // SAFETY: the range is exactly one live mapping of ours, and advice about the size of its pages does
        // not change its content.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
    }
}

/// End of the contiguous RAM that begins at guest-physical address 0, exclusive; 0 when there is none.
pub(crate) fn low_end(memory: &Memory) -> u64 {
    memory
        .iter()
        .next()
        .filter(|region| region.start_addr().0 == 0)
        .map_or(0, GuestMemoryRegion::len)
}

/// A part that is all of a temporary file with this content, and the file.
#[cfg(test)]
pub(crate) fn part_of(content: &[u8]) -> (tempfile::NamedTempFile, Part) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let part = Part::open(file.path()).unwrap();
    (file, part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_zero_and_holds_what_is_written() {
        let memory = allocate(&[(0, 2 << 20), (4 << 30, 1 << 20)]).unwrap();
        assert_eq!(low_end(&memory), 2 << 20);
        let last = GuestAddress((4 << 30) + (1 << 20) - 8);
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0);
        memory.write_obj(7u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 7);
        assert!(memory.write_obj(7u64, GuestAddress(2 << 20)).is_err());
    }

    /// Of Linux's own accord only RAM of whole large pages is, since 6.7.
    #[test]
    fn large_pages_begin_at_the_same_places_in_the_host_and_in_the_guest() {
        const MIB: u64 = 1 << 20;
        let sizes = [2, 3, 5, 127, 128, 255, 256, 301];
        let all: Vec<_> = sizes
            .iter()
            .map(|&mib| allocate(&[(0, mib * MIB), (4096 * MIB, (mib + 1) * MIB)]).unwrap())
            .collect();
        for region in all.iter().flat_map(|memory| memory.iter()) {
            let apart = (region.as_ptr() as u64).wrapping_sub(region.start_addr().0);
            assert_eq!(apart % LARGE_PAGE, 0, "{region:?}");
        }
    }

    #[test]
    fn memory_that_the_host_cannot_give_is_an_error() {
        let error = allocate(&[(0, 1 << 60)]).unwrap_err();
        assert!(matches!(error, Error::Reserve { .. }), "{error}");
        assert!(matches!(
            allocate(&[(4096, 4096), (0, 4096)]),
            Err(Error::Regions)
        ));
    }
}
