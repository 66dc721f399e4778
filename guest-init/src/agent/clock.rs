//! The wall clock.
#![allow(unsafe_code)]

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::failed;
use crate::proto::Failure;

/// The host's time since 1970; `None` where the host gives none.
pub type HostTime = dyn Fn() -> Option<Duration> + Send + Sync;

/// A difference that is left alone: less than what a program could notice.
const SMALL: Duration = Duration::from_millis(1);
/// A reading of the host's clock between two of ours that lie so far apart at most is exact enough.
const CLOSE: Duration = Duration::from_millis(1);
/// Readings, should none be exact enough: a virtual processor that has to wait for a real one.
const READINGS: usize = 10;

/// Sets the clock to `nanoseconds` since 1970 (UTC).
pub fn set(nanoseconds: u64) -> Result<(), Failure> {
    let time = TimeSpec::from_duration(Duration::from_nanos(nanoseconds));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| failed("the clock could not be set", error))
}

/// Sets the clock to the host's. The monotonic clocks go on as they are. `false` where the host gives no
/// time.
pub fn follow(host: &HostTime) -> Result<bool, Failure> {
    let ours = || {
        let now = clock_gettime(ClockId::CLOCK_REALTIME);
        now.map_or(Duration::ZERO, Duration::from)
    };
    let Some(ahead) = measure(host, &ours) else {
        return Ok(false);
    };
    if ahead.unsigned_abs() >= SMALL.as_nanos() as u64 {
        step(ahead).map_err(|error| failed("the clock could not be set", error))?;
    }
    Ok(true)
}

/// By how many nanoseconds the host is ahead of us, by the reading that lies closest between two of ours.
fn measure(host: &dyn Fn() -> Option<Duration>, ours: &dyn Fn() -> Duration) -> Option<i64> {
    let mut best: Option<(Duration, i64)> = None;
    let mut before = ours();
    for _ in 0..READINGS {
        let theirs = host()?;
        let after = ours();
        let apart = after.saturating_sub(before);
        let middle = before + apart / 2;
        let ahead = theirs.as_nanos() as i128 - middle.as_nanos() as i128;
        if best.is_none_or(|(least, _)| apart < least) {
            best = Some((apart, i64::try_from(ahead).ok()?));
        }
        if apart <= CLOSE {
            break;
        }
        before = after;
    }
    best.map(|(_, ahead)| ahead)
}

/// Moves the clock by `nanoseconds` in one step, whatever time passes meanwhile (adjtimex(2)).
fn step(nanoseconds: i64) -> std::io::Result<()> {
    const NANOS: i64 = 1_000_000_000;
    // SAFETY: a timex is numbers only, for which zero is valid.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    change.time.tv_sec = nanoseconds.div_euclid(NANOS) as libc::time_t;
    change.time.tv_usec = nanoseconds.rem_euclid(NANOS) as libc::suseconds_t;
    // SAFETY: `change` is a timex that lives until the call returns.
    if unsafe { libc::adjtimex(&mut change) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Measures against a host that is 3.2 s ahead of a clock that takes `steps` milliseconds between its
    /// readings.
    fn measured(steps: &[u64]) -> Option<i64> {
        let (now, reading) = (Cell::new(Duration::from_secs(1_800_000_000)), Cell::new(0));
        let pass = |share: u64| {
            let step = steps[reading.get().min(steps.len() - 1)];
            now.set(now.get() + Duration::from_micros(step * share));
        };
        let ours = || now.get();
        let host = || {
            // The host is asked at a third of the step.
            pass(333);
            let theirs = now.get() + Duration::from_millis(3200);
            pass(667);
            reading.set(reading.get() + 1);
            Some(theirs)
        };
        measure(&host, &ours)
    }

    #[test]
    fn the_closest_of_several_readings_is_used() {
        for (steps, error) in [
            (&[0][..], 0),
            (&[1], 1),
            // The processor was away at first.
            (&[900, 500, 1], 1),
            // It always is: the best of all.
            (&[900, 500, 60, 700, 800, 900, 900, 900, 900, 900], 60),
        ] {
            let ahead = measured(steps).unwrap();
            let off = (ahead - 3_200_000_000).unsigned_abs();
            assert!(off <= error * 1_000_000 / 2, "{steps:?}: {off} ns");
        }
    }

    #[test]
    fn a_host_without_a_time_changes_no_clock() {
        assert_eq!(measure(&|| None, &|| Duration::ZERO), None);
        assert!(!follow(&|| None).unwrap());
    }
}
