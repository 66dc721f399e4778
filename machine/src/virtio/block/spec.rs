//! The description of a disk, and building the device from it.

use std::io;
use std::sync::Arc;

use super::{AsyncIo, Block, SpaceMonitor};
use crate::block::Backend;
use crate::limit::RateLimiter;
use crate::virtio::Error;

/// What a block device is, besides its backend.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Refuse writes, and say so to the driver.
    pub read_only: bool,
    /// Serial number that the guest sees in `/dev/disk/by-id`; the first 20 bytes count.
    pub id: String,
    /// Number of queues, 1 to [`MAX_QUEUES`](super::MAX_QUEUES).
    pub queues: usize,
}

/// How requests get to the backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// One after the other in each queue.
    #[default]
    Sync,
    /// Many at once in each queue, through the kernel's io_uring where the host has it.
    IoUring,
}

/// A disk of a machine.
pub struct DiskSpec {
    /// What holds its data. Its size, rounded down to whole sectors, is the disk's.
    pub backend: Arc<dyn Backend>,
    /// What the guest sees of it.
    pub spec: Spec,
    /// How requests get to the backend.
    pub engine: IoEngine,
    /// What all queues, reading and writing, may do together.
    pub limiter: RateLimiter,
    /// Has requests for which the host has no space wait; without it they fail.
    pub space: Option<SpaceMonitor>,
}

impl DiskSpec {
    /// Builds the device.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn build(self) -> Result<Block, Error> {
        let DiskSpec {
            backend,
            spec,
            engine,
            limiter,
            space,
        } = self;
        let rings = engine.rings(spec.queues);
        let disk = Block::with_limits(backend, spec, rings, limiter);
        match space {
            Some(monitor) => disk
                .waiting_for_space(&monitor)
                .map_err(Error::build("watching the space of its file")),
            None => Ok(disk),
        }
    }
}

impl IoEngine {
    /// A ring for each of the queues; none where requests are served one after the other, or the kernel has
    /// no rings.
    fn rings(self, queues: usize) -> Vec<AsyncIo> {
        if self == IoEngine::Sync {
            return Vec::new();
        }
        let rings: io::Result<_> = (0..queues).map(|_| AsyncIo::new()).collect();
        rings.unwrap_or_else(|error| {
            tracing::warn!(
                "this host has no io_uring for us ({error}): disks serve one request after the other"
            );
            Vec::new()
        })
    }
}
