//! The loop that runs blocks, and what happens between them.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::core::block::{Block, Ending};
use crate::core::bus::Bus;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::{Fault, canonical, vector};
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, REG_BLOCK, SEG_FLAT, Stop};
use crate::x86_64::state::{Shadow, reg};

/// Why [`Cpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A device answered [`BusResult::Stop`](crate::core::bus::BusResult::Stop), or as many instructions have
    /// retired as [`Cpu::set_limit`] said.
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
        self.mailbox.set_active(true);
        let exit = if self.profile.is_some() {
            self.run_blocks::<true>()
        } else {
            self.run_blocks::<false>()
        };
        self.mailbox.set_active(false);
        self.bus = None;
        self.mailbox.publish(self.retired);
        exit
    }

    fn run_blocks<const PROFILE: bool>(&mut self) -> Exit {
        self.check_at = 0;
        loop {
            if self.needs_service() {
                if let Some(exit) = self.service_pending() {
                    return exit;
                }
                if self.retired >= self.direct_at {
                    self.run_directly();
                    continue;
                }
            }
            if self.looks_before_each() {
                self.run_carefully::<PROFILE>();
                continue;
            }
            match self.find_block() {
                Ok(block) => self.run_chain::<PROFILE>(block),
                Err(_) => self.deliver_fault(),
            }
        }
    }

    /// Whether something has to be looked at before the next block.
    #[inline(always)]
    fn needs_service(&self) -> bool {
        self.retired >= self.check_at || self.mailbox.has_events()
    }

    /// Runs a block and those that follow it, until something has to be looked at.
    #[inline(always)]
    fn run_chain<const PROFILE: bool>(&mut self, mut block: *const Block<Op>) {
        loop {
            let begin = self.rip;
            let before = PROFILE.then(|| self.profile_before());
            // SAFETY: `find_block` and `follow` return blocks that live until `bound_cache`, which
            // `service_pending` calls.
            let current = unsafe { &*block };
            let complete = self.run_block(current).is_ok();
            if let Some(before) = before {
                self.profile_after(before, current.ending);
            }
            if !complete || self.needs_service() {
                if complete {
                    self.refuse_target(current, begin);
                }
                return;
            }
            // SAFETY: as above.
            match unsafe { self.follow(block, begin) } {
                Ok(next) => block = next,
                Err(_) => {
                    self.running = std::ptr::null();
                    if !self.refuse_target(current, begin) {
                        self.deliver_fault();
                    }
                    return;
                }
            }
        }
    }

    /// Raises #GP at the relative jump by which the block that began at `begin` has left the canonical
    /// addresses. It has changed nothing but the instruction pointer, so this is found out where nothing is
    /// lost by looking: between blocks, and where no code is fetched. Other jumps and calls look themselves.
    #[cold]
    fn refuse_target(&mut self, block: &Block<Op>, begin: u64) -> bool {
        let went_on = self.rip == begin.wrapping_add(block.len.into());
        if canonical(self.rip) || went_on || block.ending != Ending::RelativeJump {
            return false;
        }
        let jump = block.ops.end().map_or(0, |op| op.off.into());
        self.rip = begin.wrapping_add(jump);
        self.retired -= 1;
        self.fault = Fault {
            vector: vector::GP,
            code: Some(0),
            cr2: 0,
        };
        self.deliver_fault();
        true
    }

    /// Runs the operations of a block, to its end or to what stops it.
    #[inline(always)]
    fn run_block(&mut self, block: &Block<Op>) -> Flow {
        self.gpr[REG_BLOCK as usize] = self.rip;
        self.running = block;
        let first = block.ops.first();
        // SAFETY: the block is alive, and its last operation never returns `Ok`.
        match unsafe { ((*first).run)(self, first) } {
            Err(Stop::Branch) => {
                self.retired += block.count as u64;
                Ok(())
            }
            Err(stop) => {
                self.interrupted(stop);
                Err(stop)
            }
            // No block ends so; it would be an endless loop to go on.
            Ok(()) => Ok(()),
        }
    }

    /// A block ended before its end.
    #[cold]
    #[inline(never)]
    fn interrupted(&mut self, stop: Stop) {
        // SAFETY: the handler that stopped has just left it, and its block is alive.
        let op = unsafe { *self.stopped };
        // What is stored from here on is stored by no block.
        self.running = std::ptr::null();
        self.rip = self.ip(&op) & self.rip_mask;
        self.retired += op.idx as u64;
        match stop {
            Stop::Fault => {
                self.name_stack_fault(&op);
                self.deliver_fault();
            }
            Stop::Replay => self.step(),
            // An interrupt now must not come back to a breakpoint on the same instruction.
            Stop::Again if self.debug.watches_code() => self.rflags |= rflag::RF,
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

    /// Whether something has to be looked at before each instruction: TF, or breakpoints on instructions.
    #[inline(always)]
    fn looks_before_each(&self) -> bool {
        self.rflags & rflag::TF != 0 || self.debug.watches_code()
    }

    /// Runs a block, or one instruction where a breakpoint lies ahead or TF or RF is set.
    #[cold]
    fn run_carefully<const PROFILE: bool>(&mut self) {
        if self.rflags & (rflag::TF | rflag::RF) != 0 {
            return self.step_or_break();
        }
        match self.find_block() {
            // SAFETY: see `run_chain`.
            Ok(block) if !self.has_breakpoint(unsafe { &*block }.len as u64) => {
                // Comes back after one block: `service_pending` lets it look at everything.
                self.run_chain::<PROFILE>(block);
            }
            // A breakpoint comes before a fault of the fetch.
            _ => self.step_or_break(),
        }
    }

    /// Runs the one instruction at `rip`, or raises #DB where it has a breakpoint.
    fn step_or_break(&mut self) {
        let resumes = self.rflags & rflag::RF != 0;
        self.rflags &= !rflag::RF;
        if resumes || !self.stop_at_breakpoint() {
            self.step();
        }
    }

    /// Runs the one instruction at `rip`, decoded afresh.
    #[cold]
    pub(crate) fn step(&mut self) {
        let block = match self.decode_single() {
            Ok(block) => block,
            Err(_) => return self.deliver_fault(),
        };
        let single = self.rflags & rflag::TF != 0;
        let next = self.rip.wrapping_add(block.len as u64);
        let earlier = self.begin_step();
        self.alone = true;
        let begin = self.rip;
        let mut outcome = self.run_block(&block);
        self.alone = false;
        self.running = std::ptr::null();
        if outcome.is_ok() && self.refuse_target(&block, begin) {
            outcome = Err(Stop::Fault);
        }
        let branched = block.ending != Ending::Next && self.rip != next;
        self.end_step(outcome, earlier, single, branched);
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
    fn service_pending(&mut self) -> Option<Exit> {
        self.running = std::ptr::null();
        self.bound_cache();
        loop {
            if self.shutdown {
                return Some(Exit::Shutdown);
            }
            if std::mem::take(&mut self.stop) || self.retired >= self.limit {
                return Some(Exit::Stopped);
            }
            if self.take_events() {
                return Some(Exit::Kicked);
            }
            if self.parked {
                self.mailbox.sleep(None);
                continue;
            }
            if self.poll_if_due() {
                continue;
            }
            self.update_timer();
            if !self.shadow.blocks_traps() && self.deliver_debug_trap() {
                self.shadow = Shadow::None;
                continue;
            }
            let shadow = std::mem::take(&mut self.shadow);
            // Most STIs keep nothing away: the block ahead may run as a whole.
            let idle = shadow == Shadow::Sti && !self.apic.has_interrupt() && !self.looks_before_each();
            if shadow != Shadow::None && !idle && !self.halted {
                // The one instruction after STI or MOV SS runs first. Where that was HLT, it has.
                let before = self.profile.is_some().then(|| self.profile_before());
                if shadow.blocks_traps() {
                    self.step();
                } else {
                    self.step_or_break();
                }
                if let Some(before) = before {
                    self.profile_after(before, Ending::Next);
                }
                continue;
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
            self.check_at = if self.looks_before_each() {
                0
            } else {
                self.next_check()
            };
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
