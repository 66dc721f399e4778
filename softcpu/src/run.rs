//! The loop that runs blocks, and what happens between them.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::bus::Bus;
use crate::exception::{Fault, Source, vector};
use crate::flags::rflag;
use crate::op::{Op, REG_BLOCK, SEG_FLAT, Stop};
use crate::ram::PAGE_MASK;
use crate::state::{Cpu, reg};

/// Why [`Cpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A device answered [`Answer::Stop`](crate::bus::Answer::Stop).
    Stopped,
    /// Another thread asked for it.
    Kicked,
    /// Triple fault.
    Shutdown,
}

impl Cpu {
    /// Runs until something stops the processor. HLT sleeps inside.
    pub fn run(&mut self, bus: &mut dyn Bus) -> Exit {
        // SAFETY: only the lifetime changes; `bus` is cleared before this function returns.
        let bus: &mut (dyn Bus + 'static) = unsafe { std::mem::transmute(bus) };
        self.bus = Some(NonNull::from(bus));
        let exit = if self.profile.is_some() {
            self.run_blocks::<true>()
        } else {
            self.run_blocks::<false>()
        };
        self.bus = None;
        exit
    }

    fn run_blocks<const PROFILE: bool>(&mut self) -> Exit {
        self.check_at = 0;
        loop {
            if (self.retired >= self.check_at || self.mailbox.has_events())
                && let Some(exit) = self.attend()
            {
                return exit;
            }
            if self.rflags & rflag::TF != 0 {
                self.step();
                continue;
            }
            match self.find_block() {
                Ok(index) => {
                    let block = &self.cache.blocks[index];
                    let (ops, count, page) = (block.ops.first(), block.count, block.phys & PAGE_MASK);
                    self.code_page = page;
                    let before = (self.rip, self.retired);
                    self.run_ops(ops, count);
                    if PROFILE {
                        self.profile_block(before.0, before.1);
                    }
                }
                Err(_) => self.deliver_fault(),
            }
        }
    }

    /// Runs the operations of a block.
    #[inline(always)]
    fn run_ops(&mut self, ops: *const Op, count: u32) {
        self.gpr[REG_BLOCK as usize] = self.rip;
        let mut at = ops;
        let stop = loop {
            // SAFETY: the last operation of a block never answers `Ok`, so `at` stays inside; blocks are freed only
            // between blocks.
            let op = unsafe { &*at };
            match (op.run)(self, op) {
                // SAFETY: as above.
                Ok(()) => at = unsafe { at.add(1) },
                Err(stop) => break stop,
            }
        };
        if stop == Stop::Branch {
            self.retired += count as u64;
            return;
        }
        // SAFETY: `at` is inside the block.
        self.interrupted(unsafe { &*at }, stop);
    }

    /// A block ended before its end.
    #[cold]
    #[inline(never)]
    fn interrupted(&mut self, op: &Op, stop: Stop) {
        self.rip = self.ip(op) & self.rip_mask;
        self.retired += op.idx as u64;
        match stop {
            Stop::Fault => {
                self.name_stack_fault(op);
                self.deliver_fault();
            }
            Stop::Replay => self.step(),
            Stop::Branch | Stop::Again => {}
        }
    }

    /// A non-canonical address is #SS where the stack's segment is meant: by a base of RSP or RBP, or by the
    /// stack instructions themselves. `mmu` leaves such an address in the fault.
    fn name_stack_fault(&mut self, op: &Op) {
        let Fault { vector, code, cr2 } = self.fault;
        if vector != vector::GP || code != Some(0) || cr2 == 0 {
            return;
        }
        let stack = [reg::RSP, reg::RBP];
        let meant = if op.has_memory() {
            op.seg == SEG_FLAT && stack.contains(&(op.base as usize))
        } else {
            // Within the reach of one push or pop.
            stack
                .iter()
                .any(|register| self.gpr[*register].abs_diff(cr2) <= 16)
        };
        if meant {
            self.fault.vector = vector::SS;
        }
    }

    /// Runs the one instruction at `rip`, decoded afresh.
    #[cold]
    fn step(&mut self) {
        let trap = self.rflags & rflag::TF != 0;
        match self.decode_single() {
            Ok(block) => {
                let before = self.retired;
                self.alone = true;
                self.run_ops(block.ops.first(), block.count);
                self.alone = false;
                if trap && self.retired != before {
                    self.dr[6] |= 1 << 14;
                    if self.deliver(vector::DB, None, Source::Exception).is_err() {
                        self.deliver_fault();
                    }
                }
            }
            Err(_) => self.deliver_fault(),
        }
    }

    /// Makes the loop look at everything before the next block.
    #[inline]
    pub(crate) fn request_check(&mut self) {
        self.check_at = 0;
    }

    /// Makes `run` come back before the next block.
    pub(crate) fn request_stop(&mut self) {
        self.stop = true;
        self.check_at = 0;
    }

    /// Looks at everything that happens between blocks; sleeps while halted.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Exit> {
        loop {
            if self.shutdown {
                return Some(Exit::Shutdown);
            }
            if std::mem::take(&mut self.stop) {
                return Some(Exit::Stopped);
            }
            if self.take_events() {
                return Some(Exit::Kicked);
            }
            if self.parked {
                self.mailbox.sleep(None);
                continue;
            }
            self.update_timer();
            if std::mem::take(&mut self.shadow) {
                // The instruction after STI or MOV SS runs first.
                self.check_at = 0;
                return None;
            }
            if self.take_interrupt() {
                // Entering the handler may have faulted into shutdown.
                if self.shutdown {
                    continue;
                }
            } else if self.halted {
                self.halt();
                continue;
            }
            self.check_at = self.next_check();
            return None;
        }
    }

    /// Enters the handler of an NMI or interrupt that waits and may come in.
    fn take_interrupt(&mut self) -> bool {
        if self.apic.take_nmi() {
            self.deliver_external(vector::NMI);
            return true;
        }
        if self.rflags & rflag::IF == 0 {
            return false;
        }
        let Some(vector) = self.apic.take_interrupt() else {
            return false;
        };
        self.deliver_external(vector);
        true
    }
}
