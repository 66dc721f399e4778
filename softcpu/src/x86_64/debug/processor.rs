//! Breakpoints and traps at work: what moves to and from debug registers, and when #DB is raised.

use super::{BTF, dr6, dr7};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::exception::{Source, vector};
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::cr4;

impl Cpu {
    /// The number of the debug register that an instruction names.
    fn debug_register(&mut self, number: u8) -> Result<usize, Stop> {
        let alias = matches!(number, 4 | 5);
        if number > 7 || (alias && self.cr4 & cr4::DE != 0) {
            return self.undefined();
        }
        self.privileged()?;
        if self.debug.dr7 & dr7::GD != 0 {
            let waiting = std::mem::take(&mut self.debug.pending);
            self.debug.note(dr6::BD | waiting);
            return self.raise(vector::DB);
        }
        Ok(if alias { number + 2 } else { number } as usize)
    }

    /// MOV from a debug register.
    pub(crate) fn read_debug(&mut self, number: u8) -> Result<u64, Stop> {
        Ok(match self.debug_register(number)? {
            6 => self.debug.dr6 | dr6::FIXED,
            7 => self.debug.dr7 | dr7::FIXED,
            number => self.debug.addresses[number],
        })
    }

    /// MOV to a debug register.
    pub(crate) fn write_debug(&mut self, number: u8, value: u64) -> Flow {
        let number = self.debug_register(number)?;
        if number >= 6 && value >> 32 != 0 {
            return self.general_protection(0);
        }
        match number {
            6 => self.debug.dr6 = value & dr6::WRITABLE,
            7 => self.debug.dr7 = value & dr7::WRITABLE,
            number => self.debug.addresses[number] = value,
        }
        if number != 6 {
            self.sort_breakpoints();
        }
        Ok(())
    }

    /// Puts changed breakpoints in force.
    pub(crate) fn sort_breakpoints(&mut self) {
        self.debug.sort(self.cr4 & cr4::DE != 0);
        for n in 0..4 {
            if self.debug.data[0] >> n & 1 != 0 {
                self.tlb.flush_page(self.debug.addresses[n]);
            }
        }
        self.request_check();
    }

    /// An access of an instruction. Where it hits a breakpoint and other instructions follow in the block,
    /// the instruction runs again alone; there the trap is noted.
    #[inline]
    pub(crate) fn watch(&mut self, addr: u64, size: usize, write: bool) -> Flow {
        let set = self.debug.data[!write as usize];
        if set == 0 {
            return Ok(());
        }
        self.hit(set, addr, size)
    }

    /// An access to a port.
    #[inline]
    pub(crate) fn watch_port(&mut self, port: u16, size: usize) -> Flow {
        if self.debug.ports == 0 {
            return Ok(());
        }
        self.hit(self.debug.ports, port as u64, size)
    }

    #[cold]
    fn hit(&mut self, set: u8, at: u64, size: usize) -> Flow {
        let hits = self.debug.overlapping(set, at, size as u64);
        if hits != 0 && !self.alone {
            return Err(Stop::Replay);
        }
        self.debug.pending |= hits;
        Ok(())
    }

    /// Whether a repeated instruction stops after every iteration.
    #[inline(always)]
    pub(crate) fn iterates_singly(&self) -> bool {
        self.alone && (self.rflags & rflag::TF != 0 || self.debug.watches_accesses())
    }

    /// Whether a repeated instruction has to stop after this iteration: a trap comes in between.
    pub(crate) fn traps_between_iterations(&self) -> bool {
        self.rflags & rflag::TF != 0 || self.debug.is_pending()
    }

    /// Whether a breakpoint lies on an instruction of the next `size` bytes.
    pub(crate) fn has_breakpoint(&self, size: u64) -> bool {
        self.debug.in_code(self.code_address(), size) != 0
    }

    /// Raises #DB where a breakpoint lies on the next instruction; it is a fault, which IRET with RF set gets
    /// past.
    pub(crate) fn stop_at_breakpoint(&mut self) -> bool {
        let hits = self.debug.in_code(self.code_address(), 1);
        if hits != 0 {
            self.raise_debug(hits);
        }
        hits != 0
    }

    /// An instruction begins alone. Returns the traps that wait already.
    pub(crate) fn begin_step(&mut self) -> u64 {
        self.debug.entered = false;
        self.debug.pending
    }

    /// Notes the trap after the single instruction that has just run, or the iteration of one. `earlier` is
    /// what [`Cpu::begin_step`] returned, `single` whether TF was set then, `branched` whether the
    /// instruction was a branch and taken.
    pub(crate) fn end_step(&mut self, outcome: Flow, earlier: u64, single: bool, branched: bool) {
        if outcome == Err(Stop::Fault) {
            // It will run again, and hit again.
            self.debug.pending &= earlier;
        } else if single
            && !self.debug.entered
            && !self.shadow.blocks_traps()
            && (branched || self.debug.control & BTF == 0)
        {
            self.debug.pending |= dr6::BS;
        }
        if self.debug.is_pending() {
            if outcome == Err(Stop::Again) {
                self.rflags |= rflag::RF;
            }
            self.request_check();
        }
    }

    /// Notes the trap after an instruction that ran with TF set.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn single_stepped(&mut self) {
        self.debug.pending |= dr6::BS;
        self.request_check();
    }

    /// Delivers the trap that waits, if any.
    pub(crate) fn deliver_debug_trap(&mut self) -> bool {
        let waits = self.debug.is_pending();
        if waits {
            self.raise_debug(0);
        }
        waits
    }

    /// Raises #DB. A trap that waits for the end of MOV SS's shadow comes with it, and not once more in the
    /// handler. Raises #DB, one for all that waits.
    fn raise_debug(&mut self, why: u64) {
        let waiting = std::mem::take(&mut self.debug.pending);
        self.debug.note(why | waiting);
        if self.deliver(vector::DB, None, Source::Debug).is_err() {
            self.deliver_fault();
        }
    }

    /// INT1: the exception without a reason of its own in DR6. A trap that waits is part of it: a second one
    /// would come in its handler.
    pub(crate) fn raise_int1(&mut self) -> Flow {
        match std::mem::take(&mut self.debug.pending) {
            0 => self.debug.dr7 &= !dr7::GD,
            waiting => self.debug.note(waiting),
        }
        self.deliver(vector::DB, None, Source::Debug)
    }
}
