//! The three interchange formats and the unpacked value they share.

/// An x87 register image: 64-bit significand with an explicit integer bit, sign and 15-bit exponent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct F80 {
    /// Significand; bit 63 is the integer bit.
    pub significand: u64,
    /// Bit 15 is the sign, bits 14 to 0 are the exponent biased by 16383.
    pub sign_exponent: u16,
}

impl F80 {
    /// Positive zero.
    pub const ZERO: F80 = F80::new(0, 0);
    /// One.
    pub const ONE: F80 = F80::new(0x3fff, 1 << 63);
    /// The "real indefinite": what an invalid operation gives.
    pub const INDEFINITE: F80 = F80::new(0xffff, 0xc000_0000_0000_0000);

    /// A register image from its two fields.
    pub const fn new(sign_exponent: u16, significand: u64) -> F80 {
        F80 {
            significand,
            sign_exponent,
        }
    }

    /// The ten bytes in memory order, in the low 80 bits.
    pub const fn to_bits(self) -> u128 {
        (self.sign_exponent as u128) << 64 | self.significand as u128
    }

    /// The inverse of [`F80::to_bits`]; bits above 79 are ignored.
    pub const fn from_bits(bits: u128) -> F80 {
        F80::new((bits >> 64) as u16, bits as u64)
    }

    /// The sign bit.
    pub const fn is_negative(self) -> bool {
        self.sign_exponent >> 15 != 0
    }
}

/// What kind of datum a bit pattern is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A zero of either sign.
    Zero,
    /// A nonzero finite number, normal or denormal.
    Finite,
    /// An infinity.
    Infinity,
    /// A NaN that propagates silently.
    QuietNan,
    /// A NaN that raises invalid when used.
    SignallingNan,
    /// An 80-bit encoding that no 387 or later accepts: pseudo-NaN, pseudo-infinity, unnormal.
    Unsupported,
}

/// An unpacked datum. A finite number is `significand * 2^(exponent - 63)`, normalised so that bit 63 is
/// set unless rounding to a denormal left it clear; a NaN's significand is aligned the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Kind of datum; the remaining fields mean something only for the kinds that have them.
    pub class: Class,
    /// True for negative.
    pub sign: bool,
    /// Unbiased exponent of bit 63.
    pub exponent: i32,
    /// Significand.
    pub significand: u64,
    /// The operand was encoded as a denormal (or pseudo-denormal) number.
    pub denormal: bool,
}

impl Value {
    const fn of(class: Class, sign: bool, significand: u64) -> Value {
        Value {
            class,
            sign,
            exponent: 0,
            significand,
            denormal: false,
        }
    }

    /// A zero.
    pub const fn zero(sign: bool) -> Value {
        Value::of(Class::Zero, sign, 0)
    }

    /// An infinity.
    pub const fn infinity(sign: bool) -> Value {
        Value::of(Class::Infinity, sign, 1 << 63)
    }

    /// The default NaN of x86: quiet, negative, payload zero.
    pub const fn indefinite() -> Value {
        Value::of(Class::QuietNan, true, 3 << 62)
    }

    /// A finite number; `significand` has bit 63 set.
    pub const fn finite(sign: bool, exponent: i32, significand: u64) -> Value {
        Value {
            class: Class::Finite,
            sign,
            exponent,
            significand,
            denormal: false,
        }
    }

    /// Either kind of NaN.
    pub const fn is_nan(&self) -> bool {
        matches!(self.class, Class::QuietNan | Class::SignallingNan)
    }

    /// The NaN made quiet, as every operation delivers it.
    pub const fn quieted(self) -> Value {
        Value {
            class: Class::QuietNan,
            significand: self.significand | 3 << 62,
            ..self
        }
    }

    /// The same value with sign `sign`.
    pub const fn with_sign(self, sign: bool) -> Value {
        Value { sign, ..self }
    }

    /// The value negated.
    pub const fn negated(self) -> Value {
        Value {
            sign: !self.sign,
            ..self
        }
    }

    /// A denormal operand read as a zero of the same sign (MXCSR.DAZ).
    pub const fn flush_denormal(self) -> Value {
        if self.denormal {
            Value::zero(self.sign)
        } else {
            self
        }
    }
}

/// Unpacks an IEEE interchange format with `fraction` fraction bits and the given bias.
fn unpack_ieee(sign: bool, biased: u32, fraction_bits: u64, fraction: u32, bias: i32) -> Value {
    let top = fraction_bits << (63 - fraction);
    let biased_max = 2 * bias as u32 + 1;
    if biased == biased_max {
        return match fraction_bits {
            0 => Value::infinity(sign),
            _ if top >> 62 & 1 != 0 => Value::of(Class::QuietNan, sign, top | 1 << 63),
            _ => Value::of(Class::SignallingNan, sign, top | 1 << 63),
        };
    }
    if biased != 0 {
        return Value::finite(sign, biased as i32 - bias, top | 1 << 63);
    }
    if fraction_bits == 0 {
        return Value::zero(sign);
    }
    let shift = top.leading_zeros();
    Value {
        denormal: true,
        ..Value::finite(sign, 1 - bias - shift as i32, top << shift)
    }
}

/// Unpacks a half-precision number.
pub fn unpack_f16(bits: u16) -> Value {
    unpack_ieee(
        bits >> 15 != 0,
        bits as u32 >> 10 & 0x1f,
        (bits & 0x3ff) as u64,
        10,
        15,
    )
}

/// Unpacks a single-precision number.
pub fn unpack_f32(bits: u32) -> Value {
    unpack_ieee(
        bits >> 31 != 0,
        bits >> 23 & 0xff,
        (bits & 0x7f_ffff) as u64,
        23,
        127,
    )
}

/// Unpacks a double-precision number.
pub fn unpack_f64(bits: u64) -> Value {
    unpack_ieee(
        bits >> 63 != 0,
        (bits >> 52) as u32 & 0x7ff,
        bits & 0xf_ffff_ffff_ffff,
        52,
        1023,
    )
}

/// Unpacks a double-extended number (Intel SDM vol. 1, table 8-3 for the unsupported encodings).
pub fn unpack_f80(bits: F80) -> Value {
    let sign = bits.is_negative();
    let biased = bits.sign_exponent & 0x7fff;
    let significand = bits.significand;
    let integer_bit = significand >> 63 != 0;
    match biased {
        0 if significand == 0 => Value::zero(sign),
        0 => {
            let shift = significand.leading_zeros();
            Value {
                denormal: true,
                ..Value::finite(sign, -16382 - shift as i32, significand << shift)
            }
        }
        _ if !integer_bit => Value::of(Class::Unsupported, sign, significand),
        0x7fff if significand == 1 << 63 => Value::infinity(sign),
        0x7fff if significand >> 62 & 1 != 0 => Value::of(Class::QuietNan, sign, significand),
        0x7fff => Value::of(Class::SignallingNan, sign, significand),
        _ => Value::finite(sign, biased as i32 - 16383, significand),
    }
}

/// Sign, biased exponent and fraction of a value that was rounded to the format.
fn pack_ieee(value: Value, fraction: u32, bias: i32) -> (bool, u64, u64) {
    let fraction_bits = (value.significand & !(1 << 63)) >> (63 - fraction);
    let (biased, fraction_bits) = match value.class {
        Class::Zero => (0, 0),
        Class::Infinity => (2 * bias + 1, 0),
        Class::Finite if value.significand >> 63 == 0 => (0, fraction_bits),
        Class::Finite => (value.exponent + bias, fraction_bits),
        _ => (2 * bias + 1, fraction_bits),
    };
    (value.sign, biased as u64, fraction_bits)
}

/// Packs a value that was rounded to half precision.
pub fn pack_f16(value: Value) -> u16 {
    let (sign, biased, fraction) = pack_ieee(value, 10, 15);
    (sign as u16) << 15 | (biased as u16) << 10 | fraction as u16
}

/// Packs a value that was rounded to single precision.
pub fn pack_f32(value: Value) -> u32 {
    let (sign, biased, fraction) = pack_ieee(value, 23, 127);
    (sign as u32) << 31 | (biased as u32) << 23 | fraction as u32
}

/// Packs a value that was rounded to double precision.
pub fn pack_f64(value: Value) -> u64 {
    let (sign, biased, fraction) = pack_ieee(value, 52, 1023);
    (sign as u64) << 63 | biased << 52 | fraction
}

/// Packs a value that was rounded to at most double-extended precision.
pub fn pack_f80(value: Value) -> F80 {
    let biased = match value.class {
        Class::Zero => 0,
        Class::Finite if value.significand >> 63 == 0 => 0,
        Class::Finite => (value.exponent + 16383) as u16,
        _ => 0x7fff,
    };
    F80::new((value.sign as u16) << 15 | biased, value.significand)
}
