//! Multiplication and division.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::vector;
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::Flow;
use crate::x86_64::state::reg;

const AH: u8 = 1;

/// The single operand of MUL, IMUL, DIV and IDIV.
#[inline(always)]
fn operand<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Result<W, crate::x86_64::op::Stop> {
    if op.has_memory() {
        cpu.load(cpu.address(op))
    } else {
        Ok(W::get(cpu, op.a))
    }
}

#[inline(always)]
fn set_wide<W: Gpr>(cpu: &mut Cpu, low: u64, high: u64) {
    W::set(cpu, 0, <W as Width>::from(low));
    W::set(
        cpu,
        if W::BITS == 8 { AH } else { reg::RDX as u8 },
        <W as Width>::from(high),
    );
}

#[inline(always)]
fn wide<W: Gpr>(cpu: &Cpu) -> (u64, u64) {
    (
        W::get(cpu, 0).zext(),
        W::get(cpu, if W::BITS == 8 { AH } else { reg::RDX as u8 }).zext(),
    )
}

/// MUL.
pub(crate) fn mul<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = operand::<W>(cpu, op)?.zext();
    let product = W::get(cpu, 0).zext() as u128 * b as u128;
    let high = (product >> W::BITS) as u64;
    set_wide::<W>(cpu, product as u64, high);
    cpu.flags = Flags::with::<W>(product as u64, high != 0, high != 0, false);
    Ok(())
}

/// IMUL with one operand.
pub(crate) fn imul1<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = operand::<W>(cpu, op)?.sext() as i64;
    let product = W::get(cpu, 0).sext() as i64 as i128 * b as i128;
    set_wide::<W>(cpu, product as u64, (product >> W::BITS) as u64);
    cpu.flags = truncated::<W>(product);
    Ok(())
}

#[inline(always)]
fn truncated<W: Width>(product: i128) -> Flags {
    let lost = <W as Width>::from(product as u64).sext() as i64 as i128 != product;
    Flags::with::<W>(product as u64, lost, lost, false)
}

/// IMUL register, operand.
#[inline(always)]
pub(crate) fn imul2<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b: W = cpu.source(op)?;
    let product = W::get(cpu, op.a).sext() as i64 as i128 * b.sext() as i64 as i128;
    W::set(cpu, op.a, <W as Width>::from(product as u64));
    cpu.flags = truncated::<W>(product);
    Ok(())
}

/// IMUL register, operand, immediate.
#[inline(always)]
pub(crate) fn imul3<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b: W = cpu.source(op)?;
    // A 16- or 32-bit immediate arrives without its sign.
    let immediate = <W as Width>::from(op.imm).sext() as i64;
    let product = immediate as i128 * b.sext() as i64 as i128;
    W::set(cpu, op.a, <W as Width>::from(product as u64));
    cpu.flags = truncated::<W>(product);
    Ok(())
}

/// DIV. Flags are undefined and stay.
pub(crate) fn div<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = operand::<W>(cpu, op)?.zext();
    let (low, high) = wide::<W>(cpu);
    if high >= divisor {
        return cpu.raise(vector::DE);
    }
    let (quotient, remainder) = if W::BITS < 64 || high == 0 {
        let dividend = if W::BITS < 64 {
            high << (W::BITS % 64) | low
        } else {
            low
        };
        (dividend / divisor, dividend % divisor)
    } else {
        let dividend = (high as u128) << 64 | low as u128;
        (
            (dividend / divisor as u128) as u64,
            (dividend % divisor as u128) as u64,
        )
    };
    set_wide::<W>(cpu, quotient, remainder);
    Ok(())
}

/// IDIV.
pub(crate) fn idiv<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = operand::<W>(cpu, op)?.sext() as i64 as i128;
    let (low, high) = wide::<W>(cpu);
    let shift = 128 - 2 * W::BITS;
    let dividend = (((high as u128) << W::BITS | low as u128) << shift) as i128 >> shift;
    let Some(quotient) = dividend.checked_div(divisor) else {
        return cpu.raise(vector::DE);
    };
    if <W as Width>::from(quotient as u64).sext() as i64 as i128 != quotient {
        return cpu.raise(vector::DE);
    }
    set_wide::<W>(cpu, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}
