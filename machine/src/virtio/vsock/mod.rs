//! The socket device (VIRTIO 1.3 §5.10): streams between guest and host processes without a network.
//!
//! The host's side is a Unix socket, as with Firecracker. A host process connects to it, sends `CONNECT
//! <port>\n` and gets `OK <host port>\n` once the guest has accepted; from there on the bytes are the
//! stream's. A connection that the guest opens to the host's port P goes to the Unix socket at the same path
//! with `_P` appended.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::worker::Engine;
use super::{Activation, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice, read_config_bytes};

mod connection;
mod greeting;
mod hub;
pub mod packet;
#[cfg(test)]
mod tests;
mod unix;

use crate::sandbox::Kind;
use crate::state::Refused;
use hub::Hub;
pub use hub::MAX_STREAMS;

/// Context id of the host (VIRTIO 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;
/// The smallest context id that a guest can have.
pub const MIN_GUEST_CID: u64 = 3;
/// Descriptors of each queue: Linux fills its receive queue with 4 KiB buffers, so this is half a megabyte
/// under way.
const QUEUE_SIZES: [u16; 3] = [128; 3];

/// The socket device of a machine.
pub struct VsockSpec {
    /// The guest's context id, [`MIN_GUEST_CID`] or more.
    pub guest_cid: u64,
    /// Where host processes connect.
    pub listener: UnixListener,
    /// The guest's connections to the host's port P go to the Unix socket at this path with `_P` appended.
    pub path: PathBuf,
}

impl VsockSpec {
    /// Builds the device.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn build(self) -> Result<Vsock, Error> {
        Vsock::new(self.guest_cid, self.listener, self.path).map_err(Error::build("serving its Unix socket"))
    }
}

/// A socket device.
pub struct Vsock {
    guest_cid: u64,
    engine: Engine<Hub>,
}

impl Vsock {
    /// A device for the guest `guest_cid`. Host processes come through `listener`; the guest's connections to
    /// the host go to `path` with `_PORT` appended.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(guest_cid: u64, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Vsock {
            guest_cid,
            engine: Engine::Idle(Hub::new(guest_cid, listener, path)),
        })
    }

    /// Binds the Unix socket at `path`, which must not exist, and serves it.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn bind(guest_cid: u64, path: &Path) -> io::Result<Self> {
        Self::new(guest_cid, UnixListener::bind(path)?, path.to_owned())
    }
}

impl VirtioDevice for Vsock {
    fn traits(&self) -> DeviceTraits {
        // Without a feature bit, streams are what there is (VIRTIO 1.3 §5.10.3).
        DeviceTraits {
            id: VIRTIO_ID_VSOCK,
            features: 0,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        self.engine.start("vsock", Kind::Vsock, active)
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.engine.stop()
    }

    fn reset(&mut self) {
        if let Engine::Idle(hub) = &mut self.engine {
            hub.forget_all();
        }
    }

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Vsock { guest_cid, engine } = self;
        Ok(DeviceState::Vsock {
            guest_cid: *guest_cid,
            streams: engine.service()?.has_streams(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Vsock { guest_cid, streams } = *state else {
            return Err(DeviceState::FOREIGN);
        };
        // A driver reads its context id again after a transport reset.
        let outdated = streams || guest_cid != self.guest_cid;
        if outdated && let Ok(hub) = self.engine.service_mut() {
            hub.reset_transport();
        }
        Ok(())
    }
}
