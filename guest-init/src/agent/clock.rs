//! The wall clock.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::failed;
use crate::proto::Failure;

/// Sets the clock to `nanoseconds` since 1970 (UTC).
pub fn set(nanoseconds: u64) -> Result<(), Failure> {
    let time = TimeSpec::from_duration(std::time::Duration::from_nanos(nanoseconds));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| failed("the clock could not be set", error))
}
