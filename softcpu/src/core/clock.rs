//! Time: one tick of the time stamp counter, of the APIC timer and of the paravirtual clock is one nanosecond.

use std::time::Duration;

use crate::x86_64::state::Cpu;

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

/// Nanoseconds between two calls of [`Bus::poll`](crate::Bus::poll): a millisecond, so that input is prompt and asking for it
/// is rare.
const POLL_EVERY: u64 = 1 << 20;
/// How long a processor that waits for input alone sleeps before it asks again.
const POLL_SLEEP: Duration = Duration::from_millis(1);

/// A processor's view of time.
#[derive(Debug, Default)]
pub(crate) struct Time {
    /// When devices are polled next, where instructions are time.
    pub next_poll: u64,
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
        let deadline = self.apic.deadline();
        let next = match self.platform.clock {
            Clock::Host if deadline.is_some() => self.retired + CHECK_EVERY,
            Clock::Host => self.retired + CHECK_IDLE,
            Clock::Instructions => {
                let next = deadline.map_or(self.time.next_poll, |at| at.min(self.time.next_poll));
                self.retired + next.saturating_sub(self.now(0)).max(1)
            }
        };
        next.min(self.limit)
    }

    /// Polls devices if it is time to, and answers whether something came.
    pub(crate) fn poll_if_due(&mut self) -> bool {
        if self.platform.clock != Clock::Instructions || self.now(0) < self.time.next_poll {
            return false;
        }
        self.time.next_poll = self.now(0) + POLL_EVERY;
        self.with_bus(|bus| bus.poll());
        self.mailbox.has_events()
    }

    /// Sleeps until an interrupt or request comes, or the timer is due.
    pub(crate) fn halt(&mut self) {
        let deadline = self.apic.deadline();
        if self.platform.clock == Clock::Host {
            let limit = deadline.map(|at| Duration::from_nanos(at.saturating_sub(self.now(0))));
            if limit != Some(Duration::ZERO) {
                self.mailbox.sleep(limit);
            }
            return;
        }
        // A device brings in what came from outside before time jumps past it.
        self.with_bus(|bus| bus.poll());
        if self.mailbox.has_events() {
            return;
        }
        match deadline {
            Some(deadline) => self.time.skipped += deadline.saturating_sub(self.now(0)),
            // Only input can wake it; what is asked for again and again is not time.
            None => self.mailbox.sleep(Some(POLL_SLEEP)),
        }
    }
}
