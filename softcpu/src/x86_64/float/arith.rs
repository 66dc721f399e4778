//! The five operations of arithmetic on unpacked numbers.
//!
//! Operands that are NaNs or unsupported are the caller's business, because SSE and x87 choose the
//! resulting NaN differently; here every operand is a zero, a finite number or an infinity.

use super::flag;
use super::format::{Class, Value};
use super::round::{Environment, Rounding, Target, round};
use std::cmp::Ordering;

/// `a + b`.
pub fn add(env: &mut Environment, target: &Target, a: Value, b: Value) -> Value {
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) if a.sign != b.sign => env.invalid(),
        (Class::Infinity, _) => a,
        (_, Class::Infinity) => b,
        (Class::Zero, Class::Zero) if a.sign == b.sign => a,
        (Class::Zero, Class::Zero) => Value::zero(env.rounding == Rounding::Down),
        (Class::Zero, _) => widen(env, target, b),
        (_, Class::Zero) => widen(env, target, a),
        _ => add_finite(env, target, a, b),
    }
}

/// `a - b`.
pub fn sub(env: &mut Environment, target: &Target, a: Value, b: Value) -> Value {
    add(env, target, a, b.negated())
}

/// Rounds a lone finite operand to the target.
fn widen(env: &mut Environment, target: &Target, a: Value) -> Value {
    round(env, target, a.sign, a.exponent, (a.significand as u128) << 64)
}

/// `a >> shift` with every bit lost folded into bit 0.
fn shift_right_sticky(a: u128, shift: u32) -> u128 {
    match shift {
        0 => a,
        1..128 => a >> shift | (a << (128 - shift) != 0) as u128,
        _ => (a != 0) as u128,
    }
}

fn add_finite(env: &mut Environment, target: &Target, a: Value, b: Value) -> Value {
    // One bit of headroom above for the carry, 63 below for the guard bits.
    let aligned = |v: Value| (v.sign, v.exponent, (v.significand as u128) << 63);
    add_aligned(env, target, aligned(a), aligned(b))
}

/// `a * b`.
pub fn mul(env: &mut Environment, target: &Target, a: Value, b: Value) -> Value {
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => env.invalid(),
        (Class::Infinity, _) | (_, Class::Infinity) => Value::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => Value::zero(sign),
        _ => {
            let product = a.significand as u128 * b.significand as u128;
            let shift = product.leading_zeros();
            round(
                env,
                target,
                sign,
                a.exponent + b.exponent + 1 - shift as i32,
                product << shift,
            )
        }
    }
}

/// `a * b + c`, rounded once, for operands of at most 53 bits: a product of theirs has at most 106, so that
/// shifting it right by one is exact.
pub fn fused(env: &mut Environment, target: &Target, a: Value, b: Value, c: Value) -> Value {
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return env.invalid(),
        (Class::Infinity, _) | (_, Class::Infinity) => return add(env, target, Value::infinity(sign), c),
        (Class::Zero, _) | (_, Class::Zero) => return add(env, target, Value::zero(sign), c),
        _ => {}
    }
    let product = a.significand as u128 * b.significand as u128;
    let shift = product.leading_zeros();
    let (exponent, product) = (a.exponent + b.exponent + 1 - shift as i32, product << shift);
    match c.class {
        Class::Infinity => c,
        Class::Zero => round(env, target, sign, exponent, product),
        _ => add_aligned(
            env,
            target,
            (sign, exponent, product >> 1),
            (c.sign, c.exponent, (c.significand as u128) << 63),
        ),
    }
}

/// The sum of two finite numbers whose significands have bit 126 set, and enough zeros below that what a shift
/// to the right loses is far beyond the target's precision.
fn add_aligned(env: &mut Environment, target: &Target, a: (bool, i32, u128), b: (bool, i32, u128)) -> Value {
    let (big, small) = if (a.1, a.2) >= (b.1, b.2) { (a, b) } else { (b, a) };
    let (sign, exponent, x) = big;
    let y = shift_right_sticky(small.2, (exponent - small.1) as u32);
    let sum = if sign == small.0 { x + y } else { x - y };
    if sum == 0 {
        return Value::zero(env.rounding == Rounding::Down);
    }
    let shift = sum.leading_zeros();
    round(env, target, sign, exponent + 1 - shift as i32, sum << shift)
}

/// `a / b`.
pub fn div(env: &mut Environment, target: &Target, a: Value, b: Value) -> Value {
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => env.invalid(),
        (Class::Infinity, _) => Value::infinity(sign),
        (_, Class::Infinity) | (Class::Zero, _) => Value::zero(sign),
        (_, Class::Zero) => {
            env.raise(flag::DIVIDE_BY_ZERO);
            Value::infinity(sign)
        }
        _ => {
            let quotient = divide_significands(a.significand, b.significand);
            let shift = quotient.leading_zeros();
            // The quotient carries 95 fraction bits, so bit 95 weighs 2^(exponent difference).
            let exponent = a.exponent - b.exponent + 32 - shift as i32;
            round(env, target, sign, exponent, quotient << shift)
        }
    }
}

/// `a / b` for two normalised significands, with 95 fraction bits and a sticky bit 0.
fn divide_significands(a: u64, b: u64) -> u128 {
    let b = b as u128;
    let high = (a as u128) << 63;
    let (q, r) = (high / b, high % b);
    let low = r << 32;
    let (q_low, rest) = (low / b, low % b);
    q << 32 | q_low | (rest != 0) as u128
}

/// The square root of `a`.
pub fn sqrt(env: &mut Environment, target: &Target, a: Value) -> Value {
    match a.class {
        Class::Zero => a,
        _ if a.sign => env.invalid(),
        Class::Infinity => a,
        _ => {
            // An even exponent, so that it halves exactly; the radicand is in [2^126, 2^128).
            let odd = a.exponent & 1;
            let radicand = (a.significand as u128) << (63 + odd);
            let root = radicand.isqrt();
            let rest = radicand - root * root;
            // (root + 1/2)^2 = root^2 + root + 1/4: the half bit is set where the rest exceeds the root.
            let significand = root << 64 | ((rest > root) as u128) << 63 | (rest != 0) as u128;
            round(env, target, false, (a.exponent - odd) / 2, significand)
        }
    }
}

/// Orders two operands that are not NaNs.
pub fn compare(a: Value, b: Value) -> Ordering {
    let magnitude = |v: Value| match v.class {
        Class::Zero => (0, 0, 0),
        Class::Infinity => (2, 0, 0),
        _ => (1, v.exponent, v.significand),
    };
    match (a.class, b.class) {
        (Class::Zero, Class::Zero) => Ordering::Equal,
        _ => match (a.sign, b.sign) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(a).cmp(&magnitude(b)),
            (true, true) => magnitude(b).cmp(&magnitude(a)),
        },
    }
}
