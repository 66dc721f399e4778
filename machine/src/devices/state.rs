//! What a snapshot holds of the devices that are not virtio. The others of them have nothing to remember.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::power::ResetControl;
use super::rtc::{Clock, ClockState};
use super::serial::{Serial, SerialState};
use crate::state::Refused;

/// Those of a machine that remember something; a machine has some of them.
#[derive(Default)]
pub struct FixedDevices {
    /// The serial port.
    pub serial: Option<Arc<Mutex<Serial>>>,
    /// The reset control register.
    pub reset_control: Option<Arc<Mutex<ResetControl>>>,
    /// The real-time clock.
    pub clock: Option<Arc<Mutex<Clock>>>,
}

/// What they remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedState {
    /// The serial port is built from it; see [`Serial::restored`].
    pub serial: Option<SerialState>,
    reset_control: Option<u8>,
    clock: Option<ClockState>,
}

impl FixedDevices {
    /// What a snapshot needs.
    pub fn save(&self) -> FixedState {
        let FixedDevices {
            serial,
            reset_control,
            clock,
        } = self;
        FixedState {
            serial: serial.as_deref().map(|device| lock(device).save()),
            reset_control: reset_control.as_deref().map(|device| lock(device).save()),
            clock: clock.as_deref().map(|device| lock(device).save()),
        }
    }

    /// Goes on from what was saved, but for the serial port.
    ///
    /// # Errors
    /// When it is of another machine, or none that these devices can be in.
    pub fn restore(&self, state: &FixedState) -> Result<(), Refused> {
        let FixedDevices {
            serial,
            reset_control,
            clock,
        } = self;
        let same = serial.is_some() == state.serial.is_some()
            && reset_control.is_some() == state.reset_control.is_some()
            && clock.is_some() == state.clock.is_some();
        Refused::unless(same, "the number of devices")?;
        if let (Some(device), Some(value)) = (reset_control, state.reset_control) {
            lock(device).restore(value);
        }
        if let (Some(device), Some(state)) = (clock, &state.clock) {
            lock(device).restore(state)?;
        }
        Ok(())
    }
}

/// A device whose user panicked is still a device.
fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
