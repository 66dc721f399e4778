//! The requests of a block device: parsed, served at once or handed to the kernel, finished.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk as blk;
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::{HEADER, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, SECTOR, SEG_MAX, SIZE_MAX};
use crate::block::Backend;
use crate::block::uring::{Uring, guest_address};
use crate::event::EventSet;
use crate::memory::{Bytes, GuestAddress, Memory};
use crate::virtio::ring::{Broken, Chain, MAX_CHAINS_PER_WAKEUP, Segments};
use crate::virtio::worker::{Context, Service, Wake};

/// Serial number of a disk.
pub type Id = [u8; blk::VIRTIO_BLK_ID_BYTES as usize];

/// The ring's [`Wake::Source`].
const COMPLETIONS: u32 = 0;

/// Serves the requests of a block device.
pub struct Disk {
    backend: Arc<dyn Backend>,
    sectors: u64,
    read_only: bool,
    id: Id,
    /// Whether io_uring may be used at all.
    parallel: bool,
    /// While the queues are served, and where the host has it.
    uring: Option<Uring<Flight>>,
    /// Whether requests were left in the queues because the ring was full.
    stalled: bool,
}

/// A request that the kernel is working on.
struct Flight {
    queue: u16,
    head: u16,
    /// Guest-physical address of its status.
    status: GuestAddress,
    /// Bytes for the driver besides the status.
    room: usize,
}

/// A request, parsed.
struct Request<'m> {
    kind: u32,
    sector: u64,
    status: VolatileSlice<'m>,
    room: usize,
}

/// Why a request fails, as the driver sees it.
enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`.
    Io,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        tracing::debug!("block request failed: {error}");
        Refusal::Io
    }
}

impl Service for Disk {
    fn begin(&mut self, context: &mut Context) -> Result<(), Broken> {
        // Without VIRTIO_BLK_F_FLUSH every write is followed by a flush, and order is all that counts.
        if self.parallel && !write_through(context.features) {
            match Uring::new() {
                Ok(uring) => {
                    context
                        .poller
                        .add(uring.event(), EventSet::IN, Wake::Source(COMPLETIONS))?;
                    self.uring = Some(uring);
                }
                Err(error) => tracing::debug!("block requests are served one by one: io_uring: {error}"),
            }
        }
        Ok(())
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), Broken> {
        if self.uring.is_some() {
            return self.serve_in_parallel(context, index);
        }
        let Context {
            memory,
            rings,
            interrupt,
            features,
            ..
        } = context;
        let write_through = write_through(*features);
        rings[index].drain(memory, &**interrupt, |chain| {
            let request = parse(chain)?;
            let done = self.execute(request.kind, request.sector, &chain.readable, &chain.writable);
            let done = match done {
                Ok((_, true)) if write_through => self.backend.flush().map(|()| 0).map_err(Refusal::from),
                Ok((written, _)) => Ok(written),
                Err(refusal) => Err(refusal),
            };
            let (status, len) = answer(done, request.room);
            request.status.copy_from(&[status]);
            Ok(len)
        })
    }

    fn source(&mut self, context: &mut Context, _id: u32, _events: EventSet) -> Result<(), Broken> {
        if let Some(uring) = &self.uring {
            // Empties it; an error says that it was empty.
            let _ = uring.event().read();
        }
        self.finish(context)?;
        if std::mem::take(&mut self.stalled) {
            for index in 0..context.rings.len() {
                if context.rings[index].queue.ready() {
                    self.serve_in_parallel(context, index)?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, context: &mut Context) {
        while let Some(uring) = &mut self.uring
            && !uring.is_idle()
        {
            let waited = uring
                .wait()
                .map_err(Broken::from)
                .and_then(|()| self.finish(context));
            if let Err(broken) = waited {
                context.interrupt.needs_reset(&broken);
                break;
            }
        }
        self.uring = None;
    }
}

/// Whether every write must be durable when it is answered, because the driver cannot flush (VIRTIO 1.3 §5.2.6.2).
fn write_through(features: u64) -> bool {
    features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0
}

/// Takes header and status out of `chain`, whose readable and writable parts are data from then on.
fn parse<'m>(chain: &mut Chain<'m>) -> Result<Request<'m>, Broken> {
    let mut header = [0; HEADER];
    if chain.readable.read(0, &mut header) != HEADER {
        return Err(Broken::Request("a block request without a whole header"));
    }
    let room = chain.writable.len().checked_sub(1);
    let Some((room, status)) = room.and_then(|room| Some((room, chain.writable.part(room, 1)?))) else {
        return Err(Broken::Request("a block request without room for its status"));
    };
    chain.readable.skip(HEADER);
    chain.writable.truncate(room);
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
    Ok(Request {
        kind,
        sector,
        status,
        room,
    })
}

/// The status byte and the used length of a request that has given the driver so many bytes, or was refused.
fn answer(done: Result<u32, Refusal>, room: usize) -> (u8, u32) {
    let (written, status) = match done {
        Ok(written) => (written, blk::VIRTIO_BLK_S_OK),
        Err(Refusal::Io) => (0, blk::VIRTIO_BLK_S_IOERR),
        Err(Refusal::Unsupported) => (0, blk::VIRTIO_BLK_S_UNSUPP),
    };
    // The used length promises that all bytes up to it were written (VIRTIO 1.3 §2.7.8.2), and the status is the last
    // one: after a read that failed there is no such prefix.
    (
        status as u8,
        if written as usize == room { written + 1 } else { 0 },
    )
}

impl Disk {
    pub fn new(backend: Arc<dyn Backend>, sectors: u64, read_only: bool, id: Id) -> Self {
        Disk {
            backend,
            sectors,
            read_only,
            id,
            parallel: true,
            uring: None,
            stalled: false,
        }
    }

    /// Never uses io_uring.
    pub fn one_by_one(&mut self) {
        self.parallel = false;
    }

    /// Serves queue `index`: reads and flushes go to the kernel together, and the rest is done meanwhile.
    fn serve_in_parallel(&mut self, context: &mut Context, index: usize) -> Result<(), Broken> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = &mut *context;
        let ring = &mut rings[index];
        let mut chain = Chain::default();
        let mut left = MAX_CHAINS_PER_WAKEUP;
        let mut used = false;
        loop {
            ring.queue.disable_notification(&**memory)?;
            while left > 0 && self.has_room() && ring.pop(memory, &mut chain)? {
                left -= 1;
                let request = parse(&mut chain)?;
                if self.launch(memory, index as u16, &request, &chain) {
                    continue;
                }
                let done = self.execute(request.kind, request.sector, &chain.readable, &chain.writable);
                let (status, len) = answer(done.map(|(written, _)| written), request.room);
                request.status.copy_from(&[status]);
                ring.push(memory, chain.head, len)?;
                used = true;
            }
            if !self.has_room() {
                self.stalled = true; // a completion makes room, and comes back here
                break;
            }
            if left == 0 {
                ring.doorbell.write(1)?;
                break;
            }
            if !ring.queue.enable_notification(&**memory)? {
                break;
            }
        }
        if used {
            ring.notify(memory, &**interrupt)?;
        }
        if let Some(uring) = &mut self.uring {
            uring.submit()?;
        }
        self.finish(context)
    }

    fn has_room(&self) -> bool {
        self.uring.as_ref().is_none_or(Uring::has_room)
    }

    /// Hands a request to the ring if it is one for it. One that is not, or is wrong, is for [`execute`](Self::execute).
    fn launch(&mut self, memory: &Memory, queue: u16, request: &Request<'_>, chain: &Chain<'_>) -> bool {
        let data = &chain.writable;
        let Some(status) = guest_address(memory, &request.status).map(GuestAddress) else {
            return false;
        };
        let flight = Flight {
            queue,
            head: chain.head,
            status,
            room: request.room,
        };
        let range = self.range(request.sector, data.len() as u64);
        let Some(uring) = &mut self.uring else {
            return false;
        };
        match (request.kind, range) {
            (blk::VIRTIO_BLK_T_IN, Ok(offset)) if !data.is_empty() => {
                let place = self.backend.direct_read(offset, data.len() as u64);
                place.is_some_and(|(file, at)| uring.read(file, at, data.slices(), memory, flight).is_ok())
            }
            (blk::VIRTIO_BLK_T_FLUSH, _) if request.room == 0 => self
                .backend
                .direct_flush()
                .is_some_and(|file| uring.flush(file, flight).is_ok()),
            _ => false,
        }
    }

    /// Answers the requests that the kernel is done with.
    fn finish(&mut self, context: &mut Context) -> Result<(), Broken> {
        let Some(uring) = &mut self.uring else {
            return Ok(());
        };
        let mut done = Vec::new();
        uring.reap(&mut done)?;
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let mut touched = vec![false; rings.len()];
        for (flight, result) in done {
            let Flight {
                queue,
                head,
                status,
                room,
            } = flight;
            let (code, len) = answer(result.map(|()| room as u32).map_err(Refusal::from), room);
            // It was in memory when the request began, and memory does not change.
            let _ = memory.write_obj(code, status);
            rings[usize::from(queue)].push(memory, head, len)?;
            touched[usize::from(queue)] = true;
        }
        for (ring, _) in rings.iter_mut().zip(touched).filter(|(_, touched)| *touched) {
            ring.notify(memory, &**interrupt)?;
        }
        Ok(())
    }

    /// Returns the number of data bytes given to the driver, and whether the medium was changed.
    fn execute(
        &self,
        kind: u32,
        sector: u64,
        from_driver: &Segments<'_>,
        to_driver: &Segments<'_>,
    ) -> Result<(u32, bool), Refusal> {
        let changes = !matches!(
            kind,
            blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_GET_ID | blk::VIRTIO_BLK_T_FLUSH
        );
        if changes && self.read_only {
            return Err(Refusal::Io);
        }
        match kind {
            blk::VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, to_driver.len() as u64)?;
                self.backend.read_at(offset, to_driver.slices())?;
                Ok((to_driver.len() as u32, false))
            }
            blk::VIRTIO_BLK_T_OUT => {
                let offset = self.range(sector, from_driver.len() as u64)?;
                self.backend.write_at(offset, from_driver.slices())?;
                Ok((0, true))
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                self.backend.flush()?;
                Ok((0, false))
            }
            blk::VIRTIO_BLK_T_GET_ID => Ok((to_driver.write(0, &self.id) as u32, false)),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.ranges(kind == blk::VIRTIO_BLK_T_DISCARD, from_driver)?;
                Ok((0, true))
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// The byte offset of `sector`, when `len` bytes from there are whole sectors of the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let inside = sector
            .checked_add(len / SECTOR)
            .is_some_and(|end| end <= self.sectors);
        let bounded = len <= u64::from(SEG_MAX) * u64::from(SIZE_MAX);
        if inside && bounded && len.is_multiple_of(SECTOR) {
            Ok(sector * SECTOR)
        } else {
            Err(Refusal::Io)
        }
    }

    /// Serves the ranges of a discard or write-zeroes request. All are checked before any is touched.
    fn ranges(&self, discard: bool, from_driver: &Segments<'_>) -> Result<(), Refusal> {
        let (max_ranges, max_sectors) = if discard {
            (MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS)
        } else {
            (1, MAX_ZEROES_SECTORS)
        };
        let count = from_driver.len() / HEADER;
        if !from_driver.len().is_multiple_of(HEADER) || count == 0 || count > max_ranges as usize {
            return Err(Refusal::Io);
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
                return Err(Refusal::Unsupported);
            }
            if sectors > max_sectors
                || sector
                    .checked_add(sectors.into())
                    .is_none_or(|end| end > self.sectors)
            {
                return Err(Refusal::Io);
            }
            ranges.push((sector * SECTOR, u64::from(sectors) * SECTOR, flags != 0));
        }
        for (offset, len, unmap) in ranges {
            if discard {
                self.backend.discard(offset, len)?;
            } else {
                self.backend.write_zeroes(offset, len, unmap)?;
            }
        }
        Ok(())
    }
}
