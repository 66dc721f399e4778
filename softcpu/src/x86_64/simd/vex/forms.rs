//! The shapes that VEX-encoded instructions come in, each a function over the width and over where the last
//! source is. The order within each is the architecture's order of faults: availability, memory, arithmetic.
//!
//! `op.a` is the destination, `op.b` the first source, `op.c` the second one.

use super::operand::*;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::element::{Element, Session};
use crate::x86_64::simd::float::{Outcome, instruction};
use crate::x86_64::simd::lanes::*;

/// Which of the functions that a form makes an instruction needs.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// 256 bits.
    pub wide: bool,
    /// An operand is in memory.
    pub memory: bool,
}

/// The handler of a form: its function for the instruction's width and operand.
macro_rules! by_shape {
    ($shape:expr; $form:ident $(, $generic:ty)*; $($argument:expr),*) => {
        match $shape {
            Shape { wide: false, memory: false } => {
                (|cpu, op| $form::<$($generic,)* 1, false>(cpu, op $(, $argument)*)) as Handler
            }
            Shape { wide: false, memory: true } => {
                (|cpu, op| $form::<$($generic,)* 1, true>(cpu, op $(, $argument)*)) as Handler
            }
            Shape { wide: true, memory: false } => {
                (|cpu, op| $form::<$($generic,)* 2, false>(cpu, op $(, $argument)*)) as Handler
            }
            Shape { wide: true, memory: true } => {
                (|cpu, op| $form::<$($generic,)* 2, true>(cpu, op $(, $argument)*)) as Handler
            }
        }
    };
}

/// The handler of a form that has one width.
macro_rules! by_memory {
    ($shape:expr; $form:ident $(, $generic:ty)*; $($argument:expr),*) => {
        if $shape.memory {
            (|cpu, op| $form::<$($generic,)* true>(cpu, op $(, $argument)*)) as Handler
        } else {
            (|cpu, op| $form::<$($generic,)* false>(cpu, op $(, $argument)*)) as Handler
        }
    };
}

/// The handler of a form that never has an operand in memory.
macro_rules! by_width {
    ($shape:expr; $form:ident; $($argument:expr),*) => {
        if $shape.wide {
            (|cpu, op| $form::<2>(cpu, op $(, $argument)*)) as Handler
        } else {
            (|cpu, op| $form::<1>(cpu, op $(, $argument)*)) as Handler
        }
    };
}

pub(super) use {by_memory, by_shape, by_width};

/// `a = f(b, c)` by lanes.
#[inline(always)]
pub(super) fn binary<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(u128, u128) -> u128,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let b = get::<N>(cpu, op.b);
    set::<N>(cpu, op.a, std::array::from_fn(|lane| f(b[lane], c[lane])));
    Ok(())
}

/// `a = f(b, c, imm8)` by lanes; lane 1 gets the immediate without its low `next` bits.
#[inline(always)]
pub(super) fn binary_control<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    next: u32,
    f: impl Fn(u128, u128, u8) -> u128,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let b = get::<N>(cpu, op.b);
    let control = |lane: usize| op.imm as u8 >> (next * lane as u32);
    set::<N>(
        cpu,
        op.a,
        std::array::from_fn(|lane| f(b[lane], c[lane], control(lane))),
    );
    Ok(())
}

/// `a = f(b)` by lanes, where `b` may be memory.
#[inline(always)]
pub(super) fn unary<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(u128) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = source::<N, MEMORY>(cpu, op, op.b)?;
    set::<N>(cpu, op.a, b.map(f));
    Ok(())
}

/// `a = f(b, imm8)` by lanes, where `b` may be memory; lane 1 gets the immediate without its low `next` bits.
#[inline(always)]
pub(super) fn unary_control<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    next: u32,
    f: impl Fn(u128, u8) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = source::<N, MEMORY>(cpu, op, op.b)?;
    let control = |lane: usize| op.imm as u8 >> (next * lane as u32);
    set::<N>(cpu, op.a, std::array::from_fn(|lane| f(b[lane], control(lane))));
    Ok(())
}

/// `a = f(b, count)` by lanes, where the count is the low quadword of register `c` or of 128 bits of memory.
#[inline(always)]
pub(super) fn shift<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(u128, u64) -> u128,
) -> Flow {
    enter(cpu)?;
    let [count] = source::<1, MEMORY>(cpu, op, op.c)?;
    let b = get::<N>(cpu, op.b);
    set::<N>(cpu, op.a, b.map(|lane| f(lane, count as u64)));
    Ok(())
}

/// `a = f(b, imm8)` by lanes: shifts by a constant.
#[inline(always)]
pub(super) fn shift_by<const N: usize>(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u64) -> u128) -> Flow {
    enter(cpu)?;
    let b = get::<N>(cpu, op.b);
    set::<N>(cpu, op.a, b.map(|lane| f(lane, op.imm & 0xff)));
    Ok(())
}

/// `a = f(b, c, d)` by lanes: the variable blends, whose fourth operand is in the immediate.
#[inline(always)]
pub(super) fn blend<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(u128, u128, u128) -> u128,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let (b, d) = (get::<N>(cpu, op.b), get::<N>(cpu, op.imm as u8));
    set::<N>(
        cpu,
        op.a,
        std::array::from_fn(|lane| f(b[lane], c[lane], d[lane])),
    );
    Ok(())
}

/// The elements of a lane.
pub(super) trait Packed: Element + Into<u128> {
    /// Applies a function to every pair of elements.
    fn zip(a: u128, b: u128, f: impl FnMut(Self, Self) -> Self) -> u128;
    /// The lowest element.
    fn low(lane: u128) -> Self;
    /// The lane with its lowest element replaced.
    fn with_low(lane: u128, low: Self) -> u128;
    /// Reads one from memory.
    fn load(cpu: &mut Cpu, op: &Op) -> Result<Self, Stop>;
}

macro_rules! packed_elements {
    ($($element:ty, $zip:ident, $with:ident, $load:ident;)*) => {$(
        impl Packed for $element {
            #[inline(always)]
            fn zip(a: u128, b: u128, f: impl FnMut(Self, Self) -> Self) -> u128 {
                $zip(a, b, f)
            }

            #[inline(always)]
            fn low(lane: u128) -> Self {
                lane as $element
            }

            #[inline(always)]
            fn with_low(lane: u128, low: Self) -> u128 {
                $with(lane, low)
            }

            #[inline(always)]
            fn load(cpu: &mut Cpu, op: &Op) -> Result<Self, Stop> {
                $load(cpu, op)
            }
        }
    )*};
}

packed_elements! {
    u32, zip32, with_low32, load32;
    u64, zip64, with_low64, load64;
}

/// Delivers a result of floating point arithmetic, or #XM.
#[inline(always)]
pub(super) fn deliver<const N: usize>(cpu: &mut Cpu, op: &Op, result: Outcome<[u128; N]>) -> Flow {
    let lanes = arithmetic(cpu, result)?;
    set::<N>(cpu, op.a, lanes);
    Ok(())
}

/// The result of arithmetic, or #XM.
#[inline(always)]
pub(super) fn arithmetic<T>(cpu: &mut Cpu, result: Outcome<T>) -> Result<T, Stop> {
    result.map_err(|_unmasked| simd_exception(cpu))
}

/// `a = f(b, c)` by elements.
#[inline(always)]
pub(super) fn packed<E: Packed, const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, E, E, u8) -> E,
) -> Flow {
    lanes::<N, MEMORY>(cpu, op, |s, b, c, control| {
        E::zip(b, c, |b, c| f(s, b, c, control))
    })
}

/// `a = f(b)` by elements, where `b` may be memory.
#[inline(always)]
pub(super) fn packed_unary<E: Packed, const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, E, u8) -> E,
) -> Flow {
    lanes_unary::<N, MEMORY>(cpu, op, |s, b, control| E::zip(b, b, |b, _| f(s, b, control)))
}

/// The lowest element of `a` is `f(b, c)`, the others are those of `b`.
#[inline(always)]
pub(super) fn scalar<E: Packed, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, E, E, u8) -> E,
) -> Flow {
    enter(cpu)?;
    let c = if MEMORY {
        E::load(cpu, op)?
    } else {
        E::low(xmm(cpu, op.c))
    };
    let b = xmm(cpu, op.b);
    let result = instruction(&mut cpu.mxcsr, |s| {
        [E::with_low(b, f(s, E::low(b), c, op.imm as u8))]
    });
    deliver(cpu, op, result)
}

/// `a = f(b, c, imm8)` by lanes, with floating point arithmetic.
#[inline(always)]
pub(super) fn lanes<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, u128, u128, u8) -> u128,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let b = get::<N>(cpu, op.b);
    let result = instruction(&mut cpu.mxcsr, |s| {
        std::array::from_fn(|lane| f(s, b[lane], c[lane], op.imm as u8))
    });
    deliver::<N>(cpu, op, result)
}

/// `a = f(b, imm8)` by lanes, with floating point arithmetic, where `b` may be memory.
#[inline(always)]
pub(super) fn lanes_unary<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, u128, u8) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = source::<N, MEMORY>(cpu, op, op.b)?;
    let result = instruction(&mut cpu.mxcsr, |s| b.map(|lane| f(s, lane, op.imm as u8)));
    deliver::<N>(cpu, op, result)
}
