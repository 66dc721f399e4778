//! Addition, subtraction, logic, comparison, and their one-operand relatives.

use crate::access::Gpr;
use crate::flags::{Flags, Width};
use crate::op::{Flow, Op};
use crate::state::Cpu;

/// A two-operand operation on zero-extended values.
pub(crate) trait Alu: 'static {
    /// CMP and TEST only set flags.
    const WRITES: bool = true;
    /// Result (upper bits undefined) and flags.
    fn apply<W: Width>(flags: Flags, a: u64, b: u64) -> (u64, Flags);
}

macro_rules! alu {
    ($($name:ident $writes:literal |$w:ident, $flags:ident, $a:ident, $b:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<$w: Width>($flags: Flags, $a: u64, $b: u64) -> (u64, Flags) {
                $body
            }
        }
    )*};
}

alu! {
    Add true |W, _f, a, b| { let r = a.wrapping_add(b); (r, Flags::add::<W>(a, b, r)) };
    Adc true |W, f, a, b| { let r = a.wrapping_add(b).wrapping_add(f.cf() as u64); (r, Flags::add::<W>(a, b, r)) };
    Sub true |W, _f, a, b| { let r = a.wrapping_sub(b); (r, Flags::sub::<W>(a, b, r)) };
    Sbb true |W, f, a, b| { let r = a.wrapping_sub(b).wrapping_sub(f.cf() as u64); (r, Flags::sub::<W>(a, b, r)) };
    Cmp false |W, _f, a, b| { let r = a.wrapping_sub(b); (r, Flags::sub::<W>(a, b, r)) };
    And true |W, _f, a, b| { let r = a & b; (r, Flags::logic::<W>(r)) };
    Or true |W, _f, a, b| { let r = a | b; (r, Flags::logic::<W>(r)) };
    Xor true |W, _f, a, b| { let r = a ^ b; (r, Flags::logic::<W>(r)) };
    Test false |W, _f, a, b| { let r = a & b; (r, Flags::logic::<W>(r)) };
}

/// register, register
pub(crate) fn rr<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), W::get(cpu, op.b).zext());
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    Ok(())
}

/// register, immediate
pub(crate) fn ri<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let imm = <W as Width>::from(op.imm).zext();
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), imm);
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    Ok(())
}

/// register, memory
pub(crate) fn rm<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b: W = cpu.load(cpu.address(op))?;
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), b.zext());
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    Ok(())
}

/// memory, register
pub(crate) fn mr<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = W::get(cpu, op.b).zext();
    memory::<W, O>(cpu, op, b)
}

/// memory, immediate
pub(crate) fn mi<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    memory::<W, O>(cpu, op, <W as Width>::from(op.imm).zext())
}

#[inline(always)]
fn memory<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op, b: u64) -> Flow {
    let addr = cpu.address(op);
    if !O::WRITES {
        let a: W = cpu.load(addr)?;
        cpu.flags = O::apply::<W>(cpu.flags, a.zext(), b).1;
        return Ok(());
    }
    let old = cpu.flags;
    let mut new = old;
    cpu.modify(addr, |_, a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext(), b);
        new = flags;
        <W as Width>::from(r)
    })?;
    cpu.flags = new;
    Ok(())
}

/// A one-operand operation.
pub(crate) trait Unary: 'static {
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags);
}

pub(crate) struct Inc;
impl Unary for Inc {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags) {
        let r = a.wrapping_add(1);
        (r, Flags::add::<W>(a, 1, r).with_carry(flags.cf()))
    }
}

pub(crate) struct Dec;
impl Unary for Dec {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags) {
        let r = a.wrapping_sub(1);
        (r, Flags::sub::<W>(a, 1, r).with_carry(flags.cf()))
    }
}

pub(crate) struct Neg;
impl Unary for Neg {
    #[inline(always)]
    fn apply<W: Width>(_: Flags, a: u64) -> (u64, Flags) {
        let r = 0u64.wrapping_sub(a);
        (r, Flags::sub::<W>(0, a, r))
    }
}

pub(crate) struct Not;
impl Unary for Not {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags) {
        (!a, flags)
    }
}

/// One operand, in a register.
pub(crate) fn unary_r<W: Gpr, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext());
    W::set(cpu, op.a, <W as Width>::from(r));
    cpu.flags = flags;
    Ok(())
}

/// One operand, in memory.
pub(crate) fn unary_m<W: Gpr, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let addr = cpu.address(op);
    let old = cpu.flags;
    let mut new = old;
    cpu.modify(addr, |_, a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext());
        new = flags;
        <W as Width>::from(r)
    })?;
    cpu.flags = new;
    Ok(())
}
