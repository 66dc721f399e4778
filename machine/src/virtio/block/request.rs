//! A request as the driver puts it into a queue (VIRTIO 1.3 §5.2.6), and how it ends.

use std::io;

use virtio_bindings::virtio_blk as blk;
use vm_memory::VolatileSlice;

use super::disk::Disk;
use super::waiting::WaitList;
use crate::memory::Memory;
use crate::virtio::ring::{Chain, QueueError};

/// Length of the header of a request, and of one range of a discard request.
pub(super) const HEADER: usize = 16;

/// What a request asks for, without its header; its data is what is left of its chain.
pub(super) struct Request<'m> {
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// Bytes of data that the driver has room for.
    pub(super) room: usize,
    pub(super) status: Option<VolatileSlice<'m>>,
}

impl Chain<'_> {
    /// Bytes of a request without its header and status.
    pub(super) fn data_len(&self) -> u64 {
        (self.readable.len() + self.writable.len()).saturating_sub(HEADER + 1) as u64
    }
}

impl<'m> Request<'m> {
    /// Takes header and status off `chain`.
    pub(super) fn of(chain: &mut Chain<'m>) -> Result<Self, QueueError> {
        let mut header = [0; HEADER];
        if chain.readable.read(0, &mut header) != HEADER {
            return Err(QueueError::Request("a block request without a whole header"));
        }
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return Err(QueueError::Request("a block request without room for its status"));
        };
        let status = chain.writable.part(room, 1);
        chain.readable.skip(HEADER);
        chain.writable.truncate(room);
        Ok(Request {
            kind: u32::from_le_bytes([header[0], header[1], header[2], header[3]]),
            sector: u64::from_le_bytes(std::array::from_fn(|i| header[8 + i])),
            room,
            status,
        })
    }

    /// Tells the driver how it went, with the bytes of data given to it; returns how many were written in
    /// all.
    pub(super) fn end(self, done: Result<u32, RequestError>) -> u32 {
        let (written, status) = match done {
            Ok(written) => (written, blk::VIRTIO_BLK_S_OK),
            Err(RequestError::Io | RequestError::NoSpace(_)) => (0, blk::VIRTIO_BLK_S_IOERR),
            Err(RequestError::Unsupported) => (0, blk::VIRTIO_BLK_S_UNSUPP),
        };
        if let Some(status_byte) = self.status {
            status_byte.copy_from(&[status as u8]);
        }
        // The used length promises that all bytes up to it were written (VIRTIO 1.3 §2.7.8.2), and the status
        // is the last one: after a read that failed there is no such prefix.
        if written as usize == self.room {
            written + 1
        } else {
            0
        }
    }
}
/// Why a request fails, as the driver sees it.
pub(super) enum RequestError {
    /// `VIRTIO_BLK_S_IOERR`.
    Io,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// The host has no space for what is to be written; `VIRTIO_BLK_S_IOERR` where requests do not wait for
    /// it.
    NoSpace(io::Error),
}
/// Where the requests of one queue end.
pub(super) struct Finish<'a> {
    pub(super) disk: &'a Disk,
    /// Where they wait for space.
    pub(super) waiting: &'a mut Option<WaitList>,
    pub(super) memory: &'a Memory,
    pub(super) queue: usize,
}

impl Finish<'_> {
    /// Carries out `request`, whose data is what is left of `chain`, and ends it: the number of bytes written
    /// to the driver. `None` when it waits for space from now on.
    pub(super) fn request(
        &mut self,
        request: Request<'_>,
        chain: &mut Chain<'_>,
        write_through: bool,
    ) -> Option<u32> {
        let done = match self.disk.carry_out(&request, chain, write_through) {
            Err(RequestError::NoSpace(error)) => match self.waiting {
                Some(waiting) if waiting.in_step => {
                    waiting.wait_here(self.disk, &request, chain, write_through, error)
                }
                Some(waiting) => {
                    let chain = std::mem::take(chain);
                    waiting.keep(self.memory, self.queue, request, chain, write_through, &error);
                    return None;
                }
                None => Err(self.disk.failed("a write", &error)),
            },
            done => done,
        };
        Some(request.end(done))
    }

    /// Whether a request waits.
    pub(super) fn waits(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.is_empty())
    }
}
/// Without VIRTIO_BLK_F_FLUSH the driver cannot flush, so every write must be durable (VIRTIO 1.3 §5.2.6.2).
pub(super) fn is_write_through(features: u64) -> bool {
    features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0
}
