//! Rounding: the one place where a result loses bits and exception flags are raised.

use super::flag;
use super::format::Value;

/// Rounding control as encoded in MXCSR.RC and in the x87 control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// Toward negative infinity.
    Down,
    /// Toward positive infinity.
    Up,
    /// Toward zero.
    Zero,
}

impl Rounding {
    /// From the two-bit field.
    pub const fn from_bits(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }
}

/// Precision and exponent range that a result must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Significand bits, the integer bit included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub min_exponent: i32,
    /// Exponent of the largest finite number.
    pub max_exponent: i32,
}

impl Target {
    /// IEEE half precision.
    pub const F16: Target = Target {
        precision: 11,
        min_exponent: -14,
        max_exponent: 15,
    };
    /// IEEE single precision.
    pub const F32: Target = Target {
        precision: 24,
        min_exponent: -126,
        max_exponent: 127,
    };
    /// IEEE double precision.
    pub const F64: Target = Target {
        precision: 53,
        min_exponent: -1022,
        max_exponent: 1023,
    };
    /// x87 double-extended precision.
    pub const F80: Target = Target {
        precision: 64,
        min_exponent: -16382,
        max_exponent: 16383,
    };
}

/// How to round, and what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Rounding control.
    pub rounding: Rounding,
    /// Exceptions that are masked (a set bit asks for the default result).
    pub masked: u8,
    /// A tiny result becomes zero where underflow is masked (MXCSR.FTZ).
    pub flush_to_zero: bool,
    /// An unmasked overflow or underflow delivers the result with its exponent wrapped by this amount;
    /// zero where the result is not delivered at all (SSE).
    pub wrap: i32,
    /// Flags raised so far.
    pub flags: u8,
    /// The last rounding increased the magnitude (x87 C1).
    pub rounded_up: bool,
}

impl Environment {
    /// Round to nearest with every exception masked and no flag raised.
    pub const fn nearest() -> Environment {
        Environment {
            rounding: Rounding::Nearest,
            masked: flag::ALL,
            flush_to_zero: false,
            wrap: 0,
            flags: 0,
            rounded_up: false,
        }
    }

    /// Raises flags.
    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Raises invalid and gives the default NaN.
    pub fn invalid(&mut self) -> Value {
        self.raise(flag::INVALID);
        Value::indefinite()
    }
}

/// A significand cut to an integer number of units.
pub(super) struct Cut {
    /// The units kept, incremented where the rounding said so (so it may have one bit more).
    pub units: u128,
    /// Bits were lost.
    pub inexact: bool,
    /// The magnitude was incremented.
    pub up: bool,
}

/// Drops the `drop` low bits of `significand`, rounding the rest.
pub(super) fn cut(rounding: Rounding, sign: bool, significand: u128, drop: u32) -> Cut {
    if drop == 0 {
        return Cut {
            units: significand,
            inexact: false,
            up: false,
        };
    }
    // The dropped part against one half of the last kept unit.
    let (units, rest, half) = match drop {
        1..128 => (significand >> drop, significand << (128 - drop), 1 << 127),
        128 => (0, significand, 1 << 127),
        _ => (0, (significand != 0) as u128, 1 << 127),
    };
    let up = match rounding {
        Rounding::Nearest => rest > half || rest == half && units & 1 != 0,
        Rounding::Down => sign && rest != 0,
        Rounding::Up => !sign && rest != 0,
        Rounding::Zero => false,
    };
    Cut {
        units: units + up as u128,
        inexact: rest != 0,
        up,
    }
}

/// Rounds `significand * 2^(exponent - 127)`, whose bit 127 is set and whose bit 0 may be sticky, to
/// `target`.
pub fn round(env: &mut Environment, target: &Target, sign: bool, exponent: i32, significand: u128) -> Value {
    debug_assert!(significand >> 127 != 0);
    let (value, inexact, up) = round_unbounded(env.rounding, target, sign, exponent, significand);
    if value.exponent < target.min_exponent {
        return round_tiny(env, target, sign, exponent, significand);
    }
    env.rounded_up = up;
    if value.exponent > target.max_exponent {
        return overflow(env, target, value, inexact);
    }
    if inexact {
        env.raise(flag::INEXACT);
    }
    value
}

/// Rounds as if the exponent had no bounds.
fn round_unbounded(
    rounding: Rounding,
    target: &Target,
    sign: bool,
    exponent: i32,
    significand: u128,
) -> (Value, bool, bool) {
    let Cut { units, inexact, up } = cut(rounding, sign, significand, 128 - target.precision);
    let value = if units >> target.precision != 0 {
        Value::finite(sign, exponent + 1, 1 << 63)
    } else {
        Value::finite(sign, exponent, (units << (64 - target.precision)) as u64)
    };
    (value, inexact, up)
}

fn overflow(env: &mut Environment, target: &Target, value: Value, inexact: bool) -> Value {
    env.raise(flag::OVERFLOW);
    if env.masked & flag::OVERFLOW == 0 {
        if inexact {
            env.raise(flag::INEXACT);
        }
        return Value {
            exponent: value.exponent - env.wrap,
            ..value
        };
    }
    env.raise(flag::INEXACT);
    let to_infinity = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => value.sign,
        Rounding::Up => !value.sign,
        Rounding::Zero => false,
    };
    env.rounded_up = to_infinity;
    if to_infinity {
        return Value::infinity(value.sign);
    }
    Value::finite(value.sign, target.max_exponent, !0 << (64 - target.precision))
}

/// Rounds a result that stays below the smallest normal number even when rounded to full precision.
fn round_tiny(env: &mut Environment, target: &Target, sign: bool, exponent: i32, significand: u128) -> Value {
    if env.masked & flag::UNDERFLOW == 0 {
        let (value, inexact, up) = round_unbounded(env.rounding, target, sign, exponent, significand);
        env.raise(flag::UNDERFLOW);
        if inexact {
            env.raise(flag::INEXACT);
        }
        env.rounded_up = up;
        return Value {
            exponent: value.exponent + env.wrap,
            ..value
        };
    }
    if env.flush_to_zero {
        env.raise(flag::UNDERFLOW | flag::INEXACT);
        env.rounded_up = false;
        return Value::zero(sign);
    }
    let shift = (target.min_exponent - exponent) as u32;
    let drop = (128 - target.precision).saturating_add(shift);
    let Cut { units, inexact, up } = cut(env.rounding, sign, significand, drop);
    env.rounded_up = up;
    if inexact {
        env.raise(flag::UNDERFLOW | flag::INEXACT);
    }
    if units == 0 {
        return Value::zero(sign);
    }
    // Bit 63 stays clear unless the increment reached the smallest normal number.
    Value::finite(
        sign,
        target.min_exponent,
        (units << (64 - target.precision)) as u64,
    )
}
