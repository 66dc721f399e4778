//! MOV and everything that only moves: extensions, exchanges, conditional moves, LEA.

use crate::x86_64::access::{AddressingMode, Gpr};
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::Width;
use crate::x86_64::op::Flow;
use crate::x86_64::state::reg;

pub(crate) fn rr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    W::set(cpu, op.a, W::get(cpu, op.b));
    Ok(())
}

pub(crate) fn ri<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    W::set(cpu, op.a, <W as Width>::from(op.imm));
    Ok(())
}

#[inline(always)]
pub(crate) fn rm<W: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.load(A::address(cpu, op))?;
    W::set(cpu, op.a, value);
    Ok(())
}

#[inline(always)]
pub(crate) fn mr<W: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = W::get(cpu, op.b);
    cpu.store(A::address(cpu, op), value)
}

#[inline(always)]
pub(crate) fn mi<W: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.store(A::address(cpu, op), <W as Width>::from(op.imm))
}

/// Accumulator from a 64-bit address.
pub(crate) fn load_absolute<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.load(op.imm.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]))?;
    W::set(cpu, 0, value);
    Ok(())
}

/// Accumulator to a 64-bit address.
pub(crate) fn store_absolute<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.store(
        op.imm.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]),
        W::get(cpu, 0),
    )
}

/// MOVZX: `D` from the narrower `S`.
pub(crate) fn movzx_r<D: Gpr, S: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::set(cpu, op.a, <D as Width>::from(S::get(cpu, op.b).zext()));
    Ok(())
}

#[inline(always)]
pub(crate) fn movzx_m<D: Gpr, S: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: S = cpu.load(A::address(cpu, op))?;
    D::set(cpu, op.a, <D as Width>::from(value.zext()));
    Ok(())
}

/// MOVSX and MOVSXD.
pub(crate) fn movsx_r<D: Gpr, S: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::set(cpu, op.a, <D as Width>::from(S::get(cpu, op.b).sext()));
    Ok(())
}

#[inline(always)]
pub(crate) fn movsx_m<D: Gpr, S: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: S = cpu.load(A::address(cpu, op))?;
    D::set(cpu, op.a, <D as Width>::from(value.sext()));
    Ok(())
}

pub(crate) fn lea<W: Gpr, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    W::set(cpu, op.a, <W as Width>::from(A::offset(cpu, op)));
    Ok(())
}

pub(crate) fn xchg_rr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (W::get(cpu, op.a), W::get(cpu, op.b));
    W::set(cpu, op.a, b);
    W::set(cpu, op.b, a);
    Ok(())
}

/// CMOVcc. The source is read, and faults, whatever the condition; a 32-bit destination is always
/// zero-extended.
#[inline(always)]
pub(crate) fn cmov<W: Gpr, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let source: W = cpu.source(op)?;
    let value = if cpu.flags.condition::<CC>() {
        source
    } else {
        W::get(cpu, op.a)
    };
    W::set(cpu, op.a, value);
    Ok(())
}

pub(crate) fn setcc_r<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.flags.condition::<CC>() as u8;
    cpu.set_byte(op.a, value);
    Ok(())
}

pub(crate) fn setcc_m<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.flags.condition::<CC>() as u8;
    cpu.store(cpu.address(op), value)
}

pub(crate) fn bswap<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = W::get(cpu, op.a).zext().swap_bytes() >> (64 - W::BITS);
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// BSWAP of 16 bits is undefined; processors clear the register's low half.
pub(crate) fn bswap16(cpu: &mut Cpu, op: &Op) -> Flow {
    u16::set(cpu, op.a, 0);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator's lower half sign-extended.
pub(crate) fn extend_accumulator<D: Gpr, S: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    D::set(cpu, 0, <D as Width>::from(S::get(cpu, 0).sext()));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign all over DX.
pub(crate) fn sign_to_dx<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let sign = (W::get(cpu, 0).sext() as i64 >> 63) as u64;
    W::set(cpu, reg::RDX as u8, <W as Width>::from(sign));
    Ok(())
}

/// XLATB.
pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut offset = cpu.gpr[reg::RBX].wrapping_add(cpu.byte(0) as u64);
    if op.flags & crate::x86_64::op::op_flag::ADDR32 != 0 {
        offset = offset as u32 as u64;
    }
    let value: u8 = cpu.load(offset.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]))?;
    cpu.set_byte(0, value);
    Ok(())
}

/// Does nothing: NOP, prefetches, fences where memory is already in order.
pub(crate) fn nop(_: &mut Cpu, _: &Op) -> Flow {
    Ok(())
}
