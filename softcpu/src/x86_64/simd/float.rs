//! Packed and scalar floating point instructions on register values.
//!
//! Each function takes MXCSR, returns the whole destination register and leaves MXCSR's sticky flags as
//! hardware does; where an unmasked exception occurred there is no result.

use super::element::{Element, Op, Session};
use super::lanes::*;
use super::mxcsr::{Mxcsr, Unmasked};
use std::cmp::Ordering;

/// The destination register, or #XM.
pub type Outcome<T = u128> = Result<T, Unmasked>;

/// Runs one instruction.
#[inline(always)]
pub(super) fn instruction<T>(mxcsr: &mut Mxcsr, f: impl FnOnce(&mut Session) -> T) -> Outcome<T> {
    let mut session = Session::new(*mxcsr);
    let result = f(&mut session);
    session.finish(mxcsr)?;
    Ok(result)
}

macro_rules! four_forms {
    ($($ps:ident $pd:ident $ss:ident $sd:ident = |$s:ident, $a:ident, $b:ident| $f:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($ps), "`")]
            #[inline]
            pub fn $ps(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
                instruction(mxcsr, |$s| zip32(a, b, |$a, $b| $f))
            }

            #[doc = concat!("`", stringify!($pd), "`")]
            #[inline]
            pub fn $pd(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
                instruction(mxcsr, |$s| zip64(a, b, |$a, $b| $f))
            }

            #[doc = concat!("`", stringify!($ss), "`: the low element; the others are the first operand's")]
            #[inline]
            pub fn $ss(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
                instruction(mxcsr, |$s| {
                    let ($a, $b) = (a as u32, b as u32);
                    with_low32(a, $f)
                })
            }

            #[doc = concat!("`", stringify!($sd), "`: the low element; the other is the first operand's")]
            #[inline]
            pub fn $sd(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
                instruction(mxcsr, |$s| {
                    let ($a, $b) = (a as u64, b as u64);
                    with_low64(a, $f)
                })
            }
        )*
    };
}

four_forms! {
    addps addpd addss addsd = |s, a, b| s.arithmetic(Op::Add, a, b);
    subps subpd subss subsd = |s, a, b| s.arithmetic(Op::Sub, a, b);
    mulps mulpd mulss mulsd = |s, a, b| s.arithmetic(Op::Mul, a, b);
    divps divpd divss divsd = |s, a, b| s.arithmetic(Op::Div, a, b);
    minps minpd minss minsd = |s, a, b| s.select(a, b, Ordering::Less);
    maxps maxpd maxss maxsd = |s, a, b| s.select(a, b, Ordering::Greater);
    sqrtps sqrtpd sqrtss sqrtsd = |s, _a, b| s.sqrt(b);
}

macro_rules! forms_with_control {
    ($($ps:ident $pd:ident $ss:ident $sd:ident = |$s:ident, $a:ident, $b:ident, $control:ident| $f:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($ps), "`")]
            pub fn $ps(mxcsr: &mut Mxcsr, a: u128, b: u128, $control: u8) -> Outcome {
                instruction(mxcsr, |$s| zip32(a, b, |$a, $b| $f))
            }

            #[doc = concat!("`", stringify!($pd), "`")]
            pub fn $pd(mxcsr: &mut Mxcsr, a: u128, b: u128, $control: u8) -> Outcome {
                instruction(mxcsr, |$s| zip64(a, b, |$a, $b| $f))
            }

            #[doc = concat!("`", stringify!($ss), "`: the low element")]
            pub fn $ss(mxcsr: &mut Mxcsr, a: u128, b: u128, $control: u8) -> Outcome {
                instruction(mxcsr, |$s| {
                    let ($a, $b) = (a as u32, b as u32);
                    with_low32(a, $f)
                })
            }

            #[doc = concat!("`", stringify!($sd), "`: the low element")]
            pub fn $sd(mxcsr: &mut Mxcsr, a: u128, b: u128, $control: u8) -> Outcome {
                instruction(mxcsr, |$s| {
                    let ($a, $b) = (a as u64, b as u64);
                    with_low64(a, $f)
                })
            }
        )*
    };
}

forms_with_control! {
    cmpps cmppd cmpss cmpsd = |s, a, b, control| if predicate(s, a, b, control) { !0 } else { 0 };
    roundps roundpd roundss roundsd = |s, _a, b, control| s.round_to_integral(b, control);
}

/// The eight predicates of CMPPS; those of order raise invalid for quiet NaNs too.
#[inline]
fn predicate<E: Element>(session: &mut Session, a: E, b: E, control: u8) -> bool {
    wide_predicate(session, a, b, control & 7)
}

/// The outcomes of a comparison for which a predicate of VCMPPS holds: less, equal, greater and unordered from
/// bit 0 on (Intel SDM vol. 2, table 3-1).
const PREDICATES: [u8; 16] = [
    0b0010, 0b0001, 0b0011, 0b1000, 0b1101, 0b1110, 0b1100, 0b0111, // EQ LT LE UNORD NEQ NLT NLE ORD
    0b1010, 0b1001, 0b1011, 0b0000, 0b0101, 0b0110, 0b0100, 0b1111, // EQ NGE NGT FALSE NEQ GE GT TRUE
];

/// The 32 predicates of VCMPPS; bit 4 makes those that are quiet signal, and the others quiet.
#[inline]
pub(super) fn wide_predicate<E: Element>(session: &mut Session, a: E, b: E, control: u8) -> bool {
    let quiet = matches!(control & 3, 0 | 3) != (control & 16 != 0);
    let outcome = match session.compare(a, b, quiet) {
        Some(Ordering::Less) => 0,
        Some(Ordering::Equal) => 1,
        Some(Ordering::Greater) => 2,
        None => 3,
    };
    PREDICATES[control as usize & 15] >> outcome & 1 != 0
}

/// ZF, PF and CF of COMISS and UCOMISS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Equal or unordered.
    pub zero: bool,
    /// Unordered.
    pub parity: bool,
    /// Less or unordered.
    pub carry: bool,
}

impl From<Option<Ordering>> for Order {
    fn from(order: Option<Ordering>) -> Order {
        Order {
            zero: matches!(order, None | Some(Ordering::Equal)),
            parity: order.is_none(),
            carry: matches!(order, None | Some(Ordering::Less)),
        }
    }
}

/// COMISS, COMISD and (quiet) UCOMISS, UCOMISD.
#[inline]
pub fn compare<E: Element>(mxcsr: &mut Mxcsr, a: E, b: E, quiet: bool) -> Outcome<Order> {
    instruction(mxcsr, |s| s.compare(a, b, quiet).into())
}

/// HADDPS, HSUBPS: `op` on neighbours.
pub fn horizontal_ps(mxcsr: &mut Mxcsr, op: Op, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| horizontal32(s, op, a, b))
}

/// HADDPD, HSUBPD: `op` on neighbours.
pub fn horizontal_pd(mxcsr: &mut Mxcsr, op: Op, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| horizontal64(s, op, a, b))
}

/// `op` on neighbouring singles of a lane.
pub(super) fn horizontal32(s: &mut Session, op: Op, a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (split32(a), split32(b));
    join32([(a0, a1), (a2, a3), (b0, b1), (b2, b3)].map(|(x, y)| s.arithmetic(op, x, y)))
}

/// `op` on neighbouring doubles of a lane.
pub(super) fn horizontal64(s: &mut Session, op: Op, a: u128, b: u128) -> u128 {
    let ([a0, a1], [b0, b1]) = (split64(a), split64(b));
    join64([(a0, a1), (b0, b1)].map(|(x, y)| s.arithmetic(op, x, y)))
}

/// The operation of ADDSUBPS and ADDSUBPD on element `i`.
const fn alternate(i: usize) -> Op {
    if i.is_multiple_of(2) { Op::Sub } else { Op::Add }
}

/// ADDSUBPS
pub fn addsubps(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| alternate32(s, a, b))
}

/// ADDSUBPD
pub fn addsubpd(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| alternate64(s, a, b))
}

/// Differences of the even singles of a lane, and sums of the odd ones.
pub(super) fn alternate32(s: &mut Session, a: u128, b: u128) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join32(std::array::from_fn(|i| s.arithmetic(alternate(i), a[i], b[i])))
}

/// The same of doubles.
pub(super) fn alternate64(s: &mut Session, a: u128, b: u128) -> u128 {
    let (a, b) = (split64(a), split64(b));
    join64(std::array::from_fn(|i| s.arithmetic(alternate(i), a[i], b[i])))
}

/// DPPS
pub fn dpps(mxcsr: &mut Mxcsr, a: u128, b: u128, control: u8) -> Outcome {
    dot32(mxcsr, [a], [b], control).map(|[lane]| lane)
}

/// The dot products of the singles of each lane: each step is an instruction of its own, as far as exceptions
/// go.
pub(super) fn dot32<const N: usize>(
    mxcsr: &mut Mxcsr,
    a: [u128; N],
    b: [u128; N],
    control: u8,
) -> Outcome<[u128; N]> {
    let products = instruction(mxcsr, |s| -> [[u32; 4]; N] {
        let selected = |i: usize| control >> (4 + i) & 1 != 0;
        std::array::from_fn(|lane| {
            let (a, b) = (split32(a[lane]), split32(b[lane]));
            std::array::from_fn(|i| {
                if selected(i) {
                    s.arithmetic(Op::Mul, a[i], b[i])
                } else {
                    0
                }
            })
        })
    })?;
    let halves = instruction(mxcsr, |s| {
        products.map(|lane| [(0, 1), (2, 3)].map(|(i, k)| s.arithmetic(Op::Add, lane[i], lane[k])))
    })?;
    let sums = instruction(mxcsr, |s| {
        halves.map(|[low, high]| s.arithmetic(Op::Add, low, high))
    })?;
    Ok(sums.map(|sum| {
        join32(std::array::from_fn(
            |i| {
                if control >> i & 1 != 0 { sum } else { 0 }
            },
        ))
    }))
}

/// DPPD
pub fn dppd(mxcsr: &mut Mxcsr, a: u128, b: u128, control: u8) -> Outcome {
    let (a, b) = (split64(a), split64(b));
    let products = instruction(mxcsr, |s| -> [u64; 2] {
        let selected = |i: usize| control >> (4 + i) & 1 != 0;
        std::array::from_fn(|i| {
            if selected(i) {
                s.arithmetic(Op::Mul, a[i], b[i])
            } else {
                0
            }
        })
    })?;
    let sum = instruction(mxcsr, |s| s.arithmetic(Op::Add, products[0], products[1]))?;
    Ok(join64(std::array::from_fn(|i| {
        if control >> i & 1 != 0 { sum } else { 0 }
    })))
}

/// An approximation instruction on one element: no flags, denormals and tiny results are zeros, and the
/// result keeps 12 significant bits (the architecture allows a relative error of 1.5 * 2^-12).
fn approximate(x: u32, f: impl Fn(f32) -> f32) -> u32 {
    let number = f32::from_bits(if x.is_denormal() { x & 1 << 31 } else { x });
    if number.is_nan() {
        return x | 1 << 22;
    }
    let result = f(number);
    if result.is_nan() {
        return 0xffc0_0000;
    }
    if result.is_infinite() || result == 0.0 {
        return result.to_bits();
    }
    let rounded = result.to_bits().wrapping_add(0x400) & !0x7ff;
    if rounded.is_denormal() {
        rounded & 1 << 31
    } else {
        rounded
    }
}

fn reciprocal(x: u32) -> u32 {
    approximate(x, |v| 1.0 / v)
}

fn reciprocal_sqrt(x: u32) -> u32 {
    approximate(x, |v| if v == 0.0 { 1.0 / v } else { 1.0 / v.sqrt() })
}

/// RCPPS
pub fn rcpps(_a: u128, b: u128) -> u128 {
    map32(b, reciprocal)
}

/// RCPSS
pub fn rcpss(a: u128, b: u128) -> u128 {
    with_low32(a, reciprocal(b as u32))
}

/// RSQRTPS
pub fn rsqrtps(_a: u128, b: u128) -> u128 {
    map32(b, reciprocal_sqrt)
}

/// RSQRTSS
pub fn rsqrtss(a: u128, b: u128) -> u128 {
    with_low32(a, reciprocal_sqrt(b as u32))
}
