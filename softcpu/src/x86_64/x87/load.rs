//! Loads, constants, exchanges and conditional moves.

use super::{Fpu, status};
use crate::x86_64::float::{
    self, Class, Environment, F80, Rounding, Target, Value, flag, pack_f80, unpack_f32, unpack_f64,
};

/// A constant that an instruction pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constant {
    /// FLD1
    One,
    /// FLDL2T: log2(10)
    Log2Of10,
    /// FLDL2E: log2(e)
    Log2OfE,
    /// FLDPI
    Pi,
    /// FLDLG2: log10(2)
    Log10Of2,
    /// FLDLN2: ln(2)
    LnOf2,
    /// FLDZ
    Zero,
}

impl Constant {
    /// Exponent and the first 128 bits of the significand.
    fn parts(self) -> (i32, u128) {
        match self {
            Constant::One => (0, 1 << 127),
            Constant::Log2Of10 => (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c),
            Constant::Log2OfE => (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88),
            Constant::Pi => (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
            Constant::Log10Of2 => (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
            Constant::LnOf2 => (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
            Constant::Zero => (0, 0),
        }
    }

    /// The register image, rounded as asked.
    fn rounded(self, rounding: Rounding) -> F80 {
        let (exponent, significand) = self.parts();
        if significand == 0 {
            return F80::ZERO;
        }
        let mut env = Environment {
            rounding,
            ..Environment::nearest()
        };
        pack_f80(float::round::round(
            &mut env,
            &Target::F80,
            false,
            exponent,
            significand,
        ))
    }
}

impl Fpu {
    /// Pushes a register image, raising nothing but stack overflow: FLD m80.
    pub fn push(&mut self, value: F80) {
        if self.is_empty(7) {
            self.set_condition(status::C1, 0);
            self.push_unchecked(value);
        } else if self.stack_overflow() {
            self.push_unchecked(F80::INDEFINITE);
        }
    }

    fn push_unchecked(&mut self, value: F80) {
        self.set_top(self.top() + 7);
        self.write(0, value);
    }

    /// FLD ST(i)
    pub fn load_register(&mut self, i: usize) {
        // The empty source is found before the full stack.
        if !self.is_empty(i) {
            self.push(self.register(i));
        } else if self.stack_underflow() {
            self.push_unchecked(F80::INDEFINITE);
        }
    }

    /// FLD m32
    pub fn load_f32(&mut self, bits: u32) {
        self.load_converted(unpack_f32(bits));
    }

    /// FLD m64
    pub fn load_f64(&mut self, bits: u64) {
        self.load_converted(unpack_f64(bits));
    }

    fn load_converted(&mut self, value: Value) {
        if !self.is_empty(7) {
            return self.push(F80::ZERO);
        }
        let flags = match value.class {
            Class::SignallingNan => flag::INVALID,
            _ if value.denormal => flag::DENORMAL,
            _ => 0,
        };
        // An unmasked denormal operand pends, but hardware has loaded it.
        if self.record(flags, false) || flags == flag::DENORMAL {
            let value = if value.is_nan() { value.quieted() } else { value };
            self.push_unchecked(pack_f80(value));
        }
    }

    /// FILD
    pub fn load_integer(&mut self, value: i64) {
        self.push(pack_f80(float::from_i64(
            &mut Environment::nearest(),
            &Target::F80,
            value,
        )));
    }

    /// FBLD: eighteen decimal digits and a sign.
    pub fn load_bcd(&mut self, bits: u128) {
        let magnitude = (0..18)
            .rev()
            .fold(0i64, |n, digit| n * 10 + (bits >> (4 * digit) & 15) as i64);
        let image = pack_f80(float::from_i64(
            &mut Environment::nearest(),
            &Target::F80,
            magnitude,
        ));
        let sign = (bits >> 79 & 1) as u16;
        self.push(F80::new(image.sign_exponent | sign << 15, image.significand));
    }

    /// FLD1 and the other constants.
    pub fn load_constant(&mut self, constant: Constant) {
        self.push(constant.rounded(self.environment().rounding));
    }

    /// FXCH
    pub fn exchange(&mut self, i: usize) {
        if (self.is_empty(0) || self.is_empty(i)) && !self.stack_underflow() {
            return;
        }
        let content = |fpu: &Fpu, i: usize| {
            if fpu.is_empty(i) {
                F80::INDEFINITE
            } else {
                fpu.register(i)
            }
        };
        let (a, b) = (content(self, 0), content(self, i));
        self.write(i, a);
        self.write(0, b);
        self.set_condition(status::C1, 0);
    }

    /// FCMOVcc, its condition evaluated.
    pub fn conditional_move(&mut self, i: usize, condition: bool) {
        if self.is_empty(0) || self.is_empty(i) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
            }
        } else if condition {
            self.write(0, self.register(i));
        }
    }
}
