//! Virtio 1.3 devices. The transport core negotiates status, features and queues once for all of them; a
//! transport only decodes registers; each device is a file of its own.
//!
//! A device is a [`Service`](worker::Service) that an [`Engine`](worker::Engine) runs in a thread between
//! `DRIVER_OK` and reset. A driver that breaks the rules of its queues disables this device
//! (`DEVICE_NEEDS_RESET`) and affects nothing else.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::irq::Interrupt;
use crate::memory::Memory;
use crate::state::Refused;

pub mod balloon;
pub mod block;
pub mod console;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod determinism;

pub mod malicious_driver;
pub mod mmio;
pub mod net;
pub mod ring;
pub mod rng;
pub mod scheduling;
pub mod state;
pub mod testing;
pub mod vsock;
pub mod worker;

pub use state::{DeviceState, Unsaved};
pub use virtio_queue::Queue;

/// Why a device could not be built or started.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} failed while the virtio device was being started: {source}
    Start {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// {what} failed while the virtio device was being built: {source}
    Build {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// the virtio device lost its backend when an earlier start failed
    Lost,
}

impl Error {
    /// Turns an operating system error of the step `what` into an [`Error`]; for `map_err`.
    pub fn start(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Start { what, source }
    }

    /// The same for a step of building a device.
    pub fn build(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Build { what, source }
    }
}

/// What a device is, before any driver has touched it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTraits {
    /// Virtio device id (VIRTIO 1.3 §5).
    pub id: u32,
    /// Device-specific feature bits offered; the transport adds `VIRTIO_F_VERSION_1` and ring features.
    pub features: u64,
    /// Largest size of each queue, in descriptors; a power of two. Its length is the number of queues.
    pub queue_sizes: &'static [u16],
}

/// Raises the device's interrupt after setting the reason in `InterruptStatus` (VIRTIO 1.3 §4.2.2).
pub trait DeviceInterrupt: Send + Sync {
    /// Buffers were used in queue `index`. The caller has already asked the queue whether the driver wants to
    /// know.
    fn queue(&self, index: u16) -> std::io::Result<()>;
    /// The configuration space has changed.
    fn config(&self) -> std::io::Result<()>;
    /// The device met something it cannot recover from: sets `DEVICE_NEEDS_RESET`, notifies the driver, and
    /// logs `why` (a few times per device at most: the guest decides how often this happens).
    fn needs_reset(&self, why: &dyn std::fmt::Display);
}

/// All that a device gets when the driver sets `DRIVER_OK`: negotiated, validated, ready.
pub struct Activation {
    /// Guest RAM.
    pub memory: Memory,
    /// The features that both sides agreed on.
    pub features: u64,
    /// Queues by index, with the doorbell that the driver rings for each. A queue that the driver left
    /// disabled is still here, with `ready() == false`.
    pub queues: Vec<(Queue, EventFd)>,
    /// Notifies the driver.
    pub interrupt: Arc<dyn DeviceInterrupt>,
    /// Without it the device works whenever the host lets it.
    pub gate: Option<Arc<determinism::WorkerGate>>,
}

/// A virtio device. The transport core owns status, features and queue registers; the device owns its queues
/// only between [`start`](VirtioDevice::start) and [`stop`](VirtioDevice::stop).
pub trait VirtioDevice: Send {
    /// What the device is; constant while it exists.
    fn traits(&self) -> DeviceTraits;
    /// Reads device configuration space. Bytes beyond the configuration stay as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration space. Most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Begins to serve the queues, usually in a worker thread. Called at most once between two `stop`s.
    fn start(&mut self, active: Activation) -> Result<(), Error>;
    /// Stops serving and hands the queues back, with nothing in flight. Idempotent: a stopped device returns
    /// none.
    fn stop(&mut self) -> Vec<Queue>;
    /// Forgets what the driver has set. Called after `stop`.
    fn reset(&mut self) {}
    /// What the device remembers besides its queues. Called while it is stopped.
    ///
    /// # Errors
    /// When it is not in a state that can be saved.
    fn save(&self) -> Result<DeviceState, Unsaved>;
    /// Goes on from what [`save`](VirtioDevice::save) gave. Called on a new device, before `start`.
    ///
    /// # Errors
    /// When the state is another kind's, or none that this device can be in; nothing is changed then.
    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused>;
}

/// Where an interrupt of the machine becomes a virtio interrupt: implemented by the transport over
/// [`Interrupt`].
pub(crate) type Line = Arc<dyn Interrupt>;

/// Answers a read of configuration space at `offset` from its bytes; what lies beyond them stays as it is.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(tail) = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
    else {
        return;
    };
    let len = tail.len().min(data.len());
    data[..len].copy_from_slice(&tail[..len]);
}
