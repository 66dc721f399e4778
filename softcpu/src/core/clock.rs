//! Time: one tick of the time stamp counter, of the APIC timer and of the paravirtual clock is one
//! nanosecond.

use std::time::Duration;

/// What time follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The host's monotonic clock.
    #[default]
    Host,
    /// Retired instructions: each takes a nanosecond, and HLT jumps to the next timer. A machine with one
    /// processor then repeats itself exactly.
    Instructions,
}

/// Ticks of every clock in a second.
pub(crate) const HERTZ: u64 = 1_000_000_000;
/// Instructions between two looks at the host's clock while a timer is armed.
pub(crate) const CHECK_EVERY: u64 = 4096;
/// Instructions between two looks where only the clock could be of interest to nobody.
pub(crate) const CHECK_IDLE: u64 = 1 << 20;

/// Nanoseconds between two calls of [`Bus::poll`](crate::Bus::poll): a millisecond, so that input is prompt
/// and asking for it is rare.
pub(crate) const POLL_EVERY: u64 = 1 << 20;
/// How long a processor that waits for input alone sleeps before it asks again.
pub(crate) const POLL_SLEEP: Duration = Duration::from_millis(1);

/// A processor's view of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Time {
    /// When devices are polled next, where instructions are time.
    pub next_poll: u64,
    /// What WRMSR to the time stamp counter added.
    pub offset: u64,
    /// Nanoseconds that HLT skipped, where instructions are time.
    pub skipped: u64,
}

impl Time {
    /// No machine's time gets here, in nanoseconds: 73 years.
    pub const MOST: u64 = 1 << 61;

    /// Whether times can be added without overflow.
    pub fn is_valid(&self) -> bool {
        let Time {
            next_poll,
            offset: _,
            skipped,
        } = self;
        *next_poll < Time::MOST && *skipped < Time::MOST
    }
}
