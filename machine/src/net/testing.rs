//! The guest's end of the wire, for tests: a network card for smoltcp whose frames the test carries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as HostInstant};

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::clock::Clock;

/// Time that passes as the host's does, and in leaps when a test says so.
#[derive(Clone)]
pub struct Leaps {
    start: HostInstant,
    ahead: Arc<AtomicU64>,
}

impl Leaps {
    pub fn new() -> Leaps {
        Leaps {
            start: HostInstant::now(),
            ahead: Arc::default(),
        }
    }

    /// Lets `time` pass at once.
    pub fn leap(&self, time: Duration) {
        self.ahead.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed() + Duration::from_micros(self.ahead.load(Ordering::Relaxed))
    }

    /// The same, for the guest's stack.
    pub fn instant(&self) -> Instant {
        Instant::from_micros(self.now().as_micros() as i64)
    }

    pub fn clock(&self) -> Clock {
        let leaps = self.clone();
        Clock::new(move || leaps.now())
    }
}

/// A card with both queues in the open.
pub struct Nic {
    /// Frames that the guest has yet to see.
    pub to_guest: VecDeque<Vec<u8>>,
    /// Frames that the guest has sent.
    pub from_guest: VecDeque<Vec<u8>>,
    frame: usize,
}

impl Nic {
    /// A card that takes frames of up to `frame` bytes.
    pub fn new(frame: usize) -> Nic {
        Nic {
            to_guest: VecDeque::new(),
            from_guest: VecDeque::new(),
            frame,
        }
    }
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.to_guest.pop_front()?), Tx(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame;
        capabilities
    }
}
