//! The block device (VIRTIO 1.3 §5.2).

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::ring::{Chain, QueueError, Segments};
use super::worker::{Context, Engine, Service};
use super::{Activation, DeviceTraits, Error, Queue, VirtioDevice, read_config_bytes};
use crate::block::Backend;
use crate::block::space::is_full;
use crate::event::EventSet;
use crate::limit::RateLimiter;
use crate::memory::Memory;
use crate::sandbox::Kind;

mod async_io;
mod spec;
mod waiting;

pub use async_io::AsyncIo;
pub use spec::{DiskSpec, IoEngine, Spec};
use waiting::WaitList;
pub use waiting::{SpaceEvent, SpaceMonitor, SpaceReport};

/// Unit of the device's addresses in bytes (VIRTIO 1.3 §5.2.4), whatever the block size.
pub const SECTOR: u64 = 512;
/// Descriptors of one queue. Room for two of the largest requests, or for 85 small ones without indirect descriptors.
const QUEUE_SIZE: u16 = 256;
/// Queues at most: one for each of the 32 processors that a machine can have.
pub const MAX_QUEUES: usize = 32;
const QUEUE_SIZES: [u16; MAX_QUEUES] = [QUEUE_SIZE; MAX_QUEUES];
/// Data buffers of one request: the queue's size less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Largest data buffer. Together with [`SEG_MAX`] it bounds the time that one request holds the worker.
const SIZE_MAX: u32 = 1 << 20;
/// Ranges in one discard request. Linux merges at most 256; few suffice.
const MAX_DISCARD_RANGES: u32 = 32;
/// Sectors of one discard range (1 GiB).
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Sectors of a write-zeroes request (64 MiB) with one range: they may really have to be written, and no request may
/// hold the worker for long.
const MAX_ZEROES_SECTORS: u32 = 1 << 17;
/// Length of the header of a request, and of one range of a discard request.
const HEADER: usize = 16;
/// Errors of a disk's backend that are logged: a guest could have them logged as often as it asks.
const LOGGED_ERRORS: u32 = 5;

/// A disk. Each queue has a thread of its own: requests of one queue are served one after the other, those of several at once.
pub struct Block {
    config: Vec<u8>,
    features: u64,
    /// One for each queue; in step with the processor the first serves all of them.
    engines: Vec<Engine<Server>>,
}

impl Block {
    /// A disk over `backend`. Its capacity is the backend's size, rounded down to whole sectors.
    pub fn new(backend: Arc<dyn Backend>, spec: Spec) -> Self {
        Block::with_limits(backend, spec, Vec::new(), RateLimiter::default())
    }

    /// The same with asynchronous requests, one of `rings` for each queue, as far as they reach; and doing no more than
    /// `limiter` allows, all queues and both directions together.
    pub fn with_limits(
        backend: Arc<dyn Backend>,
        spec: Spec,
        rings: Vec<AsyncIo>,
        limiter: RateLimiter,
    ) -> Self {
        let queues = spec.queues.clamp(1, MAX_QUEUES);
        let mut features = [
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
        ]
        .into_iter()
        .chain([blk::VIRTIO_BLK_F_TOPOLOGY, blk::VIRTIO_BLK_F_FLUSH])
        .fold(0, |all, bit| all | 1u64 << bit);
        if spec.read_only {
            features |= 1 << blk::VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if queues > 1 {
            features |= 1 << blk::VIRTIO_BLK_F_MQ;
        }
        let sectors = backend.size() / SECTOR;
        let mut id = [0; blk::VIRTIO_BLK_ID_BYTES as usize];
        let len = spec.id.len().min(id.len());
        id[..len].copy_from_slice(&spec.id.as_bytes()[..len]);
        let disk = Disk {
            backend,
            sectors,
            read_only: spec.read_only,
            id,
            faults: Arc::default(),
        };
        let rings = rings.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let servers = rings.take(queues).map(|ring| Server {
            disk: disk.clone(),
            ring,
            limiter: limiter.clone(),
            held: false,
            waiting: None,
        });
        Block {
            config: config_space(sectors, queues as u16),
            features,
            engines: servers.map(Engine::Idle).collect(),
        }
    }
}

impl Block {
    /// Has requests for which the host has no space wait until `monitor` has them carried out again, instead of failing.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn waiting_for_space(mut self, monitor: &SpaceMonitor) -> io::Result<Self> {
        for engine in &mut self.engines {
            if let Engine::Idle(server) = engine {
                server.waiting = Some(WaitList::new(monitor)?);
            }
        }
        Ok(self)
    }
}

/// `struct virtio_blk_config` (VIRTIO 1.3 §5.2.4).
fn config_space(sectors: u64, queues: u16) -> Vec<u8> {
    // Blocks of 4 KiB are what the root volume copies and what host file systems allocate.
    let blocks_exponent = 3u8;
    let sectors_per_block = 1u32 << blocks_exponent;
    let mut config = Vec::with_capacity(60);
    config.extend(sectors.to_le_bytes());
    config.extend(SIZE_MAX.to_le_bytes());
    config.extend(SEG_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry: not offered
    config.extend((SECTOR as u32).to_le_bytes()); // blk_size
    config.extend([blocks_exponent, 0]); // physical_block_exp, alignment_offset
    config.extend((sectors_per_block as u16).to_le_bytes()); // min_io_size
    config.extend(0u32.to_le_bytes()); // opt_io_size: no preference
    config.extend([0, 0]); // writeback: not offered; unused
    config.extend(queues.to_le_bytes());
    config.extend(MAX_DISCARD_SECTORS.to_le_bytes()); // max_discard_sectors
    config.extend(MAX_DISCARD_RANGES.to_le_bytes()); // max_discard_seg
    config.extend(sectors_per_block.to_le_bytes()); // discard_sector_alignment
    config.extend(MAX_ZEROES_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    config.extend(1u32.to_le_bytes()); // max_write_zeroes_seg
    config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap; unused
    config
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            id: VIRTIO_ID_BLOCK,
            features: self.features,
            queue_sizes: &QUEUE_SIZES[..self.engines.len()],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        if active.gate.is_some() {
            if let Engine::Idle(server) = &mut self.engines[0] {
                // Who keeps step has done everything when its turn ends.
                server.ring = None;
                if let Some(waiting) = &mut server.waiting {
                    waiting.in_step = true;
                }
            }
            return self.engines[0].start("blk", Kind::Block, active);
        }
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            gate,
        } = active;
        let several = self.engines.len() > 1;
        for ((number, queue), engine) in (0..).zip(queues).zip(&mut self.engines) {
            let active = Activation {
                memory: Arc::clone(&memory),
                features,
                queues: vec![queue],
                interrupt: Arc::clone(&interrupt),
                gate: gate.clone(),
            };
            let name = if several {
                format!("blk{number}")
            } else {
                "blk".into()
            };
            if let Err(error) = engine.start_from(number, &name, Kind::Block, active) {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.engines.iter_mut().flat_map(Engine::stop).collect()
    }

    fn reset(&mut self) {
        for engine in &mut self.engines {
            if let Engine::Idle(server) = engine {
                server.forget();
            }
        }
    }
}

/// What is behind the requests.
#[derive(Clone)]
struct Disk {
    backend: Arc<dyn Backend>,
    sectors: u64,
    read_only: bool,
    id: [u8; blk::VIRTIO_BLK_ID_BYTES as usize],
    faults: Arc<Faults>,
}

/// What has gone wrong with a disk's backend.
#[derive(Default)]
struct Faults {
    /// Errors logged so far.
    logged: AtomicU32,
    /// A flush has failed. What it was to make durable may be gone, and no later flush may say otherwise: the kernel reports such an
    /// error once (fsync(2)), so that trying again would succeed without the data.
    unflushed: AtomicBool,
}

/// Serves the requests of a queue: one after the other, or with a ring as many at once as it holds.
struct Server {
    disk: Disk,
    ring: Option<AsyncIo>,
    limiter: RateLimiter,
    /// Whether requests wait for the pace, or for those in `waiting`.
    held: bool,
    /// Requests that wait for space; `None` lets them fail.
    waiting: Option<WaitList>,
}

/// Why a request fails, as the driver sees it.
enum RequestError {
    /// `VIRTIO_BLK_S_IOERR`.
    Io,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// The host has no space for what is to be written; `VIRTIO_BLK_S_IOERR` where nobody waits for it.
    NoSpace(io::Error),
}

impl Service for Server {
    const BATCH_SCHEDULED: bool = true;

    fn begin(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if let Some(waiting) = &self.waiting {
            waiting.watch(&context.poller)?;
        }
        self.ring.as_ref().map_or(Ok(()), |ring| ring.watch(context))
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        let served = self.serve(context, index);
        self.forget_if_broken(served)
    }

    fn timeout(&mut self) -> Option<Duration> {
        (self.held && !self.waits()).then(|| self.limiter.wait().unwrap_or_default())
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if self.held && !self.waits() && self.limiter.wait().is_none() {
            return self.queue(context, 0);
        }
        Ok(())
    }

    fn source(&mut self, context: &mut Context, id: u32, _events: EventSet) -> Result<(), QueueError> {
        if id == waiting::RETRY {
            let retried = self.retry(context);
            return self.forget_if_broken(retried);
        }
        match self.ring {
            Some(_) => self.queue(context, 0),
            None => Ok(()),
        }
    }

    fn end(&mut self, context: &mut Context) {
        // Who starts the device again rings every doorbell.
        self.held = false;
        if let Some(ring) = &mut self.ring {
            ring.drain(&self.disk, &mut self.waiting, context);
        }
        if let Some(waiting) = &self.waiting {
            waiting.unwatch(&context.poller);
        }
    }
}

impl Server {
    /// Serves what is available in a queue, unless a request waits.
    fn serve(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        if self.ring.is_none() && self.waits() {
            self.held = true;
            return Ok(());
        }
        let Server {
            disk,
            ring,
            limiter,
            held,
            waiting,
        } = self;
        if let Some(ring) = ring {
            *held = !ring.serve(disk, waiting, limiter, context)?;
            return Ok(());
        }
        let write_through = is_write_through(context.features);
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let memory = &*memory;
        let mut finish = Finish {
            disk,
            waiting,
            memory,
            queue: index,
        };
        let full = Cell::new(false);
        let may = || !full.get() && limiter.wait().is_none();
        let all = rings[index].drain_while(memory, &**interrupt, may, |chain| {
            limiter.take(chain.data_len());
            let request = Request::of(chain)?;
            let len = finish.request(request, chain, write_through);
            full.set(len.is_none());
            Ok(len)
        })?;
        *held = !all;
        Ok(())
    }

    /// Whether a request waits for space.
    fn waits(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.is_empty())
    }

    /// Carries out again what waits, and goes on with the queues when nothing waits any more.
    fn retry(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        if waiting.retry(&self.disk, context)? && std::mem::take(&mut self.held) {
            for index in 0..context.rings.len() {
                if context.rings[index].queue.ready() {
                    self.serve(context, index)?;
                }
            }
        }
        Ok(())
    }

    /// Drops what waits: the driver has reset the device.
    fn forget(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.clear();
        }
    }

    /// The same when the driver has broken its queues: nothing could be given back to it.
    fn forget_if_broken(&mut self, served: Result<(), QueueError>) -> Result<(), QueueError> {
        served.inspect_err(|_| self.forget())
    }
}

/// Where the requests of one queue end.
struct Finish<'a> {
    disk: &'a Disk,
    /// Where they wait for space.
    waiting: &'a mut Option<WaitList>,
    memory: &'a Memory,
    queue: usize,
}

impl Finish<'_> {
    /// Carries out `request`, whose data is what is left of `chain`, and ends it: the number of bytes written to the driver. `None`
    /// when it waits for space from now on.
    fn request(&mut self, request: Request<'_>, chain: &mut Chain<'_>, write_through: bool) -> Option<u32> {
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
    fn waits(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.is_empty())
    }
}

/// Without VIRTIO_BLK_F_FLUSH the driver cannot flush, so every write must be durable (VIRTIO 1.3 §5.2.6.2).
fn is_write_through(features: u64) -> bool {
    features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0
}

/// What a request asks for, without its header; its data is what is left of its chain.
struct Request<'m> {
    kind: u32,
    sector: u64,
    /// Bytes of data that the driver has room for.
    room: usize,
    status: Option<VolatileSlice<'m>>,
}

impl Chain<'_> {
    /// Bytes of a request without its header and status.
    fn data_len(&self) -> u64 {
        (self.readable.len() + self.writable.len()).saturating_sub(HEADER + 1) as u64
    }
}

impl<'m> Request<'m> {
    /// Takes header and status off `chain`.
    fn of(chain: &mut Chain<'m>) -> Result<Self, QueueError> {
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

    /// Tells the driver how it went, with the bytes of data given to it; returns how many were written in all.
    fn end(self, done: Result<u32, RequestError>) -> u32 {
        let (written, status) = match done {
            Ok(written) => (written, blk::VIRTIO_BLK_S_OK),
            Err(RequestError::Io | RequestError::NoSpace(_)) => (0, blk::VIRTIO_BLK_S_IOERR),
            Err(RequestError::Unsupported) => (0, blk::VIRTIO_BLK_S_UNSUPP),
        };
        if let Some(status_byte) = self.status {
            status_byte.copy_from(&[status as u8]);
        }
        // The used length promises that all bytes up to it were written (VIRTIO 1.3 §2.7.8.2), and the status is the
        // last one: after a read that failed there is no such prefix.
        if written as usize == self.room {
            written + 1
        } else {
            0
        }
    }
}

impl Disk {
    /// Does what is asked, durably with `write_through`. Returns the number of data bytes given to the driver.
    fn carry_out(
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

    /// Makes what was written durable. Once that has failed it is never said to have succeeded.
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
    fn failed(&self, what: &str, error: &io::Error) -> RequestError {
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
    fn range(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
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

#[cfg(test)]
mod tests;
#[cfg(test)]
mod waiting_tests;
