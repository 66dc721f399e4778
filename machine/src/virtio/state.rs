//! What a snapshot holds of a virtio device: what its driver has negotiated, where its queues are, and the
//! little that the device itself remembers. Nothing is in flight: a device is stopped when it is saved.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::core::{QueueRegisters, status};
use crate::net::SavedConnections;
use crate::state::Refused;

/// What a device remembers besides its queues. One for each kind of device, so that none needs to ask what
/// another one's is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// The memory balloon.
    Balloon {
        /// Pages that the guest says it has given up.
        actual: u32,
    },
    /// A disk. All of its requests are done.
    Block {
        /// Its size in units of 512 bytes.
        sectors: u64,
    },
    /// A console.
    Console {
        /// Bytes of the first available chain that were printed before the output stopped taking more.
        stalled: Option<u32>,
    },
    /// A network card: the guest's connections, which no other process has.
    Net(SavedConnections),
    /// The source of entropy.
    Rng {
        /// How many bytes were given, for one whose bytes follow from a seed.
        position: Option<u64>,
    },
    /// The socket device. No stream outlives a snapshot.
    Vsock {
        /// The guest's context id.
        guest_cid: u64,
        /// Whether the guest has any streams, of which it is to be told that they are gone.
        streams: bool,
    },
}

impl DeviceState {
    /// The state is another device's.
    pub(crate) const FOREIGN: Refused = Refused::Invalid("the kind of a device");
}

/// Why a device cannot be saved now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Unsaved {
    /// it is running
    Running,
    /// it lost its backend when an earlier start failed
    Lost,
    /// requests wait for space on the host
    Waiting,
}

/// How far a queue has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueIndices {
    /// The next entry of the available ring.
    pub next_avail: u16,
    /// The next entry of the used ring.
    pub next_used: u16,
}

/// What the transport's core remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    /// Virtio device id.
    pub id: u32,
    /// The features that the driver has accepted.
    pub driver_features: u64,
    /// Device status.
    pub status: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub generation: u32,
    /// What the driver has written about each queue.
    pub queues: Vec<QueueRegisters>,
    /// How far each queue has got, if the device serves them.
    pub running: Option<Vec<QueueIndices>>,
    /// What the device remembers.
    pub device: DeviceState,
}

impl CoreState {
    /// Whether a device with these features and this many queues can be so. The queues' places are looked at
    /// where they are built.
    pub(super) fn check(&self, id: u32, offered: u64, queues: usize) -> Result<(), Refused> {
        let CoreState {
            id: saved_id,
            driver_features,
            status: bits,
            interrupt_status,
            generation: _,
            queues: registers,
            running,
            device: _,
        } = self;
        Refused::unless(*saved_id == id, "the kind of a device")?;
        Refused::unless(registers.len() == queues, "the number of queues")?;
        Refused::unless(driver_features & !offered == 0, "features")?;
        Refused::unless(interrupt_status & !3 == 0, "the interrupt status")?;
        if let Some(indices) = running {
            let agreed = status::FEATURES_OK | status::DRIVER_OK;
            let may_run = bits & agreed == agreed && bits & status::FAILED == 0;
            Refused::unless(may_run, "the status of a device that runs")?;
            let modern = driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
            Refused::unless(modern, "the features of a device that runs")?;
            Refused::unless(indices.len() == queues, "the number of queues that run")?;
        }
        Ok(())
    }
}

/// What a transport remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// All that is behind the registers.
    pub core: CoreState,
}
