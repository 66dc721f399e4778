//! The block device (VIRTIO 1.3 §5.2).

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::worker::Engine;
use super::{Activation, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice, read_config_bytes};
use crate::block::Backend;
use crate::limit::RateLimiter;
use crate::sandbox::Kind;
use crate::state::{Mismatch, Refused};

mod async_io;
mod disk;
mod request;
mod server;
mod spec;
mod waiting;

pub use async_io::AsyncIo;
use disk::Disk;
use server::Server;
pub use spec::{DiskSpec, IoEngine, Spec};
use waiting::WaitList;
pub use waiting::{SpaceEvent, SpaceMonitor, SpaceReport};

/// Unit of the device's addresses in bytes (VIRTIO 1.3 §5.2.4), whatever the block size.
pub const SECTOR: u64 = 512;
/// Descriptors of one queue. Room for two of the largest requests, or for 85 small ones without indirect
/// descriptors.
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
/// Sectors of a write-zeroes request (64 MiB) with one range: they may really have to be written, and no
/// request may hold the worker for long.
const MAX_ZEROES_SECTORS: u32 = 1 << 17;

/// A disk. Each queue has a thread of its own: requests of one queue are served one after the other, those of
/// several at once.
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

    /// The same with asynchronous requests, one of `rings` for each queue, as far as they reach; and doing no
    /// more than `limiter` allows, all queues and both directions together.
    pub(crate) fn with_limits(
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
    /// Has requests for which the host has no space wait until `monitor` has them carried out again, instead
    /// of failing.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn waiting_for_space(mut self, monitor: &SpaceMonitor) -> io::Result<Self> {
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
                // In step with the processor everything is done when the gate is given back.
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

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Block {
            config: _,
            features: _,
            engines,
        } = self;
        let mut sectors = 0;
        for engine in engines {
            let server = engine.service()?;
            if server.waits() {
                return Err(Unsaved::Waiting);
            }
            sectors = server.disk.sectors;
        }
        Ok(DeviceState::Block { sectors })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Block { sectors } = *state else {
            return Err(DeviceState::FOREIGN);
        };
        for engine in &self.engines {
            let own = engine.service().map_or(0, |server| server.disk.sectors);
            Mismatch::unless_equal("disk's number of sectors", sectors, own)?;
        }
        Ok(())
    }
}
#[cfg(test)]
mod tests;
#[cfg(test)]
mod waiting_tests;
