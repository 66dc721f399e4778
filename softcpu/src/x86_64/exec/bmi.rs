//! BMI1, BMI2, LZCNT, MOVBE and RDPID: general registers.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{cr0, reg};

/// A VEX prefix is undefined in real mode.
#[inline(always)]
fn protected(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::PE != 0 {
        Ok(())
    } else {
        cpu.undefined()
    }
}

/// The third operand where it is memory or a general register.
#[inline(always)]
fn third<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    if op.has_memory() {
        cpu.load::<W>(cpu.address(op)).map(Width::zext)
    } else {
        Ok(W::get(cpu, op.c).zext())
    }
}

/// Writes the first operand, and the flags of a result without overflow.
#[inline(always)]
fn deliver<W: Gpr>(cpu: &mut Cpu, op: &Op, value: u64, carry: bool) -> Flow {
    let value = <W as Width>::from(value);
    W::set(cpu, op.a, value);
    cpu.flags = Flags::with::<W>(value.zext(), carry, false, false);
    Ok(())
}

pub(crate) fn andn<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let value = !W::get(cpu, op.b).zext() & third::<W>(cpu, op)?;
    deliver::<W>(cpu, op, value, false)
}

/// BEXTR: the bits of the second operand from the one that the third says, as many as it says.
pub(crate) fn bextr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    let control = W::get(cpu, op.c).zext();
    let (start, length) = (control as u32 & 0xff, (control >> 8) as u32 & 0xff);
    let value = source.checked_shr(start).unwrap_or(0) & low_bits(length);
    deliver::<W>(cpu, op, value, false)
}

/// As many ones.
#[inline(always)]
fn low_bits(count: u32) -> u64 {
    1u64.checked_shl(count).map_or(!0, |bit| bit - 1)
}

/// BZHI: the second operand without its bits from the one on that the third says.
pub(crate) fn bzhi<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    let index = W::get(cpu, op.c).zext() as u32 & 0xff;
    deliver::<W>(cpu, op, source & low_bits(index), index >= W::BITS)
}

/// BLSI: the lowest bit that is set.
pub(crate) fn blsi<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    deliver::<W>(cpu, op, source & source.wrapping_neg(), source != 0)
}

/// BLSMSK: all bits up to the lowest one that is set.
pub(crate) fn blsmsk<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    deliver::<W>(cpu, op, source ^ source.wrapping_sub(1), source == 0)
}

/// BLSR: without the lowest bit that is set.
pub(crate) fn blsr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    deliver::<W>(cpu, op, source & source.wrapping_sub(1), source == 0)
}

/// MULX: the first operand gets the high half, the second one the low half; where they are the same register,
/// it is the high one. No flags.
pub(crate) fn mulx<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let product = W::get(cpu, reg::RDX as u8).zext() as u128 * third::<W>(cpu, op)? as u128;
    W::set(cpu, op.b, <W as Width>::from(product as u64));
    W::set(cpu, op.a, <W as Width>::from((product >> W::BITS) as u64));
    Ok(())
}

/// PDEP: the low bits of the second operand go to the places that the third one has set.
pub(crate) fn pdep<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let mut mask = third::<W>(cpu, op)?;
    let mut source = W::get(cpu, op.b).zext();
    let mut value = 0;
    while mask != 0 {
        let place = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            value |= place;
        }
        source >>= 1;
        mask ^= place;
    }
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// PEXT: the bits of the second operand that the third one has set go to the low places.
pub(crate) fn pext<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let mut mask = third::<W>(cpu, op)?;
    let source = W::get(cpu, op.b).zext();
    let (mut value, mut at) = (0, 0);
    while mask != 0 {
        let place = mask & mask.wrapping_neg();
        value |= ((source & place != 0) as u64) << at;
        at += 1;
        mask ^= place;
    }
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// RORX: no flags.
pub(crate) fn rorx<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?.zext();
    let count = op.imm as u32 & (W::BITS - 1);
    let value = match count {
        0 => source,
        _ => source >> count | source << (W::BITS - count),
    };
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// SARX, SHLX, SHRX: `f` of the second operand and the count in the third. No flags.
#[inline(always)]
fn shift<W: Gpr>(cpu: &mut Cpu, op: &Op, f: impl Fn(W, u32) -> u64) -> Flow {
    protected(cpu)?;
    let source = cpu.source::<W>(op)?;
    let count = W::get(cpu, op.c).zext() as u32 & (W::BITS - 1);
    W::set(cpu, op.a, <W as Width>::from(f(source, count)));
    Ok(())
}

pub(crate) fn sarx<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    shift::<W>(cpu, op, |source, count| (source.sext() as i64 >> count) as u64)
}

pub(crate) fn shlx<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    shift::<W>(cpu, op, |source, count| source.zext() << count)
}

pub(crate) fn shrx<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    shift::<W>(cpu, op, |source, count| source.zext() >> count)
}

/// TZCNT: ZF from the result, and CF where the source is zero.
pub(crate) fn tzcnt<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let source = cpu.source::<W>(op)?.zext();
    deliver::<W>(cpu, op, source.trailing_zeros().min(W::BITS) as u64, source == 0)
}

/// LZCNT: the same.
pub(crate) fn lzcnt<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let source = cpu.source::<W>(op)?.zext();
    let count = source.leading_zeros() - (64 - W::BITS);
    deliver::<W>(cpu, op, count as u64, source == 0)
}

#[inline(always)]
fn swapped<W: Gpr>(value: W) -> W {
    <W as Width>::from(value.zext().swap_bytes() >> (64 - W::BITS))
}

/// MOVBE from memory.
pub(crate) fn movbe_load<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value: W = cpu.load(cpu.address(op))?;
    W::set(cpu, op.a, swapped(value));
    Ok(())
}

/// MOVBE to memory.
pub(crate) fn movbe_store<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = swapped(W::get(cpu, op.b));
    cpu.store(cpu.address(op), value)
}

/// RDPID.
pub(crate) fn rdpid(cpu: &mut Cpu, op: &Op) -> Flow {
    u64::set(cpu, op.a, cpu.msrs.tsc_aux as u32 as u64);
    Ok(())
}
