//! When it pays to run a program directly.
//!
//! Entering a helper and leaving it costs as much as some thousand interpreted instructions, and a helper for
//! an address space that changes all the time costs more. Nobody can know what a program does next, so this
//! follows what its address space did last: the time that helpers ran for against the time that it took to
//! get there.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Instructions of a program that are interpreted after its kernel returned to it, before it runs directly:
/// most system calls come after fewer.
const BUDGET: RangeInclusive<u64> = 512..=1 << 16;
const FIRST_BUDGET: u64 = 2048;
/// Instructions that are interpreted in all before an address space has a helper: most processes that a shell
/// starts end before. More of them where address spaces did not pay that had a helper.
const TRIAL: RangeInclusive<u64> = 100_000..=1 << 22;
/// How many times faster than interpreted a program runs directly, with care.
const SPEEDUP: u32 = 8;
/// Interpreted instructions in a microsecond, about.
const INSTRUCTIONS_PER_MICROSECOND: u64 = 150;
/// What does not pay is tried again after so many times its cost, doubled with each time: then little is lost.
const PAUSE: u64 = 4;
const MOST_FAILURES: u32 = 5;
/// The longest pause, but for what a single try cost: programs change, too.
const LONGEST_PAUSE: u64 = 1 << 22;
/// Address spaces that are remembered.
const SPACES: usize = 32;

/// When programs run directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Where it pays, which depends on the host's clock.
    #[default]
    Pays,
    /// Soon after each return of the kernel, whether it pays or not.
    Always,
}

/// An address space, known by the root of its page tables.
#[derive(Clone, Copy, Debug)]
struct Space {
    root: u64,
    /// See [`BUDGET`].
    budget: u64,
    /// The number of instructions before which it is not tried again.
    not_before: u64,
    /// Tries in a row that did not pay.
    failures: u32,
    /// Whether one ever paid.
    paid: bool,
}

/// What is known of the address spaces of a processor.
#[derive(Debug)]
pub(super) struct Policy {
    /// The last one first.
    spaces: Vec<Space>,
    /// See [`TRIAL`].
    trial: u64,
    when: When,
}

impl Policy {
    pub fn new(when: When) -> Policy {
        Policy {
            spaces: Vec::new(),
            trial: *TRIAL.start(),
            when,
        }
    }

    /// The number of instructions at which a program may run directly that its kernel returns to now, at
    /// `retired`.
    pub fn plan(&mut self, root: u64, retired: u64) -> u64 {
        if self.when == When::Always {
            return retired + BUDGET.start();
        }
        let space = self.space(root, retired);
        (retired + space.budget).max(space.not_before)
    }

    /// The same after an exception, whose handling has cost less than a system call.
    pub fn plan_after_exception(&mut self, root: u64, retired: u64) -> u64 {
        if self.when == When::Always {
            return retired;
        }
        let space = self.space(root, retired);
        (retired + space.budget / 16).max(space.not_before)
    }

    /// Learns from a try: a helper ran for `direct`, and all else that was done for it took `cost`.
    pub fn learn(&mut self, root: u64, retired: u64, direct: Duration, cost: Duration) {
        let space = self.space(root, retired);
        if direct * SPEEDUP >= cost {
            space.failures = 0;
            space.not_before = 0;
            space.budget = (space.budget / 2).max(*BUDGET.start());
            if !std::mem::replace(&mut space.paid, true) {
                self.trial = (self.trial / 2).max(*TRIAL.start());
            }
            return;
        }
        let lost = (cost - direct * SPEEDUP).as_micros() as u64 * INSTRUCTIONS_PER_MICROSECOND;
        space.budget = (space.budget * 2).min(*BUDGET.end());
        let least = lost * PAUSE;
        let pause = least.max((least << space.failures).min(LONGEST_PAUSE));
        space.not_before = space.not_before.max(retired + pause);
        space.failures = (space.failures + 1).min(MOST_FAILURES);
    }

    /// Another process has this root now.
    pub fn renew(&mut self, root: u64, retired: u64) {
        if let Some(index) = self.spaces.iter().position(|space| space.root == root) {
            let old = self.spaces.remove(index);
            self.forget(&old);
        }
        self.space(root, retired);
    }

    /// Takes leave of an address space: where nothing paid in it, the next ones are tried later.
    fn forget(&mut self, space: &Space) {
        if space.failures > 0 && !space.paid {
            self.trial = (self.trial * 2).min(*TRIAL.end());
        }
    }

    fn space(&mut self, root: u64, retired: u64) -> &mut Space {
        let found = self.spaces.iter().position(|space| space.root == root);
        match found {
            Some(0) => {}
            Some(index) => self.spaces[..=index].rotate_right(1),
            None => {
                if self.spaces.len() == SPACES
                    && let Some(oldest) = self.spaces.pop()
                {
                    self.forget(&oldest);
                }
                let space = Space {
                    root,
                    budget: FIRST_BUDGET,
                    not_before: retired + self.trial,
                    failures: 0,
                    paid: false,
                };
                self.spaces.insert(0, space);
            }
        }
        &mut self.spaces[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(1);
    const LONG: Duration = Duration::from_micros(100);
    const TRIAL: u64 = *super::TRIAL.start();

    #[test]
    fn what_pays_is_tried_sooner_and_what_does_not_later() {
        let mut policy = Policy::new(When::Pays);
        let root = 0x1000;
        assert_eq!(policy.plan(root, 0), TRIAL);
        assert_eq!(policy.plan(root, TRIAL), TRIAL + FIRST_BUDGET);
        policy.learn(root, TRIAL, LONG, LONG);
        assert_eq!(policy.plan(root, TRIAL), TRIAL + FIRST_BUDGET / 2);
        for _ in 0..10 {
            policy.learn(root, TRIAL, LONG, LONG);
        }
        assert_eq!(policy.plan(root, TRIAL), TRIAL + BUDGET.start());
        let mut now = TRIAL;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            policy.learn(root, now, SHORT, LONG);
            let next = policy.plan(root, now);
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.is_sorted() && pauses[9] == pauses[8], "{pauses:?}");
        // A try that does not pay is a small part of all.
        assert!(pauses[0] >= 80 * INSTRUCTIONS_PER_MICROSECOND * PAUSE);
        policy.learn(root, now, LONG, LONG);
        assert!(policy.plan(root, now) <= now + BUDGET.end());
    }

    #[test]
    fn address_spaces_are_known_apart_and_the_oldest_is_forgotten() {
        let mut policy = Policy::new(When::Pays);
        for root in 0..SPACES as u64 {
            policy.plan(root, 0);
        }
        policy.plan(0, 0);
        policy.plan(1000, 0);
        assert_eq!(policy.plan(0, TRIAL), TRIAL + FIRST_BUDGET);
        assert_eq!(policy.plan(1, TRIAL), 2 * TRIAL);
        assert_eq!(policy.spaces.len(), SPACES);
    }

    #[test]
    fn processes_that_end_before_it_pays_let_the_next_ones_wait() {
        let mut policy = Policy::new(When::Pays);
        let trial = |policy: &mut Policy, root| policy.plan(root, 0).max(FIRST_BUDGET);
        assert_eq!(trial(&mut policy, 1), TRIAL);
        // One that was never tried says nothing.
        policy.renew(1, 0);
        assert_eq!(trial(&mut policy, 1), TRIAL);
        for doubled in 1..=3 {
            policy.learn(1, 0, SHORT, LONG);
            policy.renew(1, 0);
            assert_eq!(trial(&mut policy, 1), TRIAL << doubled);
        }
        policy.learn(1, 0, LONG, LONG);
        policy.renew(1, 0);
        assert_eq!(trial(&mut policy, 1), TRIAL << 2);
        for root in 2..100 {
            policy.plan(root, 0);
            policy.learn(root, 0, SHORT, LONG);
        }
        assert_eq!(trial(&mut policy, 100), *super::TRIAL.end());
    }
}
