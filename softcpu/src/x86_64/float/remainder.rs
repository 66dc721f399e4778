//! The partial remainders of x87.

use super::format::Value;
use std::cmp::Ordering;

/// How the quotient is made integral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotient {
    /// Truncated: FPREM.
    Truncated,
    /// To nearest, ties to even: FPREM1.
    Nearest,
}

/// How far one reduction goes where the exponents differ by 64 or more; any number from 32 to 63 is
/// allowed (Intel SDM vol. 2, FPREM), the same formula as hardware's is used.
fn partial_step(difference: i32) -> i32 {
    difference % 32 + 32
}

/// The exact remainder of two finite numbers, and the quotient's low three bits; the latter are absent
/// where the reduction is only partial. The result is not rounded: it always fits.
pub fn remainder(a: Value, b: Value, quotient: Quotient) -> (Value, Option<u8>) {
    let difference = a.exponent - b.exponent;
    if difference < -1 || difference < 0 && quotient == Quotient::Truncated {
        return (Value { denormal: false, ..a }, Some(0));
    }
    if difference >= 64 {
        let step = partial_step(difference);
        let rest = scaled_modulo(a.significand, b.significand, step).1;
        return (normalise(a.sign, rest, b.exponent + difference - step), None);
    }
    if difference < 0 {
        return nearest_below_one(a, b);
    }
    let (q, rest) = scaled_modulo(a.significand, b.significand, difference);
    if quotient == Quotient::Nearest {
        let twice = (rest as u128) << 1;
        let order = twice.cmp(&(b.significand as u128));
        if order == Ordering::Greater || order == Ordering::Equal && q & 1 != 0 {
            let value = normalise(!a.sign, b.significand - rest, b.exponent);
            return (value, Some((q as u8).wrapping_add(1) & 7));
        }
    }
    (normalise(a.sign, rest, b.exponent), Some(q as u8 & 7))
}

/// The quotient (modulo 2^64) and the remainder of `a * 2^shift / b`, for a shift of at most 63.
fn scaled_modulo(a: u64, b: u64, shift: i32) -> (u64, u64) {
    let dividend = (a as u128) << shift;
    ((dividend / b as u128) as u64, (dividend % b as u128) as u64)
}

/// FPREM1 where `a` is between a quarter of `b` and `b`, exponents differing by one.
fn nearest_below_one(a: Value, b: Value) -> (Value, Option<u8>) {
    // In units of a's last place b is twice its significand; a/b > 1/2 means a > b.significand.
    if a.significand <= b.significand {
        return (Value { denormal: false, ..a }, Some(0));
    }
    let rest = ((b.significand as u128) << 1) - a.significand as u128;
    (normalise(!a.sign, rest as u64, a.exponent), Some(1))
}

/// `significand * 2^(exponent - 63)` normalised; zero keeps the dividend's sign.
fn normalise(sign: bool, significand: u64, exponent: i32) -> Value {
    if significand == 0 {
        return Value::zero(sign);
    }
    let shift = significand.leading_zeros();
    Value::finite(sign, exponent - shift as i32, significand << shift)
}
