//! Addition, subtraction, logic, comparison, and their one-operand relatives.

use crate::x86_64::access::{AddressingMode, Gpr};
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::Flow;

/// A two-operand operation on zero-extended values.
pub(crate) trait Alu: 'static {
    /// CMP and TEST only set flags.
    const WRITES: bool = true;
    /// Result (upper bits undefined) and flags.
    fn apply<W: Width>(flags: Flags, a: u64, b: u64) -> (u64, Flags);
    /// The condition `CC` of the flags that follow from `a` and `b`, where these alone decide: what the host
    /// compares at once. `None` leaves it to the flags.
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(_a: u64, _b: u64) -> Option<bool> {
        None
    }
}

/// `CC` after a comparison of zero-extended values.
#[inline(always)]
fn compared<W: Width, const CC: u8>(a: u64, b: u64) -> Option<bool> {
    let signed = |v| W::from(v).sext() as i64;
    let base = match CC >> 1 {
        1 => a < b,
        2 => a == b,
        3 => a <= b,
        6 => signed(a) < signed(b),
        7 => signed(a) <= signed(b),
        _ => return None,
    };
    Some(base ^ (CC & 1 != 0))
}

/// `CC` after a logical operation with result `r`: neither carry nor overflow.
#[inline(always)]
fn logical<W: Width, const CC: u8>(r: u64) -> Option<bool> {
    let r = W::from(r).sext() as i64;
    let base = match CC >> 1 {
        0 | 1 => false,
        2 | 3 => r == 0,
        4 | 6 => r < 0,
        7 => r <= 0,
        _ => return None,
    };
    Some(base ^ (CC & 1 != 0))
}

macro_rules! alu {
    ($($name:ident $writes:literal $(($holds:expr))? |$w:ident, $flags:ident, $a:ident, $b:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<$w: Width>($flags: Flags, $a: u64, $b: u64) -> (u64, Flags) {
                $body
            }
            $(
                #[inline(always)]
                fn holds<$w: Width, const CC: u8>($a: u64, $b: u64) -> Option<bool> {
                    $holds
                }
            )?
        }
    )*};
}

alu! {
    Add true |W, _f, a, b| { let r = a.wrapping_add(b); (r, Flags::add::<W>(a, b, r)) };
    Adc true |W, f, a, b| { let r = a.wrapping_add(b).wrapping_add(f.cf() as u64); (r, Flags::add::<W>(a, b, r)) };
    Sub true (compared::<W, CC>(a, b)) |W, _f, a, b| { let r = a.wrapping_sub(b); (r, Flags::sub::<W>(a, b, r)) };
    Sbb true |W, f, a, b| { let r = a.wrapping_sub(b).wrapping_sub(f.cf() as u64); (r, Flags::sub::<W>(a, b, r)) };
    Cmp false (compared::<W, CC>(a, b)) |W, _f, a, b| { let r = a.wrapping_sub(b); (r, Flags::sub::<W>(a, b, r)) };
    And true (logical::<W, CC>(a & b)) |W, _f, a, b| { let r = a & b; (r, Flags::logic::<W>(r)) };
    Or true |W, _f, a, b| { let r = a | b; (r, Flags::logic::<W>(r)) };
    Xor true |W, _f, a, b| { let r = a ^ b; (r, Flags::logic::<W>(r)) };
    Test false (logical::<W, CC>(a & b)) |W, _f, a, b| { let r = a & b; (r, Flags::logic::<W>(r)) };
}

/// register, register
#[inline(always)]
pub(crate) fn rr<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), W::get(cpu, op.b).zext());
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    Ok(())
}

/// register, immediate
#[inline(always)]
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
#[inline(always)]
pub(crate) fn rm<W: Gpr, O: Alu, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b: W = cpu.load(A::address(cpu, op))?;
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), b.zext());
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    Ok(())
}

/// memory, register
#[inline(always)]
pub(crate) fn mr<W: Gpr, O: Alu, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = W::get(cpu, op.b).zext();
    memory::<W, O>(cpu, A::address(cpu, op), b)
}

/// memory, immediate
#[inline(always)]
pub(crate) fn mi<W: Gpr, O: Alu, A: AddressingMode>(cpu: &mut Cpu, op: &Op) -> Flow {
    memory::<W, O>(cpu, A::address(cpu, op), <W as Width>::from(op.imm).zext())
}

#[inline(always)]
fn memory<W: Gpr, O: Alu>(cpu: &mut Cpu, addr: u64, b: u64) -> Flow {
    if !O::WRITES {
        let a: W = cpu.load(addr)?;
        cpu.flags = O::apply::<W>(cpu.flags, a.zext(), b).1;
        return Ok(());
    }
    cpu.compute(addr, move |old, a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext(), b);
        (<W as Width>::from(r), flags)
    })
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
#[inline(always)]
pub(crate) fn unary_r<W: Gpr, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (r, flags) = O::apply::<W>(cpu.flags, W::get(cpu, op.a).zext());
    W::set(cpu, op.a, <W as Width>::from(r));
    cpu.flags = flags;
    Ok(())
}

/// One operand, in memory.
#[inline(always)]
pub(crate) fn unary_m<W: Gpr, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.compute(cpu.address(op), |old, a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext());
        (<W as Width>::from(r), flags)
    })
}
