//! Time: one tick of the time stamp counter, of the APIC timer and of the paravirtual clock is one nanosecond.

use std::time::Duration;

use crate::state::Cpu;

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
const CHECK_EVERY: u64 = 4096;
/// Instructions between two looks where only the clock could be of interest to nobody.
const CHECK_IDLE: u64 = 1 << 20;

/// A processor's view of time.
#[derive(Debug, Default)]
pub(crate) struct Time {
    /// What WRMSR to the time stamp counter added.
    pub offset: u64,
    /// Nanoseconds that HLT skipped, where instructions are time.
    pub skipped: u64,
}

impl Cpu {
    /// Nanoseconds since the machine was made, `ahead` instructions after the last block boundary.
    pub(crate) fn now(&self, ahead: u64) -> u64 {
        match self.platform.clock {
            Clock::Host => self.platform.start.elapsed().as_nanos() as u64,
            Clock::Instructions => self.retired + ahead + self.time.skipped,
        }
    }

    /// The time stamp counter.
    pub(crate) fn tsc(&self, ahead: u64) -> u64 {
        self.now(ahead).wrapping_add(self.time.offset)
    }

    /// When the loop has to look at the timer again.
    pub(crate) fn next_check(&self) -> u64 {
        let Some(deadline) = self.apic.deadline() else {
            return self.retired + CHECK_IDLE;
        };
        match self.platform.clock {
            Clock::Host => self.retired + CHECK_EVERY,
            Clock::Instructions => self.retired + deadline.saturating_sub(self.now(0)).clamp(1, CHECK_IDLE),
        }
    }

    /// Sleeps until an interrupt or request comes, or the timer is due.
    pub(crate) fn halt(&mut self) {
        let deadline = self.apic.deadline();
        let now = self.now(0);
        match (self.platform.clock, deadline) {
            (Clock::Instructions, Some(deadline)) => {
                if !self.mailbox.has_events() {
                    self.time.skipped += deadline.saturating_sub(now);
                }
            }
            (_, deadline) => {
                let limit = deadline.map(|at| Duration::from_nanos(at.saturating_sub(now)));
                if limit != Some(Duration::ZERO) {
                    self.mailbox.sleep(limit);
                }
            }
        }
    }
}
