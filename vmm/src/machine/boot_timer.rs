//! The boot timer on the bus: the guest writes one byte per event.

use std::sync::Arc;

use super::handle::Shared;
use crate::bus::{Action, BusDevice};
use crate::timeline::Event;

/// Takes the guest's events and notes the exits up to them.
pub(super) struct BootTimer(pub(super) Arc<Shared>);

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (0, Some(event)) = (offset, Event::from_guest(data[0])) {
            self.0.reached(event);
        }
        Action::None
    }
}
