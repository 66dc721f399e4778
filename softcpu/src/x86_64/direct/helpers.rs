//! The helpers of a processor: one for each of the address spaces that it used last.

use std::io;
use std::time::Duration;

use super::helper::{Helper, Stop};
use super::mirror::Mirror;
use super::vectors::Vectors;
use crate::core::interruption::{self, Timer};

/// Instructions of a program that are interpreted after its kernel returned to it, before it runs directly.
/// Entering a helper and leaving it costs as much as some thousand interpreted instructions, and most system
/// calls come after fewer than that. The number follows what a program does.
const BUDGET: std::ops::RangeInclusive<u64> = 512..=1 << 16;
/// Most pages that are mapped at once. Linux allows 65530 mappings (`vm.max_map_count`).
const PAGES: usize = 1 << 15;
/// A helper that ran for less did not pay.
const SHORT: Duration = Duration::from_micros(5);
/// One that ran for longer paid well.
const LONG: Duration = Duration::from_micros(20);

/// A helper and what it holds.
pub(super) struct Slot {
    pub helper: Helper,
    pub mirror: Mirror,
    /// The root of the page tables that it mirrors.
    pub root: Option<u64>,
    /// How far it has followed [`Changes`](crate::core::changes::Changes).
    pub flushes: u64,
    pub dropped: usize,
    pub watches: u64,
    /// Its vector registers, where they are known.
    pub vectors: Option<Vectors>,
    /// The host's processor that it stays on.
    pub processor: i32,
    /// When it was used last.
    used: u64,
    /// See [`BUDGET`].
    budget: u64,
}

/// All of them.
pub(crate) struct Helpers {
    slots: Vec<Slot>,
    clock: u64,
    /// Makes a helper stop when the guest's timer is due.
    timer: Option<Timer>,
    /// What the timer is set to.
    armed: Option<u64>,
    /// The thread that drives them.
    pub(super) thread: i32,
}

impl Helpers {
    pub fn new(helpers: Vec<Helper>) -> Helpers {
        let slot = |helper| Slot {
            helper,
            mirror: Mirror::default(),
            root: None,
            flushes: 0,
            dropped: 0,
            watches: 0,
            vectors: None,
            processor: -1,
            used: 0,
            budget: *BUDGET.start() * 4,
        };
        Helpers {
            slots: helpers.into_iter().map(slot).collect(),
            clock: 0,
            timer: None,
            armed: None,
            thread: 0,
        }
    }

    /// How many instructions the program with these page tables is interpreted for.
    pub fn budget(&self, root: u64) -> u64 {
        self.known(root).map_or(*BUDGET.start() * 4, |slot| slot.budget)
    }

    /// The same after an exception, whose handling has cost less.
    pub(super) fn budget_after_exception(&self, root: u64) -> u64 {
        self.budget(root) / 16
    }

    fn known(&self, root: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.root == Some(root))
    }

    /// The helper for these page tables: the one that has them, or the one that was not used for longest.
    pub(super) fn choose(&mut self, root: u64) -> io::Result<Option<&mut Slot>> {
        if self.timer.is_none() {
            self.timer = Some(Timer::new()?);
            self.thread = interruption::this_thread();
        }
        self.clock += 1;
        let clock = self.clock;
        let found = self.slots.iter().position(|slot| slot.root == Some(root));
        let oldest = || {
            let all = self.slots.iter().enumerate();
            all.min_by_key(|(_, slot)| slot.used).map(|(index, _)| index)
        };
        let Some(index) = found.or_else(oldest) else {
            return Ok(None);
        };
        let slot = &mut self.slots[index];
        slot.helper.attach()?;
        slot.used = clock;
        if slot.root != Some(root) {
            slot.budget = *BUDGET.start() * 4;
            slot.root = Some(root);
            slot.clear()?;
        }
        if slot.mirror.len() > PAGES {
            slot.clear()?;
        }
        Ok(Some(slot))
    }

    /// Lets helpers be stopped when the guest's timer is due: at `deadline`, which is `left` nanoseconds ahead.
    pub(super) fn arm(&mut self, deadline: Option<u64>, left: u64) {
        if deadline.is_some()
            && deadline != self.armed
            && let Some(timer) = &self.timer
        {
            timer.arm(left);
        }
        self.armed = deadline;
    }
}

impl Slot {
    /// Forgets everything.
    pub fn clear(&mut self) -> io::Result<()> {
        self.mirror.clear();
        self.vectors = None;
        self.helper.clear()
    }

    /// Learns from how long it ran and why it stopped.
    pub fn learn(&mut self, time: Duration, stop: Stop) {
        if time > LONG {
            self.budget = (self.budget / 2).max(*BUDGET.start());
        } else if time < SHORT && stop != Stop::Interrupted {
            self.budget = (self.budget * 2).min(*BUDGET.end());
        }
    }
}
