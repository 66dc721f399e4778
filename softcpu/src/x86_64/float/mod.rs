//! Binary floating point with everything of it that an x86 program can see.
//!
//! SSE and x87 show more than IEEE 754 asks for: the denormal-operand flag, tininess judged after
//! rounding to an unbounded exponent, flush-to-zero, precision control (an 80-bit register rounded to 24
//! or 53 bits), the direction of rounding (C1), and wrapped exponents when an exception is unmasked.
//! A general software floating point library reports none of these, so the few operations that are
//! needed live here: a value is unpacked, one exact or sticky-exact result is formed in 128 bits, and
//! [`round::round`] is the single place that rounds and raises flags. `rustc_apfloat` is the oracle of
//! the tests.

mod arith;
mod convert;
mod format;
mod remainder;
pub mod round;
#[cfg(test)]
mod tests;

pub use arith::{add, compare, div, fused, mul, sqrt, sub};
pub use convert::{checked_to_integer, from_i64, round_to_integral, to_integer};
pub use format::{
    Class, F80, Value, pack_f16, pack_f32, pack_f64, pack_f80, unpack_f16, unpack_f32, unpack_f64, unpack_f80,
};
pub use remainder::{Quotient, remainder};
pub use round::{Environment, Rounding, Target};

/// Exception flags; the same bits in MXCSR and in the x87 status word (Intel SDM vol. 1, 8.1.3, 10.2.3).
pub mod flag {
    /// Invalid operation (IE).
    pub const INVALID: u8 = 1 << 0;
    /// A denormal operand was used (DE).
    pub const DENORMAL: u8 = 1 << 1;
    /// A finite number was divided by zero (ZE).
    pub const DIVIDE_BY_ZERO: u8 = 1 << 2;
    /// The rounded result is beyond the largest finite number (OE).
    pub const OVERFLOW: u8 = 1 << 3;
    /// The result is tiny, and inexact where the exception is masked (UE).
    pub const UNDERFLOW: u8 = 1 << 4;
    /// The result was rounded (PE).
    pub const INEXACT: u8 = 1 << 5;
    /// All six.
    pub const ALL: u8 = 0x3f;
    /// The exceptions that are found by looking at the operands alone.
    pub const BEFORE_RESULT: u8 = INVALID | DENORMAL | DIVIDE_BY_ZERO;
}
