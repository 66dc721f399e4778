//! Conversions to and from integers.

use super::flag;
use super::format::{Class, Value};
use super::round::{Cut, Environment, Rounding, Target, cut, round};

/// An integer rounded to the target.
pub fn from_i64(env: &mut Environment, target: &Target, value: i64) -> Value {
    if value == 0 {
        return Value::zero(false);
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    round(
        env,
        target,
        value < 0,
        63 - shift as i32,
        ((magnitude << shift) as u128) << 64,
    )
}

/// The magnitude of a finite number rounded to an integer; nothing where it exceeds 127 bits.
fn integral_magnitude(rounding: Rounding, value: Value) -> Option<Cut> {
    match value.exponent {
        ..127 => {
            // 127 - exponent bits lie below the binary point, once bit 127 is the top one.
            let significand = (value.significand as u128) << 64;
            Some(cut(
                rounding,
                value.sign,
                significand,
                (127 - value.exponent) as u32,
            ))
        }
        _ => None,
    }
}

/// Rounds to a signed integer of `bits` bits; nothing, without any flag, where it does not fit.
/// The operand may be anything: NaNs and infinities do not fit.
pub fn checked_to_integer(env: &mut Environment, value: Value, bits: u32) -> Option<i64> {
    match value.class {
        Class::Zero => return Some(0),
        Class::Finite => {}
        _ => return None,
    }
    let Cut { units, inexact, up } = integral_magnitude(env.rounding, value)?;
    let limit = (1u128 << (bits - 1)) - !value.sign as u128;
    if units > limit {
        return None;
    }
    env.rounded_up = up;
    if inexact {
        env.raise(flag::INEXACT);
    }
    let magnitude = units as u64;
    Some(if value.sign {
        magnitude.wrapping_neg()
    } else {
        magnitude
    } as i64)
}

/// Rounds to a signed integer of `bits` bits; raises invalid and gives the "integer indefinite" (the most
/// negative number) where it does not fit.
pub fn to_integer(env: &mut Environment, value: Value, bits: u32) -> i64 {
    checked_to_integer(env, value, bits).unwrap_or_else(|| {
        env.raise(flag::INVALID);
        -1 << (bits - 1)
    })
}

/// Rounds a number to an integral number of the same format (FRNDINT, ROUNDPD); raises inexact.
pub fn round_to_integral(env: &mut Environment, value: Value) -> Value {
    if value.class != Class::Finite || value.exponent >= 63 {
        return value;
    }
    let Cut { units, inexact, up } = cut(
        env.rounding,
        value.sign,
        value.significand as u128,
        (63 - value.exponent).unsigned_abs(),
    );
    env.rounded_up = up;
    if inexact {
        env.raise(flag::INEXACT);
    }
    if units == 0 {
        return Value::zero(value.sign);
    }
    let significand = units as u64;
    let shift = significand.leading_zeros();
    Value::finite(value.sign, 63 - shift as i32, significand << shift)
}
