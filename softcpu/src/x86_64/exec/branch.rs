//! Jumps, calls and returns inside a segment. Targets are relative to the block's start.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::Width;
use crate::x86_64::op::{Flow, REG_BLOCK, Stop, op_flag};
use crate::x86_64::state::reg;

/// Goes on after a block that ended for no instruction's sake.
pub(crate) fn fallthrough(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = cpu.ip(op) & cpu.rip_mask;
    Err(Stop::Branch)
}

#[inline(always)]
pub(crate) fn target(cpu: &Cpu, op: &Op) -> u64 {
    cpu.gpr[REG_BLOCK as usize].wrapping_add(op.imm) & cpu.rip_mask
}

/// Jcc.
pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let taken = cpu.flags.condition::<CC>();
    jump_if(cpu, op, taken)
}

/// Ends the block with the jump `op`, or with what follows it.
#[inline(always)]
pub(super) fn jump_if(cpu: &mut Cpu, op: &Op, taken: bool) -> Flow {
    let by = if taken {
        op.imm
    } else {
        op.off as u64 + op.len as u64
    };
    cpu.rip = cpu.gpr[REG_BLOCK as usize].wrapping_add(by) & cpu.rip_mask;
    Err(Stop::Branch)
}

/// JMP relative.
pub(crate) fn jmp(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = target(cpu, op);
    Err(Stop::Branch)
}

/// The operand of an indirect jump or call.
#[inline(always)]
fn indirect<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    let to = if op.has_memory() {
        cpu.load::<W>(cpu.address(op))?.zext()
    } else {
        W::get(cpu, op.a).zext()
    };
    if W::BITS == 64 && !crate::x86_64::exception::canonical(to) {
        return cpu.general_protection(0);
    }
    Ok(to)
}

/// JMP indirect.
pub(crate) fn jmp_indirect<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = indirect::<W>(cpu, op)?;
    Err(Stop::Branch)
}

/// CALL relative.
pub(crate) fn call<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (to, next) = (target(cpu, op), cpu.next_ip(op));
    if W::BITS == 64 && !crate::x86_64::exception::canonical(to) {
        return cpu.general_protection(0);
    }
    cpu.push(<W as Width>::from(next))?;
    cpu.rip = to;
    Err(Stop::Branch)
}

/// CALL indirect.
pub(crate) fn call_indirect<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let to = indirect::<W>(cpu, op)?;
    let next = cpu.next_ip(op);
    cpu.push(<W as Width>::from(next))?;
    cpu.rip = to;
    Err(Stop::Branch)
}

/// RET, with or without a number of bytes to drop.
pub(crate) fn ret<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let old = cpu.gpr[reg::RSP];
    let to = cpu.pop::<W>(op.imm & 0xffff)?.zext();
    if W::BITS == 64 && !crate::x86_64::exception::canonical(to) {
        cpu.gpr[reg::RSP] = old;
        return cpu.general_protection(0);
    }
    cpu.rip = to;
    Err(Stop::Branch)
}

#[inline(always)]
fn counter_mask(op: &Op) -> u64 {
    match op.flags & (op_flag::ADDR32 | op_flag::ADDR16) {
        0 => u64::MAX,
        op_flag::ADDR32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// LOOP (`KIND` 2), LOOPE (1), LOOPNE (0) and JrCXZ (3); the address size is in the flags.
pub(crate) fn loops<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mask = counter_mask(op);
    let old = cpu.gpr[reg::RCX];
    let mut count = old & mask;
    let taken = if KIND == 3 {
        count == 0
    } else {
        count = count.wrapping_sub(1) & mask;
        cpu.gpr[reg::RCX] = if mask == 0xffff {
            old & !mask | count
        } else {
            count
        };
        count != 0
            && match KIND {
                0 => !cpu.flags.zf(),
                1 => cpu.flags.zf(),
                _ => true,
            }
    };
    let to = if taken { target(cpu, op) } else { cpu.next_ip(op) };
    if taken && !crate::x86_64::exception::canonical(to) {
        cpu.gpr[reg::RCX] = old;
        return cpu.general_protection(0);
    }
    cpu.rip = to;
    Err(Stop::Branch)
}
