//! Where instructions are spent: exact counts by function and by the calls that led to it.
//!
//! Kernels are built without frame pointers, so calls are followed as they happen. A frame is known by the
//! address of its return address: it is gone once the stack pointer is above it, however that came about (a
//! return, an exception's return, a discarded stack). Each kernel stack has frames of its own,
//! found again when the stack pointer comes back to it; an interrupt's handler is called by what it
//! interrupts.

use std::collections::HashMap;
use std::sync::Arc;

/// Most call paths, pairs of a call path and a function, and blocks whose function is remembered; what comes
/// later is counted as unknown (address 0). Bounds host memory to about 150 MiB. A boot of Linux has 200
/// thousand pairs.
const MOST: usize = 1 << 20;
/// Frames of one stack that are followed; deeper calls count for the last.
const DEEPEST: usize = 128;
/// Stacks that are remembered; beyond it all are forgotten, and with them who called.
const MOST_STACKS: usize = 4096;
/// Size and alignment of a kernel stack (Linux, Documentation/arch/x86/kernel-stacks.rst).
const STACK: u64 = 16 << 10;

/// A call path: a function called by the one at the end of another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    caller: u32,
    function: u64,
}

/// The path that stands for "nobody known called it".
const ROOT: u32 = 0;

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its return address lies.
    slot: u64,
    path: u32,
}

/// What is known before a block runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// Its instruction pointer.
    pub rip: u64,
    /// Instructions retired.
    pub retired: u64,
    /// Its instructions are a program's, not the kernel's.
    pub user: bool,
}

/// Instructions by call path and function.
#[derive(Debug)]
pub struct Profile {
    /// Where functions begin, in order.
    functions: Arc<[u64]>,
    /// The function of each block seen.
    by_block: HashMap<u64, u64>,
    paths: Vec<Path>,
    by_path: HashMap<(u32, u64), u32>,
    counts: HashMap<(u32, u64), u64>,
    user: u64,
    frames: Vec<Frame>,
    /// The stack that `frames` belong to.
    stack: u64,
    others: HashMap<u64, Vec<Frame>>,
    /// Where the last block went on; anything else was entered by an exception or interrupt.
    expected: u64,
}

impl Profile {
    /// An empty one. `functions` are the addresses at which functions begin, in order; each ends where the
    /// next begins.
    pub(crate) fn new(functions: Arc<[u64]>) -> Profile {
        Profile {
            functions,
            by_block: HashMap::new(),
            paths: vec![Path {
                caller: ROOT,
                function: 0,
            }],
            by_path: HashMap::new(),
            counts: HashMap::new(),
            user: 0,
            frames: Vec::new(),
            stack: 0,
            others: HashMap::new(),
            expected: 0,
        }
    }

    /// To be called before each block, with the stack pointer.
    pub(crate) fn before(&mut self, before: Before, sp: u64) {
        if !before.user {
            self.look_at(sp);
            if before.rip != self.expected {
                self.enter(before.rip, sp);
            }
        }
    }

    /// To be called after each block, with what it came to: its last instruction may have been a call.
    pub(crate) fn after(&mut self, before: Before, after: Before, called: bool, sp: u64) {
        self.expected = after.rip;
        let spent = after.retired - before.retired;
        if before.user {
            self.user += spent;
            return;
        }
        self.count(before.rip, spent);
        if called {
            self.look_at(sp);
            self.enter(after.rip, sp);
        }
    }

    /// Instructions at privilege level 3.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Instructions in all.
    pub fn total(&self) -> u64 {
        self.user + self.counts.values().sum::<u64>()
    }

    /// Each distinct path with its instructions outside of privilege level 3: the entry points of the
    /// functions called, outermost first, then the start of the one that retired the instructions (0 where it
    /// is not known).
    pub fn stacks(&self) -> impl Iterator<Item = (Vec<u64>, u64)> {
        self.counts.iter().map(|(&(path, function), &count)| {
            let mut addresses = vec![function];
            let mut at = path;
            while at != ROOT {
                let Path { caller, function } = self.paths[at as usize];
                addresses.push(function);
                at = caller;
            }
            addresses.reverse();
            (addresses, count)
        })
    }

    fn current(&self) -> u32 {
        self.frames.last().map_or(ROOT, |frame| frame.path)
    }

    /// Makes `frames` those of the stack at `sp`, without the ones that are gone.
    fn look_at(&mut self, sp: u64) {
        // A user's stack pointer while the kernel's entry code runs says nothing.
        if sp >> 63 == 0 {
            return;
        }
        let stack = sp.wrapping_sub(1) / STACK;
        if stack != self.stack {
            if self.others.len() >= MOST_STACKS {
                self.others.clear();
            }
            let left = std::mem::replace(&mut self.frames, self.others.remove(&stack).unwrap_or_default());
            if !left.is_empty() {
                self.others.insert(self.stack, left);
            }
            self.stack = stack;
        }
        while self.frames.last().is_some_and(|frame| frame.slot < sp) {
            self.frames.pop();
        }
    }

    fn enter(&mut self, function: u64, slot: u64) {
        if self.frames.len() >= DEEPEST {
            return;
        }
        let caller = self.current();
        let paths = &mut self.paths;
        let path = match self.by_path.get(&(caller, function)) {
            Some(path) => *path,
            None if paths.len() >= MOST => caller,
            None => {
                paths.push(Path { caller, function });
                let path = (paths.len() - 1) as u32;
                self.by_path.insert((caller, function), path);
                path
            }
        };
        self.frames.push(Frame { slot, path });
    }

    fn count(&mut self, block: u64, instructions: u64) {
        let function = match self.by_block.get(&block) {
            Some(function) => *function,
            None => {
                let after = self.functions.partition_point(|start| *start <= block);
                let function = after.checked_sub(1).map_or(0, |at| self.functions[at]);
                if self.by_block.len() < MOST {
                    self.by_block.insert(block, function);
                }
                function
            }
        };
        let key = (self.current(), function);
        let known = self.counts.len() < MOST || self.counts.contains_key(&key);
        *self
            .counts
            .entry(if known { key } else { (ROOT, 0) })
            .or_default() += instructions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 0xffff_c900_0000_4000;

    fn profile() -> Profile {
        Profile::new([1, 2, 7, 10, 50].into())
    }

    fn stacks(profile: &Profile) -> Vec<(Vec<u64>, u64)> {
        let mut all: Vec<_> = profile.stacks().collect();
        all.sort();
        all
    }

    #[test]
    fn a_callers_frame_lasts_until_the_stack_pointer_is_above_it() {
        let mut profile = profile();
        profile.look_at(TOP);
        profile.enter(1, TOP - 8);
        profile.look_at(TOP - 64);
        profile.enter(2, TOP - 72);
        profile.count(3, 5);
        profile.look_at(TOP - 64);
        profile.count(10, 3);
        profile.look_at(TOP);
        profile.count(7, 1);
        assert_eq!(
            stacks(&profile),
            [(vec![1, 2, 2], 5), (vec![1, 10], 3), (vec![7], 1)]
        );
        assert_eq!(profile.total(), 9);
    }

    #[test]
    fn each_stack_has_its_frames() {
        let mut profile = profile();
        profile.look_at(TOP);
        profile.enter(1, TOP - 8);
        profile.look_at(TOP + STACK - 8);
        profile.count(50, 1);
        profile.look_at(TOP - 16);
        profile.count(10, 1);
        assert_eq!(stacks(&profile), [(vec![1, 10], 1), (vec![50], 1)]);
    }

    #[test]
    fn recursion_without_end_is_bounded() {
        let mut profile = profile();
        for depth in 1..=2000 {
            let sp = TOP - 8 * depth;
            profile.look_at(sp);
            profile.enter(1, sp);
        }
        profile.count(1, 1);
        assert_eq!(stacks(&profile)[0].0.len(), DEEPEST + 1);
    }
}
