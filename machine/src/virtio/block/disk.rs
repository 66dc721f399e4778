//! The backend of a disk, and what each kind of request does with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_blk as blk;

use super::request::{HEADER, Request, RequestError};
use super::{MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, SECTOR, SEG_MAX, SIZE_MAX};
use crate::block::Backend;
use crate::block::space::is_full;
use crate::virtio::ring::{Chain, Segments};

/// Errors of a disk's backend that are logged: a guest could have them logged as often as it asks.
const LOGGED_ERRORS: u32 = 5;

/// What is behind the requests.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) id: [u8; blk::VIRTIO_BLK_ID_BYTES as usize],
    pub(super) faults: Arc<Faults>,
}

/// What has gone wrong with a disk's backend.
#[derive(Default)]
pub(super) struct Faults {
    /// Errors logged so far.
    logged: AtomicU32,
    /// A flush has failed. What it was to make durable may be gone, and no later flush may say otherwise: the
    /// kernel reports such an error once (fsync(2)), so that trying again would succeed without the data.
    unflushed: AtomicBool,
}
impl Disk {
    /// Does what is asked, durably with `write_through`. Returns the number of data bytes given to the
    /// driver.
    pub(super) fn carry_out(
        &self,
        request: &Request<'_>,
        chain: &Chain<'_>,
        write_through: bool,
    ) -> Result<u32, RequestError> {
        let done = self.execute(request.kind, request.sector, &chain.readable, &chain.writable);
        let (written, changed) = done?;
        if changed && write_through {
            self.flush()?;
        }
        Ok(written)
    }

    /// Makes what was written durable. Once that has failed later flushes fail as well.
    fn flush(&self) -> Result<(), RequestError> {
        if self.faults.unflushed.load(Ordering::Acquire) {
            return Err(RequestError::Io);
        }
        self.backend.flush().map_err(|error| {
            self.faults.unflushed.store(true, Ordering::Release);
            self.failed("a flush, and what was written before it may be lost,", &error)
        })
    }

    /// Logs why the backend has failed, a few times.
    pub(super) fn failed(&self, what: &str, error: &io::Error) -> RequestError {
        if self.faults.logged.fetch_add(1, Ordering::Relaxed) < LOGGED_ERRORS {
            let id = String::from_utf8_lossy(&self.id);
            let id = id.trim_end_matches('\0');
            tracing::warn!("{what} of the volume {id} has failed: {error}; the guest sees an I/O error");
        }
        RequestError::Io
    }

    /// What the driver is to see of an error of the backend, which was asked for `what`.
    fn refusal(&self, what: &str, error: io::Error) -> RequestError {
        if is_full(&error) {
            RequestError::NoSpace(error)
        } else {
            self.failed(what, &error)
        }
    }

    /// Returns the number of data bytes given to the driver, and whether the medium was changed.
    fn execute(
        &self,
        kind: u32,
        sector: u64,
        from_driver: &Segments<'_>,
        to_driver: &Segments<'_>,
    ) -> Result<(u32, bool), RequestError> {
        let changes = !matches!(
            kind,
            blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_GET_ID | blk::VIRTIO_BLK_T_FLUSH
        );
        if changes && self.read_only {
            return Err(RequestError::Io);
        }
        match kind {
            blk::VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, to_driver.len() as u64)?;
                self.backend
                    .read_at(offset, to_driver.slices())
                    .map_err(|error| self.failed("a read", &error))?;
                Ok((to_driver.len() as u32, false))
            }
            blk::VIRTIO_BLK_T_OUT => {
                let offset = self.range(sector, from_driver.len() as u64)?;
                self.backend
                    .write_at(offset, from_driver.slices())
                    .map_err(|error| self.refusal("a write", error))?;
                Ok((0, true))
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                self.flush()?;
                Ok((0, false))
            }
            blk::VIRTIO_BLK_T_GET_ID => Ok((to_driver.write(0, &self.id) as u32, false)),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.ranges(kind == blk::VIRTIO_BLK_T_DISCARD, from_driver)?;
                Ok((0, true))
            }
            _ => Err(RequestError::Unsupported),
        }
    }

    /// The byte offset of `sector`, when `len` bytes from there are whole sectors of the disk.
    pub(super) fn range(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
        let inside = sector
            .checked_add(len / SECTOR)
            .is_some_and(|end| end <= self.sectors);
        let bounded = len <= u64::from(SEG_MAX) * u64::from(SIZE_MAX);
        if inside && bounded && len.is_multiple_of(SECTOR) {
            Ok(sector * SECTOR)
        } else {
            Err(RequestError::Io)
        }
    }

    /// Serves the ranges of a discard or write-zeroes request. All are checked before any is touched.
    fn ranges(&self, discard: bool, from_driver: &Segments<'_>) -> Result<(), RequestError> {
        let (max_ranges, max_sectors) = if discard {
            (MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS)
        } else {
            (1, MAX_ZEROES_SECTORS)
        };
        let count = from_driver.len() / HEADER;
        if !from_driver.len().is_multiple_of(HEADER) || count == 0 || count > max_ranges as usize {
            return Err(RequestError::Io);
        }
        let mut ranges = Vec::with_capacity(count);
        for index in 0..count {
            let mut raw = [0; HEADER];
            from_driver.read(index * HEADER, &mut raw);
            let sector = u64::from_le_bytes(std::array::from_fn(|i| raw[i]));
            let sectors = u32::from_le_bytes(std::array::from_fn(|i| raw[8 + i]));
            let flags = u32::from_le_bytes(std::array::from_fn(|i| raw[12 + i]));
            let allowed = if discard {
                0
            } else {
                blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            };
            if flags & !allowed != 0 {
                return Err(RequestError::Unsupported);
            }
            if sectors > max_sectors
                || sector
                    .checked_add(sectors.into())
                    .is_none_or(|end| end > self.sectors)
            {
                return Err(RequestError::Io);
            }
            ranges.push((sector * SECTOR, u64::from(sectors) * SECTOR, flags != 0));
        }
        for (offset, len, unmap) in ranges {
            let done = if discard {
                // A discard is advice: a file system that has no space to make a hole keeps the data.
                self.backend
                    .discard(offset, len)
                    .or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) })
            } else {
                self.backend.write_zeroes(offset, len, unmap)
            };
            done.map_err(|error| self.refusal("a discard or write of zeros", error))?;
        }
        Ok(())
    }
}
