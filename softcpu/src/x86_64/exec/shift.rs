//! Shifts and rotates.
//!
//! Where the manuals leave OF or AF undefined, the flags are those that processors give: OF as for a count of
//! one applied last, AF clear.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::Flow;

/// A shift of a zero-extended value by a masked count that is not zero.
pub(crate) trait Shift: 'static {
    fn apply<W: Width>(flags: Flags, a: u64, count: u32) -> (u64, Flags);
}

macro_rules! shifts {
    ($($name:ident |$w:ident, $flags:ident, $a:ident, $n:ident| $body:block)*) => {$(
        pub(crate) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<$w: Width>($flags: Flags, $a: u64, $n: u32) -> (u64, Flags) $body
        }
    )*};
}

#[inline(always)]
fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

shifts! {
    Shl |W, _f, a, n| {
        // Counts reach 31 for narrow operands: what falls out above 64 bits does not.
        let wide = (a as u128) << n;
        let (r, cf) = (wide as u64, wide >> W::BITS & 1 != 0);
        (r, Flags::with::<W>(r, cf, cf ^ bit(r, W::BITS - 1), false))
    }
    Shr |W, _f, a, n| {
        let r = a >> n;
        let cf = bit(a, n - 1);
        (r, Flags::with::<W>(r, cf, bit(r << 1 ^ r, W::BITS - 1), false))
    }
    Sar |W, _f, a, n| {
        let wide = <W as Width>::from(a).sext() as i64;
        let r = (wide >> n) as u64;
        (r, Flags::with::<W>(r, wide >> (n - 1) & 1 != 0, false, false))
    }
    Rol |W, f, a, n| {
        let n = n % W::BITS;
        let r = if n == 0 { a } else { a << n | a >> (W::BITS - n) };
        let cf = r & 1 != 0;
        (r, f.with_carry_overflow(cf, cf ^ bit(r, W::BITS - 1)))
    }
    Ror |W, f, a, n| {
        let n = n % W::BITS;
        let r = if n == 0 { a } else { a >> n | a << (W::BITS - n) };
        let cf = bit(r, W::BITS - 1);
        (r, f.with_carry_overflow(cf, cf ^ bit(r, W::BITS - 2)))
    }
    Rcl |W, f, a, n| {
        let n = n % (W::BITS + 1);
        if n == 0 {
            let cf = f.cf();
            return (a, f.with_carry_overflow(cf, cf ^ bit(a, W::BITS - 1)));
        }
        let all = (f.cf() as u128) << W::BITS | a as u128;
        let turned = all << n | all >> (W::BITS + 1 - n);
        let cf = turned >> W::BITS & 1 != 0;
        (turned as u64, f.with_carry_overflow(cf, cf ^ bit(turned as u64, W::BITS - 1)))
    }
    Rcr |W, f, a, n| {
        let n = n % (W::BITS + 1);
        if n == 0 {
            return (a, f.with_carry_overflow(f.cf(), bit(a << 1 ^ a, W::BITS - 1)));
        }
        let all = (f.cf() as u128) << W::BITS | a as u128;
        let turned = all >> n | all << (W::BITS + 1 - n);
        let r = turned as u64;
        (r, f.with_carry_overflow(turned >> W::BITS & 1 != 0, bit(r << 1 ^ r, W::BITS - 1)))
    }
}

#[inline(always)]
fn mask<W: Width>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn register<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op, count: u32) -> Flow {
    if count != 0 {
        let (r, flags) = S::apply::<W>(cpu.flags, W::get(cpu, op.a).zext(), count);
        W::set(cpu, op.a, <W as Width>::from(r));
        cpu.flags = flags;
    } else {
        // A 32-bit destination is zero-extended all the same.
        W::set(cpu, op.a, W::get(cpu, op.a));
    }
    Ok(())
}

#[inline(always)]
fn memory<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op, count: u32) -> Flow {
    let addr = cpu.address(op);
    cpu.compute(addr, |old, a: W| {
        if count == 0 {
            return (a, old);
        }
        let (r, flags) = S::apply::<W>(old, a.zext(), count);
        (<W as Width>::from(r), flags)
    })
}

/// register by immediate
pub(crate) fn ri<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op) -> Flow {
    register::<W, S>(cpu, op, mask::<W>(op.imm))
}

/// register by CL
pub(crate) fn rc<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = mask::<W>(cpu.gpr[1]);
    register::<W, S>(cpu, op, count)
}

/// memory by immediate
pub(crate) fn mi<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op) -> Flow {
    memory::<W, S>(cpu, op, mask::<W>(op.imm))
}

/// memory by CL
pub(crate) fn mc<W: Gpr, S: Shift>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = mask::<W>(cpu.gpr[1]);
    memory::<W, S>(cpu, op, count)
}

/// SHLD (`LEFT`) and SHRD.
#[inline(always)]
fn double<W: Width, const LEFT: bool>(a: u64, b: u64, count: u32) -> (u64, Flags) {
    // 16-bit operands may be shifted by up to 31: the bits then come from `a` once more, as processors do.
    let bits = W::BITS;
    let (r, cf) = if LEFT {
        let all = (a as u128) << (2 * bits % 128) | (b as u128) << bits | a as u128;
        let all = if bits == 64 {
            (a as u128) << 64 | b as u128
        } else {
            all
        };
        let top = if bits == 64 { 128 } else { 3 * bits };
        (
            (all >> (top - bits - count)) as u64,
            all >> (top - count) & 1 != 0,
        )
    } else {
        let all = if bits == 64 {
            (b as u128) << 64 | a as u128
        } else {
            (a as u128) << (2 * bits) | (b as u128) << bits | a as u128
        };
        ((all >> count) as u64, all >> (count - 1) & 1 != 0)
    };
    let sign = bit(r, bits - 1);
    let of = if LEFT { cf ^ sign } else { sign ^ bit(r, bits - 2) };
    (r, Flags::with::<W>(r, cf, of, false))
}

fn double_any<W: Gpr, const LEFT: bool>(cpu: &mut Cpu, op: &Op, count: u32) -> Flow {
    let b = W::get(cpu, op.b).zext();
    if op.has_memory() {
        let addr = cpu.address(op);
        let mut new = cpu.flags;
        cpu.modify(addr, |a: W| {
            if count == 0 {
                return a;
            }
            let (r, flags) = double::<W, LEFT>(a.zext(), b, count);
            new = flags;
            <W as Width>::from(r)
        })?;
        cpu.flags = new;
    } else if count == 0 {
        W::set(cpu, op.a, W::get(cpu, op.a));
    } else {
        let (r, flags) = double::<W, LEFT>(W::get(cpu, op.a).zext(), b, count);
        W::set(cpu, op.a, <W as Width>::from(r));
        cpu.flags = flags;
    }
    Ok(())
}

/// by immediate
pub(crate) fn double_imm<W: Gpr, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    double_any::<W, LEFT>(cpu, op, mask::<W>(op.imm))
}

/// by CL
pub(crate) fn double_cl<W: Gpr, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = mask::<W>(cpu.gpr[1]);
    double_any::<W, LEFT>(cpu, op, count)
}
