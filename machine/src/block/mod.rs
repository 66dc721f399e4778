//! Disks: the backends of block devices.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

pub mod raw;
pub mod space;
mod sparse;
pub(crate) mod uring;
pub(crate) mod vectored;
pub mod volume;

/// The data of a disk. Addresses and lengths are in bytes; a caller has checked that they lie within
/// [`size`](Backend::size).
///
/// All methods may be called from several threads at once. Overlapping requests in flight together have no
/// order among them, as on any disk.
pub trait Backend: Send + Sync {
    /// Size of the disk in bytes.
    fn size(&self) -> u64;
    /// Fills all of `buffers` from `offset` on.
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Writes all of `buffers` from `offset` on. Durable only after [`flush`](Backend::flush).
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Returns when all writes that had returned before the call are durable.
    fn flush(&self) -> io::Result<()>;
    /// Says that the content of a range no longer matters. Advice: what is read afterwards is either what was
    /// there or zeros.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeros; with `unmap` the space may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// The file in which all of a range lies now as plain data, and where there: it can be read and written
    /// without us. The file stays open for as long as the backend is there.
    fn direct(&self, _offset: u64, _len: u64) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

/// Cuts `buffers` after `count` bytes.
fn split<'m>(
    buffers: &[VolatileSlice<'m>],
    mut count: usize,
) -> (Vec<VolatileSlice<'m>>, Vec<VolatileSlice<'m>>) {
    let (mut front, mut back) = (Vec::with_capacity(buffers.len()), Vec::new());
    for buffer in buffers {
        let here = count.min(buffer.len());
        count -= here;
        // Splitting fails only beyond the end, and `here` is not.
        if let Ok((first, second)) = buffer.split_at(here) {
            front.extend((!first.is_empty()).then_some(first));
            back.extend((!second.is_empty()).then_some(second));
        }
    }
    (front, back)
}
