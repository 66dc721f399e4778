//! Time as the processor sees it: the time stamp counter, when to look at timers, and HLT.

use std::time::Duration;

use crate::core::clock::{CHECK_EVERY, CHECK_IDLE, Clock, POLL_EVERY, POLL_SLEEP};
use crate::x86_64::cpu::Cpu;

impl Cpu {
    /// Nanoseconds since the machine was made, `ahead` instructions after the last block boundary.
    pub(crate) fn now(&self, ahead: u64) -> u64 {
        match self.platform.processors.clock {
            Clock::Host => self.platform.elapsed().as_nanos() as u64,
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
        let next = match self.platform.processors.clock {
            Clock::Host if deadline.is_some() => self.retired + CHECK_EVERY,
            Clock::Host => self.retired + CHECK_IDLE,
            Clock::Instructions => {
                let next = deadline.map_or(self.time.next_poll, |at| at.min(self.time.next_poll));
                self.retired + next.saturating_sub(self.now(0)).max(1)
            }
        };
        next.min(self.limit).min(self.direct_at)
    }

    /// Polls devices if it is time to, and returns whether something came.
    pub(crate) fn poll_if_due(&mut self) -> bool {
        if self.platform.processors.clock != Clock::Instructions || self.now(0) < self.time.next_poll {
            return false;
        }
        self.time.next_poll = self.now(0) + POLL_EVERY;
        self.with_bus(|bus| bus.poll());
        self.mailbox.has_events()
    }

    /// Sleeps until an interrupt or request comes, or the timer is due.
    pub(crate) fn halt(&mut self) {
        let deadline = self.apic.deadline();
        if self.platform.processors.clock == Clock::Host {
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
