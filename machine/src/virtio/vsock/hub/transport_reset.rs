//! The event that tells the guest that its streams are gone (VIRTIO 1.3 §5.10.6.7): after a snapshot it knows
//! streams that no host process has.
//!
//! A driver closes all of its streams when it takes the event. One that a host process has begun before that
//! would be closed with them, so nothing is received until the driver has given a buffer of the event queue
//! back, which it does after it has done what the event asks for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_queue::QueueT;

use super::EVENT;
use crate::virtio::ring::{Chain, QueueError};
use crate::virtio::worker::Context;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, as `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// Between two looks whether the driver has taken the event. The driver does not notify of buffers that it
/// gives back while there are others, and it is a matter of a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransportReset {
    /// Streams may flow.
    None,
    /// There was no buffer for the event yet.
    Due,
    /// The driver is to take it. Until then its available ring ends here.
    Sent(u16),
}

impl TransportReset {
    /// How long the worker may sleep.
    pub(super) fn timeout(self) -> Option<Duration> {
        match self {
            // A driver that gives its first buffers notifies of them.
            TransportReset::None | TransportReset::Due => None,
            TransportReset::Sent(_) => Some(LOOK_EVERY),
        }
    }

    /// Sends the event, or finds that it was taken.
    pub(super) fn advance(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let ring = &mut rings[EVENT];
        match *self {
            TransportReset::None => {}
            // A driver without event queue has no streams that are worth it.
            _ if !ring.queue.ready() => *self = TransportReset::None,
            TransportReset::Due => {
                let mut chain = Chain::default();
                while !ring.pop(memory, &mut chain)? {
                    if !ring.queue.enable_notification(&**memory)? {
                        return Ok(());
                    }
                }
                let end = ring.queue.avail_idx(&**memory, Ordering::Acquire)?;
                let len = chain.writable.write(0, &TRANSPORT_RESET);
                ring.push(memory, chain.head, len as u32)?;
                ring.notify(memory, &**interrupt)?;
                *self = TransportReset::Sent(end.0);
            }
            TransportReset::Sent(end) => {
                if ring.queue.avail_idx(&**memory, Ordering::Acquire)?.0 != end {
                    *self = TransportReset::None;
                }
            }
        }
        Ok(())
    }
}
