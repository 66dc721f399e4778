//! PUSH, POP, ENTER and LEAVE.

use crate::x86_64::access::{Gpr, Scalar};
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Width, rflag};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{reg, seg};

impl Cpu {
    /// Linear address of the top of the stack.
    #[inline(always)]
    pub(crate) fn stack_top(&self) -> u64 {
        self.stack_address(self.gpr[reg::RSP])
    }

    #[inline(always)]
    pub(crate) fn stack_address(&self, sp: u64) -> u64 {
        if self.is_long() {
            sp
        } else {
            (sp & self.stack_mask).wrapping_add(self.seg_base[seg::SS])
        }
    }

    #[inline(always)]
    pub(crate) fn set_stack(&mut self, sp: u64) {
        if self.is_long() {
            self.gpr[reg::RSP] = sp;
        } else if self.stack_mask == 0xffff {
            self.gpr[reg::RSP] = self.gpr[reg::RSP] & !0xffff | sp & 0xffff;
        } else {
            self.gpr[reg::RSP] = sp as u32 as u64;
        }
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        self.set_stack(self.gpr[reg::RSP].wrapping_add(bytes));
    }

    /// Pushes; changes nothing where that faults. Only 64-bit code has stack operands of 64 bits.
    #[inline(always)]
    pub(crate) fn push<T: Scalar>(&mut self, value: T) -> Flow {
        let sp = self.gpr[reg::RSP].wrapping_sub(T::SIZE as u64);
        if T::SIZE == 8 {
            self.store(sp, value)?;
            self.gpr[reg::RSP] = sp;
            return Ok(());
        }
        self.store(self.stack_address(sp), value)?;
        self.set_stack(sp);
        Ok(())
    }

    /// Pops, and `more` bytes with it; changes nothing where that faults.
    #[inline(always)]
    pub(crate) fn pop<T: Scalar>(&mut self, more: u64) -> Result<T, Stop> {
        let sp = self.gpr[reg::RSP];
        let bytes = T::SIZE as u64 + more;
        if T::SIZE == 8 {
            let value = self.load(sp)?;
            self.gpr[reg::RSP] = sp.wrapping_add(bytes);
            return Ok(value);
        }
        let value = self.load(self.stack_address(sp))?;
        self.drop_stack(bytes);
        Ok(value)
    }
}

pub(crate) fn push_r<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.push(W::get(cpu, op.a))
}

pub(crate) fn push_i<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.push(<W as Width>::from(op.imm))
}

pub(crate) fn push_m<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: W = cpu.load(cpu.address(op))?;
    cpu.push(value)
}

pub(crate) fn pop_r<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: W = cpu.pop(0)?;
    W::set(cpu, op.a, value);
    Ok(())
}

/// An address relative to RSP is computed after the pop has moved it.
pub(crate) fn pop_m<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: W = cpu.load(cpu.stack_top())?;
    let old = cpu.gpr[reg::RSP];
    cpu.drop_stack(W::SIZE as u64);
    let stored = cpu.store(cpu.address(op), value);
    if stored.is_err() {
        cpu.gpr[reg::RSP] = old;
    }
    stored
}

pub(crate) fn push_seg<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.push(<W as Width>::from(cpu.seg[(op.a % 6) as usize].selector as u64))
}

/// PUSHF.
pub(crate) fn pushf<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.push(<W as Width>::from(cpu.rflags() & !(rflag::RF | rflag::VM)))
}

/// POPF; ends its block, because IF or TF may have changed.
pub(crate) fn popf<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.load::<W>(cpu.stack_top())?.zext();
    cpu.drop_stack(W::SIZE as u64);
    let mut writable = rflag::STATUS | rflag::TF | rflag::DF | rflag::NT | rflag::AC | rflag::ID;
    if W::BITS == 16 {
        writable &= 0xffff;
    }
    if cpu.cpl == 0 {
        writable |= rflag::IOPL;
    }
    if cpu.cpl as u64 <= cpu.rflags >> 12 & 3 {
        writable |= rflag::IF;
    }
    let old = cpu.rflags();
    cpu.set_rflags(old & !writable & !rflag::RF | value & writable);
    cpu.request_check_if_enabled();
    super::misc::advance(cpu, op)
}

pub(crate) fn leave<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let frame = cpu.gpr[reg::RBP];
    let value: W = cpu.load(cpu.stack_address(frame))?;
    cpu.set_stack(frame.wrapping_add(W::SIZE as u64));
    W::set(cpu, reg::RBP as u8, value);
    Ok(())
}

/// ENTER: `imm` bytes of locals, `c` levels of nesting.
pub(crate) fn enter<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let level = (op.c & 31) as u64;
    let size = W::SIZE as u64;
    let old = cpu.gpr[reg::RSP];
    let mut sp = old.wrapping_sub(size);
    cpu.store(cpu.stack_address(sp), W::get(cpu, reg::RBP as u8))?;
    let frame = sp;
    let mut link = cpu.gpr[reg::RBP];
    for n in 1..=level {
        let value = if n < level {
            link = link.wrapping_sub(size);
            cpu.load::<W>(cpu.stack_address(link))?
        } else {
            <W as Width>::from(frame)
        };
        sp = sp.wrapping_sub(size);
        cpu.store(cpu.stack_address(sp), value)?;
    }
    sp = sp.wrapping_sub(op.imm & 0xffff);
    cpu.check_write(cpu.stack_address(sp), W::SIZE)?;
    W::set(cpu, reg::RBP as u8, <W as Width>::from(frame));
    cpu.set_stack(sp);
    Ok(())
}

/// PUSHA, in 16- and 32-bit code.
pub(crate) fn pusha<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let sp = cpu.gpr[reg::RSP];
    for n in 0..8 {
        let at = sp.wrapping_sub((n + 1) * W::SIZE as u64);
        cpu.store(cpu.stack_address(at), W::get(cpu, n as u8))?;
    }
    cpu.set_stack(sp.wrapping_sub(8 * W::SIZE as u64));
    Ok(())
}

/// POPA.
pub(crate) fn popa<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let sp = cpu.gpr[reg::RSP];
    let mut values = [0; 8];
    for (n, value) in values.iter_mut().enumerate() {
        let at = sp.wrapping_add((7 - n) as u64 * W::SIZE as u64);
        *value = cpu.load::<W>(cpu.stack_address(at))?.zext();
    }
    for (n, value) in values.into_iter().enumerate().filter(|(n, _)| *n != reg::RSP) {
        W::set(cpu, n as u8, <W as Width>::from(value));
    }
    cpu.drop_stack(8 * W::SIZE as u64);
    Ok(())
}
