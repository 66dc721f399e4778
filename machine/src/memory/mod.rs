//! Guest RAM: regions of anonymous host memory at guest-physical addresses, and file parts placed into them.
#![allow(unsafe_code)]

mod part;
pub mod saved;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use part::{Part, PartError, PartReader, Placement};
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

/// Reserves RAM at the given (guest-physical address, length in bytes) pairs, sorted by address. The host
/// gives pages when they are first touched: transparent huge pages where it can, because one fault then
/// serves 2 MiB.
pub fn allocate(ranges: &[(u64, u64)]) -> Result<Memory, Error> {
    let regions = ranges
        .iter()
        .map(|&(start, bytes)| {
            let reserve = |source| Error::Reserve { bytes, source };
            let len = usize::try_from(bytes).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
            let mapping = MmapRegion::new(len).map_err(|error| reserve(io::Error::other(error)))?;
            advise_huge_pages(&mapping);
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

/// Best effort: without huge pages everything works, only slower.
fn advise_huge_pages(mapping: &MmapRegion) {
    // SAFETY: the range is exactly one live anonymous mapping of ours, and the advice does not change its
    // content.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
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
