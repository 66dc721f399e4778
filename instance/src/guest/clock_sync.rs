//! Corrects the guest's date after the host slept, after the host's clock was set, and after the guest was
//! stopped for long.
//!
//! Guests measure time by the host's monotonic clock or the processor's counter. Neither counts a sleep of
//! the host, and a kernel that has not read its counter for many minutes may compute the time wrongly. The
//! guest's monotonic clocks are not changed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_init::proto::Request;

use crate::guest::agent;
use crate::process::instance_process::InstanceProcess;
use crate::{Error, Result};
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::Determinism;

/// Between two looks at the clocks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The date may move so far against the monotonic clock: less than what is promised to guests, more than what
/// adjusting takes in an hour.
const MOVED: Duration = Duration::from_millis(20);
/// This process was stopped when a look comes so much too late, or the host was busy: then it does no harm.
const STOPPED: Duration = Duration::from_secs(60);

/// Starts to look after the clock of the guest of `process`, for as long as the process lives.
pub fn start(process: &Arc<InstanceProcess>) -> Result<()> {
    let process = Arc::clone(process);
    sandbox::spawn("clock", Kind::Control, move || {
        let mut watch = Watch::new(Clocks::now());
        let mut paused = false;
        while let Some(now_paused) = process.wait_for_pause(paused, LOOK_EVERY) {
            let resumed = paused && !now_paused;
            paused = now_paused;
            watch.look(Clocks::now(), resumed);
            if watch.due && !paused && (!process.record().ready || follow(&process)) {
                watch.done(Clocks::now());
            }
        }
    })
    .map(drop)
    .map_err(Error::os("starting a thread"))
}

/// Has the agent set the guest's clock. One that is not there yet does so when it comes.
fn follow(process: &InstanceProcess) -> bool {
    let nanoseconds = || u64::try_from(Clocks::now().date.as_nanos()).unwrap_or(u64::MAX);
    let ask = |request| agent::request(process.directory(), &Determinism::default(), &request).map(drop);
    // The agent of an older image knows the second request only.
    let asked = ask(Request::FollowClock {
        nanoseconds: nanoseconds(),
    })
    .or_else(|_| {
        ask(Request::SetClock {
            nanoseconds: nanoseconds(),
        })
    });
    asked
        .inspect_err(|error| tracing::debug!(%error, "the guest's clock is not set"))
        .is_ok()
}

/// The host's clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    /// Since 1970.
    date: Duration,
    /// Does not count the host's sleep.
    monotonic: Instant,
}

impl Clocks {
    fn now() -> Clocks {
        Clocks {
            date: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            monotonic: Instant::now(),
        }
    }
}

/// Compares the clocks.
struct Watch {
    /// When the guest's clock was right.
    right: Clocks,
    looked: Instant,
    /// The guest's clock has to be set.
    due: bool,
}

impl Watch {
    fn new(now: Clocks) -> Watch {
        Watch {
            right: now,
            looked: now.monotonic,
            due: false,
        }
    }

    fn look(&mut self, now: Clocks, resumed: bool) {
        let passed = now.monotonic.saturating_duration_since(self.right.monotonic);
        let moved = now.date.abs_diff(self.right.date + passed);
        let late = now.monotonic.saturating_duration_since(self.looked);
        self.due |= resumed || moved > MOVED || late > STOPPED;
        self.looked = now.monotonic;
    }

    fn done(&mut self, now: Clocks) {
        *self = Watch::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_a_set_clock_and_a_long_stop_are_noticed_once() {
        let start = Clocks::now();
        let at = |monotonic: u64, date: i64| Clocks {
            monotonic: start.monotonic + Duration::from_millis(monotonic),
            date: Duration::from_millis((start.date.as_millis() as i64 + date) as u64),
        };
        let hour = 3_600_000;
        for (what, steps, due) in [
            ("time passes", &[(2_000, 2_000), (4_010, 4_010)][..], false),
            (
                "the clock is adjusted by 5 ppm",
                &[(2_000, 2_000), (50_000, 50_001)],
                false,
            ),
            (
                "the host slept for an hour",
                &[(2_000, 2_000), (4_000, 4_000 + hour)],
                true,
            ),
            ("the clock was set back", &[(2_000, 1_000)], true),
            (
                "it is adjusted until that counts",
                &[(50_000, 50_015), (100_000, 100_030)],
                true,
            ),
            (
                "the process was stopped",
                &[(2_000, 2_000), (62_001, 62_001)],
                true,
            ),
        ] {
            let mut watch = Watch::new(at(0, 0));
            for &(monotonic, date) in steps {
                watch.look(at(monotonic, date), false);
            }
            assert_eq!(watch.due, due, "{what}");
            let &(monotonic, date) = steps.last().unwrap();
            watch.done(at(monotonic, date));
            watch.look(at(monotonic + 2_000, date + 2_000), false);
            assert!(!watch.due, "{what}: once");
        }
        let mut watch = Watch::new(start);
        watch.look(start, true);
        assert!(watch.due, "it stood still");
    }
}
