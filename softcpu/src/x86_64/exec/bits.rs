//! Bit tests, bit scans and counts.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::{Flow, op_flag};

/// What BT and its relatives do to the bit.
pub(crate) trait BitOp: 'static {
    const WRITES: bool = true;
    fn apply(value: u64, mask: u64) -> u64;
}

macro_rules! bit_ops {
    ($($name:ident $writes:literal |$v:ident, $m:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl BitOp for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply($v: u64, $m: u64) -> u64 {
                $body
            }
        }
    )*};
}

bit_ops! {
    Bt false |v, _m| v;
    Bts true |v, m| v | m;
    Btr true |v, m| v & !m;
    Btc true |v, m| v ^ m;
}

#[inline(always)]
fn register<W: Gpr, O: BitOp>(cpu: &mut Cpu, op: &Op, bit: u64) -> Flow {
    let bit = bit & (W::BITS as u64 - 1);
    let value = W::get(cpu, op.a).zext();
    cpu.flags = cpu.flags.with_carry(value >> bit & 1 != 0);
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(O::apply(value, 1 << bit)));
    }
    Ok(())
}

#[inline(always)]
fn memory<W: Gpr, O: BitOp>(cpu: &mut Cpu, op: &Op, addr: u64, bit: u64) -> Flow {
    let bit = bit & (W::BITS as u64 - 1);
    let mut carry = false;
    if !O::WRITES {
        let value: W = cpu.load(addr)?;
        carry = value.zext() >> bit & 1 != 0;
    } else {
        let change = |value: W| {
            carry = value.zext() >> bit & 1 != 0;
            <W as Width>::from(O::apply(value.zext(), 1 << bit))
        };
        if op.flags & op_flag::LOCK != 0 {
            super::atomic::update(cpu, addr, change)?;
        } else {
            cpu.modify(addr, change)?;
        }
    }
    cpu.flags = cpu.flags.with_carry(carry);
    Ok(())
}

/// bit number in a register; a memory operand is a bit string that reaches beyond the operand
pub(crate) fn by_register<W: Gpr, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bit = W::get(cpu, op.b).sext();
    if !op.has_memory() {
        return register::<W, O>(cpu, op, bit);
    }
    let word = (bit as i64 >> W::BITS.trailing_zeros()) as u64;
    let mut offset = cpu.offset(op).wrapping_add(word.wrapping_mul(W::BITS as u64 / 8));
    if op.flags & op_flag::ADDR32 != 0 {
        offset = offset as u32 as u64;
    }
    let addr = offset.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]);
    memory::<W, O>(cpu, op, addr, bit)
}

/// bit number immediate
pub(crate) fn by_immediate<W: Gpr, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.has_memory() {
        memory::<W, O>(cpu, op, cpu.address(op), op.imm)
    } else {
        register::<W, O>(cpu, op, op.imm)
    }
}

/// BSF, and TZCNT without BMI1. A zero source leaves the destination alone.
pub(crate) fn bsf<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.source::<W>(op)?.zext();
    scan::<W>(cpu, op, value, value.trailing_zeros());
    Ok(())
}

/// BSR, and LZCNT without its bit in CPUID.
pub(crate) fn bsr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.source::<W>(op)?.zext();
    scan::<W>(cpu, op, value, 63 - value.leading_zeros().min(63));
    Ok(())
}

#[inline(always)]
fn scan<W: Gpr>(cpu: &mut Cpu, op: &Op, value: u64, found: u32) {
    if value != 0 {
        W::set(cpu, op.a, <W as Width>::from(found as u64));
    }
    let old = cpu.flags.bits();
    let zf = crate::x86_64::flags::rflag::ZF;
    cpu.flags = Flags::from_bits(if value == 0 { old | zf } else { old & !zf });
}

pub(crate) fn popcnt<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.source::<W>(op)?.zext();
    W::set(cpu, op.a, <W as Width>::from(value.count_ones() as u64));
    // ZF from the source; all others clear.
    cpu.flags = Flags::from_bits(if value == 0 {
        crate::x86_64::flags::rflag::ZF
    } else {
        0
    });
    Ok(())
}
