//! A number of 128 significant bits, truncated after every operation: twice what an x87 result keeps, so
//! that a sum of forty terms still rounds well within one unit in the last place.

use crate::x86_64::float::{Class, Value};

/// `significand * 2^(exponent - 127)`; bit 127 is set, or the significand is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wide {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u128,
}

impl Wide {
    pub const ZERO: Wide = Wide::new(0, 0);
    pub const ONE: Wide = Wide::new(0, 1 << 127);
    pub const LN_2: Wide = Wide::new(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
    pub const LOG2_E: Wide = Wide::new(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);
    pub const PI: Wide = Wide::new(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
    pub const HALF_PI: Wide = Wide {
        exponent: 0,
        ..Wide::PI
    };

    pub const fn new(exponent: i32, significand: u128) -> Wide {
        Wide {
            sign: false,
            exponent,
            significand,
        }
    }

    /// A zero or finite number.
    pub fn from_value(value: Value) -> Wide {
        match value.class {
            Class::Finite => Wide {
                sign: value.sign,
                exponent: value.exponent,
                significand: (value.significand as u128) << 64,
            },
            _ => Wide {
                sign: value.sign,
                ..Wide::ZERO
            },
        }
    }

    pub fn from_integer(n: i32) -> Wide {
        Wide::normalised(n < 0, 127, n.unsigned_abs() as u128)
    }

    /// `units * 2^-fraction`.
    pub fn fixed(sign: bool, units: u128, fraction: i32) -> Wide {
        Wide::normalised(sign, 127 - fraction, units)
    }

    fn normalised(sign: bool, exponent: i32, significand: u128) -> Wide {
        if significand == 0 {
            return Wide::ZERO;
        }
        let shift = significand.leading_zeros();
        Wide {
            sign,
            exponent: exponent - shift as i32,
            significand: significand << shift,
        }
    }

    /// The next number toward zero; the number is not zero.
    pub fn predecessor(self) -> Wide {
        Wide::normalised(self.sign, self.exponent, self.significand - 1)
    }

    pub const fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub const fn negated(self) -> Wide {
        Wide {
            sign: !self.sign,
            ..self
        }
    }

    pub const fn absolute(self) -> Wide {
        Wide { sign: false, ..self }
    }

    /// The number times a power of two.
    pub const fn scaled(self, by: i32) -> Wide {
        Wide {
            exponent: self.exponent + by,
            ..self
        }
    }

    pub fn add(self, other: Wide) -> Wide {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let (big, small) = if self.magnitude_at_least(other) {
            (self, other)
        } else {
            (other, self)
        };
        let distance = (big.exponent - small.exponent) as u32;
        let aligned = small.significand.checked_shr(distance).unwrap_or(0);
        if big.sign != small.sign {
            return Wide::normalised(big.sign, big.exponent, big.significand - aligned);
        }
        match big.significand.overflowing_add(aligned) {
            (sum, false) => Wide {
                significand: sum,
                ..big
            },
            (sum, true) => Wide {
                significand: sum >> 1 | 1 << 127,
                exponent: big.exponent + 1,
                ..big
            },
        }
    }

    pub fn sub(self, other: Wide) -> Wide {
        self.add(other.negated())
    }

    /// `|self| >= |other|`
    pub fn magnitude_at_least(self, other: Wide) -> bool {
        match (self.is_zero(), other.is_zero()) {
            (_, true) => true,
            (true, false) => false,
            _ => (self.exponent, self.significand) >= (other.exponent, other.significand),
        }
    }

    pub fn mul(self, other: Wide) -> Wide {
        if self.is_zero() || other.is_zero() {
            return Wide::ZERO;
        }
        let high = multiply_high(self.significand, other.significand);
        Wide::normalised(self.sign != other.sign, self.exponent + other.exponent + 1, high)
    }

    /// The quotient by a small integer.
    pub fn div_small(self, divisor: u32) -> Wide {
        let divisor = divisor as u128;
        // Two steps of long division keep all 128 bits.
        let (high, rest) = (self.significand / divisor, self.significand % divisor);
        let low = (rest << 64) / divisor;
        let room = high.leading_zeros().min(64);
        let significand = if room == 0 {
            high
        } else {
            high << room | low >> (64 - room)
        };
        Wide::normalised(self.sign, self.exponent - room as i32, significand)
    }

    /// The quotient; the divisor is not zero.
    pub fn div(self, other: Wide) -> Wide {
        if self.is_zero() {
            return Wide::ZERO;
        }
        let (mut rest, divisor) = (self.significand, other.significand);
        let mut quotient: u128 = 0;
        // The first step gives the integer bit, each other one fraction bit.
        let mut carry = false;
        for _ in 0..128 {
            quotient <<= 1;
            if carry || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                quotient |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        Wide::normalised(self.sign != other.sign, self.exponent - other.exponent, quotient)
    }
}

/// The high half of the 256-bit product.
fn multiply_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (low, cross1, cross2) = (a0 * b0, a1 * b0, a0 * b1);
    let middle = (low >> 64) + (cross1 & LOW) + (cross2 & LOW);
    a1 * b1 + (cross1 >> 64) + (cross2 >> 64) + (middle >> 64)
}
