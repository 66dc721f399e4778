//! The clock that a network's time-outs are measured on.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gives the time since some fixed moment, and never goes back. All parts of a network share one, so that a
/// test can let hours pass at once.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The host's monotonic clock.
    pub fn monotonic() -> Clock {
        let start = Instant::now();
        Clock::new(move || start.elapsed())
    }

    /// A clock that `read` reads.
    pub fn new(read: impl Fn() -> Duration + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(read))
    }

    /// The time.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// Whole milliseconds, rounded up: who waits for as long does not wake too early.
pub(crate) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
