//! Floating point arithmetic, rounding and comparison.

use std::cmp::Ordering;

use iced_x86::Mnemonic;

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::Flow;
use crate::x86_64::simd::element::Op as Arith;
use crate::x86_64::simd::float::*;
use crate::x86_64::simd::mxcsr::Mxcsr;

/// The four instructions of an operation on two operands.
macro_rules! four {
    ($mnemonic:expr, $shape:expr; $($ps:ident $pd:ident $ss:ident $sd:ident $f:expr;)*) => {
        match $mnemonic {
            $(
                Mnemonic::$ps => Some(by_shape!($shape; packed, u32; $f)),
                Mnemonic::$pd => Some(by_shape!($shape; packed, u64; $f)),
                Mnemonic::$ss => Some(by_memory!($shape; scalar, u32; $f)),
                Mnemonic::$sd => Some(by_memory!($shape; scalar, u64; $f)),
            )*
            _ => None,
        }
    };
}

/// The same where the packed forms have one operand.
macro_rules! four_unary {
    ($mnemonic:expr, $shape:expr; $($ps:ident $pd:ident $ss:ident $sd:ident |$s:ident, $b:ident, $i:ident| $f:expr;)*) => {
        match $mnemonic {
            $(
                Mnemonic::$ps => Some(by_shape!($shape; packed_unary, u32; |$s, $b, $i| $f)),
                Mnemonic::$pd => Some(by_shape!($shape; packed_unary, u64; |$s, $b, $i| $f)),
                Mnemonic::$ss => Some(by_memory!($shape; scalar, u32; |$s, _, $b, $i| $f)),
                Mnemonic::$sd => Some(by_memory!($shape; scalar, u64; |$s, _, $b, $i| $f)),
            )*
            _ => None,
        }
    };
}

/// The handler of an instruction of this table.
pub(super) fn handler(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    let binary = || {
        four!(mnemonic, shape;
            Vaddps Vaddpd Vaddss Vaddsd |s, b, c, _| s.arithmetic(Arith::Add, b, c);
            Vsubps Vsubpd Vsubss Vsubsd |s, b, c, _| s.arithmetic(Arith::Sub, b, c);
            Vmulps Vmulpd Vmulss Vmulsd |s, b, c, _| s.arithmetic(Arith::Mul, b, c);
            Vdivps Vdivpd Vdivss Vdivsd |s, b, c, _| s.arithmetic(Arith::Div, b, c);
            Vminps Vminpd Vminss Vminsd |s, b, c, _| s.select(b, c, Ordering::Less);
            Vmaxps Vmaxpd Vmaxss Vmaxsd |s, b, c, _| s.select(b, c, Ordering::Greater);
            Vcmpps Vcmppd Vcmpss Vcmpsd |s, b, c, control| if wide_predicate(s, b, c, control) { !0 } else { 0 };
        )
    };
    let unary = || {
        four_unary!(mnemonic, shape;
            Vsqrtps Vsqrtpd Vsqrtss Vsqrtsd |s, b, _i| s.sqrt(b);
            Vroundps Vroundpd Vroundss Vroundsd |s, b, control| s.round_to_integral(b, control);
        )
    };
    binary().or_else(unary).or_else(|| other(mnemonic, shape))
}

fn other(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vhaddps => by_shape!(shape; lanes; |s, b, c, _| horizontal32(s, Arith::Add, b, c)),
        M::Vhaddpd => by_shape!(shape; lanes; |s, b, c, _| horizontal64(s, Arith::Add, b, c)),
        M::Vhsubps => by_shape!(shape; lanes; |s, b, c, _| horizontal32(s, Arith::Sub, b, c)),
        M::Vhsubpd => by_shape!(shape; lanes; |s, b, c, _| horizontal64(s, Arith::Sub, b, c)),
        M::Vaddsubps => by_shape!(shape; lanes; |s, b, c, _| alternate32(s, b, c)),
        M::Vaddsubpd => by_shape!(shape; lanes; |s, b, c, _| alternate64(s, b, c)),
        M::Vdpps => by_shape!(shape; steps; dot32),
        M::Vdppd => by_shape!(shape; steps; |mxcsr, [b, ..], [c, ..], control| {
            dppd(mxcsr, b, c, control).map(|lane| std::array::from_fn(|_| lane))
        }),
        M::Vrcpps => by_shape!(shape; unary; |b| rcpps(0, b)),
        M::Vrsqrtps => by_shape!(shape; unary; |b| rsqrtps(0, b)),
        M::Vrcpss => by_memory!(shape; approximate; rcpss),
        M::Vrsqrtss => by_memory!(shape; approximate; rsqrtss),
        M::Vcomiss => by_memory!(shape; ordered, u32; false),
        M::Vcomisd => by_memory!(shape; ordered, u64; false),
        M::Vucomiss => by_memory!(shape; ordered, u32; true),
        M::Vucomisd => by_memory!(shape; ordered, u64; true),
        _ => return None,
    })
}

/// `a = f(mxcsr, b, c, imm8)`: what raises exceptions in several steps.
#[inline(always)]
fn steps<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Mxcsr, [u128; N], [u128; N], u8) -> Outcome<[u128; N]>,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let b = get::<N>(cpu, op.b);
    let result = f(&mut cpu.mxcsr, b, c, op.imm as u8);
    deliver::<N>(cpu, op, result)
}

/// The lowest single of `a` is an approximation, the others are those of `b`.
#[inline(always)]
fn approximate<const MEMORY: bool>(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u128) -> u128) -> Flow {
    enter(cpu)?;
    let c = small_source::<MEMORY, u32>(cpu, op, op.c, load32)?;
    set(cpu, op.a, [f(xmm(cpu, op.b), c)]);
    Ok(())
}

/// Sets RFLAGS from a comparison of the lowest elements.
#[inline(always)]
fn ordered<E: Packed, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, quiet: bool) -> Flow {
    enter(cpu)?;
    let b = if MEMORY {
        E::load(cpu, op)?
    } else {
        E::low(xmm(cpu, op.b))
    };
    let a = E::low(xmm(cpu, op.a));
    let order = compare(&mut cpu.mxcsr, a, b, quiet);
    let Order { zero, parity, carry } = arithmetic(cpu, order)?;
    set_flags(cpu, zero, parity, carry);
    Ok(())
}
