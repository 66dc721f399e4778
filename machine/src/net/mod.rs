//! Network backends: a tap device, and the built-in user-mode network that needs no privilege. The instance
//! metadata service is in front of either.

mod arp;
pub mod clock;
mod lost;
pub mod metadata;
mod stack;
#[allow(unsafe_code)]
pub mod tap;
#[cfg(test)]
mod testing;
pub mod user;

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

#[cfg(test)]
pub(crate) use lost::tests as testing_lost;
pub use lost::{LostConnections, SavedConnections, TcpConnection};

/// What carries Ethernet frames for a virtio-net device. Runs in the device's worker thread: the worker hands
/// over the guest's frames, calls [`poll`](Backend::poll) once per batch and whenever a descriptor or the
/// time says so, and then takes what there is for the guest.
///
/// Frames carry a `virtio_net_hdr_v1` (12 bytes, VIRTIO 1.3 §5.1.6) in front when
/// [`offloads`](Backend::offloads) says so; otherwise the device strips and adds it.
pub trait Backend: Send {
    /// Takes one frame from the guest. Never blocks; a frame that cannot be taken is dropped, as on a wire.
    fn transmit(&mut self, frame: &[u8]);
    /// Puts the next frame for the guest into `buffer` and returns its length, or `None` when there is none
    /// now. A frame that is larger than `buffer` is dropped.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize>;
    /// File descriptors (with epoll event masks) whose readiness means that [`poll`](Backend::poll) has work.
    fn descriptors(&self) -> Vec<(RawFd, u32)>;
    /// Moves the backend on (timers, sockets) and returns milliseconds until it wants to be called again, if
    /// ever.
    fn poll(&mut self) -> Option<u64>;
    /// Whether frames carry the virtio header and may be larger than the MTU (checksum and segmentation
    /// offload).
    fn offloads(&self) -> bool {
        false
    }
    /// The features that the driver has agreed to (`VIRTIO_NET_F_*`), before the first frame and after each
    /// reset of the device. An offload that it declined must not be used on frames for it.
    fn accept_features(&mut self, _features: u64) {}
    /// The guest's TCP connections that end here, and that a guest which goes on from a snapshot loses.
    fn connections(&self) -> Vec<TcpConnection> {
        Vec::new()
    }
    /// The MTU to announce to the guest, in bytes of IP packet.
    fn mtu(&self) -> u16 {
        1500
    }
}

/// Addresses of one guest on its network. They are the same in every instance: each has a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The guest.
    pub guest: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// Router, DHCP server and source of forwarded connections.
    pub gateway: Ipv4Addr,
    /// Relays DNS to the host's resolver.
    pub dns: Ipv4Addr,
}

impl Default for Addresses {
    fn default() -> Self {
        Addresses {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
        }
    }
}

/// Why a network could not be set up.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} failed: {source}
    Os {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// port {address} of the host could not be opened: {source}
    Port {
        /// Address and port asked for.
        address: std::net::SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// the tap device {name} could not be opened: {source}; it must exist and belong to you
    Tap {
        /// Name of the device.
        name: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

pub(crate) fn os(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Os { what, source }
}
