//! Network backends: a tap device, and the built-in user-mode network that needs no privilege.

use std::os::fd::RawFd;

/// What carries Ethernet frames for a virtio-net device. Runs in the device's worker thread.
///
/// Frames carry a `virtio_net_hdr_v1` (12 bytes, VIRTIO 1.3 §5.1.6) in front when [`offloads`](Backend::offloads)
/// says so; otherwise the device strips and adds it.
pub trait Backend: Send {
    /// Takes one frame from the guest. Never blocks; a frame that cannot be taken is dropped, as on a wire.
    fn transmit(&mut self, frame: &[u8]);
    /// Puts the next frame for the guest into `buffer` and returns its length, or `None` when there is none now.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize>;
    /// File descriptors (with epoll event masks) whose readiness means that [`poll`](Backend::poll) has work.
    fn descriptors(&self) -> Vec<(RawFd, u32)>;
    /// Moves the backend on (timers, sockets) and returns milliseconds until it wants to be called again, if ever.
    fn poll(&mut self) -> Option<u64>;
    /// Whether frames carry the virtio header and may be larger than the MTU (checksum and segmentation offload).
    fn offloads(&self) -> bool {
        false
    }
}
