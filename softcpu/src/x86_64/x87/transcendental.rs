//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1.
//!
//! Results come from series in 128-bit arithmetic ([`Wide`]), rounded once: within one unit in the last place
//! of the exact value. Hardware differs from the exact value by up to about one unit too, and reduces large
//! angles with a less exact pi, so the two need not agree to the last bit.

use super::arith::{Computed, denormal_flag, propagate};
use super::wide::Wide;
use super::{Fpu, status};
use crate::x86_64::float::{self, Class, F80, Target, Value, flag, pack_f80, unpack_f80};

/// atan(k/8) for k from 0 to 8.
const ATAN: [Wide; 9] = [
    Wide::ZERO,
    Wide::new(-4, 0xfead_d4d5_617b_6e32_c897_989f_3e88_8ef8),
    Wide::new(-3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e6),
    Wide::new(-2, 0xb7b0_ca0f_26f7_8473_8aa3_2122_dcfe_4483),
    Wide::new(-2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
    Wide::new(-1, 0x8f00_5d5e_f7f5_9f9b_5c83_5e16_65c4_3748),
    Wide::new(-1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9f),
    Wide::new(-1, 0xb805_3e2b_c231_9e73_cb2d_a552_10a4_443d),
    Wide::new(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
];

/// Sums `first + next(first, 1) + ...` until a term no longer matters. Where not even the second one does,
/// but takes something away, the sum is the number before the first term: directed rounding shows the
/// difference.
fn series(first: Wide, mut next: impl FnMut(Wide, u32) -> (Wide, Wide)) -> Wide {
    let (mut sum, mut carried) = (first, first);
    let mut n = 1;
    loop {
        let (power, term) = next(carried, n);
        if term.is_zero() || term.exponent < sum.exponent - 130 {
            let smaller = n == 1 && term.sign != first.sign && !first.is_zero();
            return if smaller { first.predecessor() } else { sum };
        }
        sum = sum.add(term);
        carried = power;
        n += 1;
    }
}

/// pi/2 in 65 fraction bits: the hardware's pi has 66 significant bits (Intel SDM vol. 1, 8.3.8), and a
/// program that meets it near a multiple of pi sees that.
const HALF_PI_66: u128 = 0x3_243f_6a88_85a3_08d3;

/// An angle as a multiple of pi/2 and a rest between -pi/4 and pi/4, both exact for the hardware's pi.
fn reduce(x: Value) -> (u32, Wide) {
    let wide = Wide::from_value(x).absolute();
    if !wide.magnitude_at_least(Wide::HALF_PI.scaled(-1)) {
        return (0, wide);
    }
    // x is its significand moved up by the exponent and two, in units of 2^-65.
    let mut rest = x.significand as u128;
    let mut quadrant = 0u32;
    for _ in 0..x.exponent + 2 {
        rest <<= 1;
        quadrant <<= 1;
        if rest >= HALF_PI_66 {
            rest -= HALF_PI_66;
            quadrant |= 1;
        }
    }
    if rest << 1 > HALF_PI_66 {
        return (quadrant.wrapping_add(1), Wide::fixed(true, HALF_PI_66 - rest, 65));
    }
    (quadrant, Wide::fixed(false, rest, 65))
}

/// The sine of a reduced angle.
fn sine(r: Wide) -> Wide {
    let square = r.mul(r).negated();
    series(r, |term, n| {
        let next = term.mul(square).div_small(2 * n * (2 * n + 1));
        (next, next)
    })
}

/// The cosine of a reduced angle.
fn cosine(r: Wide) -> Wide {
    let square = r.mul(r).negated();
    series(Wide::ONE, |term, n| {
        let next = term.mul(square).div_small((2 * n - 1) * 2 * n);
        (next, next)
    })
}

/// Sine and cosine of an angle of magnitude below 2^63.
fn sine_and_cosine(x: Value) -> (Wide, Wide) {
    let (quadrant, rest) = reduce(x);
    let (s, c) = (sine(rest), cosine(rest));
    let (s, c) = match quadrant & 3 {
        0 => (s, c),
        1 => (c, s.negated()),
        2 => (s.negated(), c.negated()),
        _ => (c.negated(), s),
    };
    (if x.sign { s.negated() } else { s }, c)
}

/// `atanh(t) = t + t^3/3 + ...` for small t.
fn atanh(t: Wide) -> Wide {
    let square = t.mul(t);
    series(t, |power, n| {
        let power = power.mul(square);
        (power, power.div_small(2 * n + 1))
    })
}

/// The arc tangent of a number from 0 to 1.
fn arc_tangent(z: Wide) -> Wide {
    // atan(z) = atan(c) + atan((z - c) / (1 + z c)) with c the nearest eighth.
    let eighths = z.scaled(3).add(Wide::new(-1, 1 << 127));
    let k = match eighths.exponent {
        ..0 => 0,
        exponent => (eighths.significand >> (127 - exponent)) as usize,
    };
    let c = Wide::from_integer(k as i32).scaled(-3);
    let t = z.sub(c).div(Wide::ONE.add(z.mul(c)));
    let square = t.mul(t).negated();
    let rest = series(t, |power, n| {
        let power = power.mul(square);
        (power, power.div_small(2 * n + 1))
    });
    ATAN[k].add(rest)
}

/// The base-2 logarithm of a positive number.
fn log2(x: Wide) -> Wide {
    // A significand above the square root of two counts as below one, so that nothing cancels.
    const SQRT_2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let (exponent, m) = if x.significand > SQRT_2 {
        (x.exponent + 1, Wide::new(-1, x.significand))
    } else {
        (x.exponent, Wide::new(0, x.significand))
    };
    let t = m.sub(Wide::ONE).div(m.add(Wide::ONE));
    let fraction = if t.is_zero() {
        Wide::ZERO
    } else {
        atanh(t).scaled(1).mul(Wide::LOG2_E)
    };
    Wide::from_integer(exponent).add(fraction)
}

/// The base-2 logarithm of `1 + x`, for x above -1.
fn log2_of_one_plus(x: Wide) -> Wide {
    if x.exponent >= -2 {
        return log2(Wide::ONE.add(x));
    }
    let t = x.div(x.add(Wide::ONE.scaled(1)));
    atanh(t).scaled(1).mul(Wide::LOG2_E)
}

/// `2^x - 1` for x from -1 to 1.
fn two_to_the_x_minus_one(x: Wide) -> Wide {
    let y = x.mul(Wide::LN_2);
    series(y, |term, n| {
        let next = term.mul(y).div_small(n + 1);
        (next, next)
    })
}

impl Fpu {
    /// Rounds a result; `exact` says that no bit was lost so far.
    fn rounded(&self, wide: Wide, exact: bool) -> Computed {
        let mut env = self.environment();
        if wide.is_zero() {
            return Computed::exact(Value::zero(wide.sign));
        }
        let sticky = wide.significand | !exact as u128;
        let value = float::round::round(&mut env, &Target::F80, wide.sign, wide.exponent, sticky);
        Computed::of(env, value)
    }

    /// The operand of a trigonometric function, its special cases dealt with by `special`.
    fn angle(&mut self) -> Option<Value> {
        self.set_condition(status::C2, 0);
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
            }
            return None;
        }
        let x = unpack_f80(self.register(0));
        let too_large = x.class == Class::Finite && x.exponent >= 63;
        self.set_condition(status::C2, if too_large { status::C2 } else { 0 });
        if too_large {
            self.set_condition(status::C1, 0);
            return None;
        }
        Some(x)
    }

    /// What NaNs and infinities give.
    fn angle_special(x: Value) -> Option<Computed> {
        match x.class {
            Class::Infinity => Some(Computed::invalid()),
            _ => propagate(x, x),
        }
    }

    fn sine_of(&self, x: Value) -> Computed {
        match x.class {
            Class::Zero => Computed::exact(x),
            _ => self
                .rounded(sine_and_cosine(x).0, false)
                .with(denormal_flag(x, x)),
        }
    }

    fn cosine_of(&self, x: Value) -> Computed {
        match x.class {
            Class::Zero => Computed::exact(Value::finite(false, 0, 1 << 63)),
            _ => self
                .rounded(sine_and_cosine(x).1, false)
                .with(denormal_flag(x, x)),
        }
    }

    /// FSIN
    pub fn sine(&mut self) {
        if let Some(x) = self.angle() {
            let computed = Fpu::angle_special(x).unwrap_or_else(|| self.sine_of(x));
            self.deliver(0, computed);
        }
    }

    /// FCOS
    pub fn cosine(&mut self) {
        if let Some(x) = self.angle() {
            let computed = Fpu::angle_special(x).unwrap_or_else(|| self.cosine_of(x));
            self.deliver(0, computed);
        }
    }

    /// FSINCOS: the sine replaces ST(0), the cosine is pushed.
    pub fn sine_and_cosine(&mut self) {
        self.angle_with_push(|fpu, x| (fpu.sine_of(x), fpu.cosine_of(x)));
    }

    /// FPTAN: the tangent replaces ST(0), one is pushed.
    pub fn tangent(&mut self) {
        self.angle_with_push(|fpu, x| {
            let tangent = match x.class {
                Class::Zero => Computed::exact(x),
                _ => {
                    let (sine, cosine) = sine_and_cosine(x);
                    fpu.rounded(sine.div(cosine), false).with(denormal_flag(x, x))
                }
            };
            (tangent, Computed::exact(Value::finite(false, 0, 1 << 63)))
        });
    }

    fn angle_with_push(&mut self, f: impl Fn(&Fpu, Value) -> (Computed, Computed)) {
        self.set_condition(status::C2, 0);
        let empty = self.is_empty(0);
        if empty || !self.is_empty(7) {
            let masked = if empty {
                self.stack_underflow()
            } else {
                self.stack_overflow()
            };
            if masked {
                self.write(0, F80::INDEFINITE);
                self.set_top(self.top() + 7);
                self.write(0, F80::INDEFINITE);
            }
            return;
        }
        let Some(x) = self.angle() else { return };
        let (first, pushed) = match Fpu::angle_special(x) {
            Some(special) => (Computed { ..special }, special),
            None => f(self, x),
        };
        let flags = first.flags | pushed.flags;
        if self.record(flags, first.rounded_up) {
            self.write(0, pack_f80(first.value));
            self.set_top(self.top() + 7);
            self.write(0, pack_f80(pushed.value));
        }
    }

    /// F2XM1: `2^ST(0) - 1`; outside -1 to 1 the result is undefined, the operand stays.
    pub fn two_to_the_x_minus_one(&mut self) {
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
            }
            return;
        }
        let x = unpack_f80(self.register(0));
        let computed = propagate(x, x).unwrap_or_else(|| self.power_minus_one(x));
        self.deliver(0, computed);
    }

    fn power_minus_one(&self, x: Value) -> Computed {
        let one = x.exponent == 0 && x.significand == 1 << 63;
        match x.class {
            Class::Infinity if x.sign => Computed::exact(Value::finite(true, 0, 1 << 63)),
            Class::Finite if one && x.sign => Computed::exact(Value::finite(true, -1, 1 << 63)),
            Class::Finite if x.exponent < 0 => {
                let wide = two_to_the_x_minus_one(Wide::from_value(x));
                self.rounded(wide, false).with(denormal_flag(x, x))
            }
            Class::Finite => Computed::exact(x).with(flag::INEXACT | denormal_flag(x, x)),
            _ => Computed::exact(x),
        }
    }

    /// Replaces ST(1) by a function of ST(0) and ST(1), and pops.
    fn combine(&mut self, f: impl Fn(&Fpu, Value, Value) -> Computed) {
        let done = if self.is_empty(0) || self.is_empty(1) {
            let masked = self.stack_underflow();
            if masked {
                self.write(1, F80::INDEFINITE);
            }
            masked
        } else {
            let (x, y) = (unpack_f80(self.register(0)), unpack_f80(self.register(1)));
            let computed = propagate(x, y).unwrap_or_else(|| f(self, x, y));
            self.deliver(1, computed)
        };
        if done {
            self.pop();
        }
    }

    /// FPATAN: the angle of the point (ST(0), ST(1)).
    pub fn arc_tangent(&mut self) {
        self.combine(|fpu, x, y| fpu.angle_of(x, y).with(denormal_flag(x, y)));
    }

    fn angle_of(&self, x: Value, y: Value) -> Computed {
        let constant = |wide: Wide| self.rounded(Wide { sign: y.sign, ..wide }, false);
        let three_quarters = || Wide::PI.sub(Wide::PI.scaled(-2));
        match (x.class, y.class) {
            (Class::Infinity, Class::Infinity) if x.sign => constant(three_quarters()),
            (Class::Infinity, Class::Infinity) => constant(Wide::PI.scaled(-2)),
            (_, Class::Zero) | (Class::Infinity, _) if x.sign => constant(Wide::PI),
            (_, Class::Zero) | (Class::Infinity, _) => Computed::exact(Value::zero(y.sign)),
            (Class::Zero, _) | (_, Class::Infinity) => constant(Wide::HALF_PI),
            _ => self.angle_of_finite(x, y),
        }
    }

    fn angle_of_finite(&self, x: Value, y: Value) -> Computed {
        let (wide_x, wide_y) = (Wide::from_value(x).absolute(), Wide::from_value(y).absolute());
        let steep = !wide_x.magnitude_at_least(wide_y);
        let ratio = if steep {
            wide_x.div(wide_y)
        } else {
            wide_y.div(wide_x)
        };
        let mut angle = arc_tangent(ratio);
        if steep {
            angle = Wide::HALF_PI.sub(angle);
        }
        if x.sign {
            angle = Wide::PI.sub(angle);
        }
        self.rounded(
            Wide {
                sign: y.sign,
                ..angle
            },
            false,
        )
    }

    /// FYL2X: `ST(1) * log2(ST(0))`.
    pub fn y_log2_x(&mut self) {
        self.combine(|fpu, x, y| {
            let logarithm = match x.class {
                Class::Finite if !x.sign => {
                    let wide = log2(Wide::from_value(x));
                    let exact = x.significand == 1 << 63;
                    return fpu.y_times(wide, exact, false, y).with(denormal_flag(x, y));
                }
                Class::Infinity if !x.sign => Value::infinity(false),
                Class::Zero => Value::infinity(true),
                _ => return Computed::invalid(),
            };
            let pole = x.class == Class::Zero && y.class == Class::Finite;
            fpu.y_times_infinity(logarithm, y, if pole { flag::DIVIDE_BY_ZERO } else { 0 })
        });
    }

    /// FYL2XP1: `ST(1) * log2(ST(0) + 1)`.
    pub fn y_log2_x_plus_one(&mut self) {
        self.combine(|fpu, x, y| {
            let above_minus_one = !x.sign || x.class == Class::Zero || x.exponent < 0;
            match x.class {
                Class::Infinity if !x.sign => fpu.y_times_infinity(Value::infinity(false), y, 0),
                Class::Infinity => Computed::invalid(),
                // Undefined; hardware leaves the operand.
                _ if !above_minus_one && y.class == Class::Zero => {
                    Computed::exact(Value::zero(x.sign != y.sign))
                }
                _ if !above_minus_one => Computed::exact(x).with(flag::INEXACT | denormal_flag(x, y)),
                Class::Zero => fpu.y_times(Wide::ZERO, true, x.sign, y).with(denormal_flag(x, y)),
                _ => {
                    let wide = log2_of_one_plus(Wide::from_value(x));
                    fpu.y_times(wide, false, false, y).with(denormal_flag(x, y))
                }
            }
        });
    }

    /// `y` times an infinite logarithm.
    fn y_times_infinity(&self, logarithm: Value, y: Value, flags: u8) -> Computed {
        match y.class {
            Class::Zero => Computed::invalid(),
            _ => Computed::exact(Value::infinity(logarithm.sign != y.sign)).with(flags),
        }
    }

    /// `y` times a finite logarithm; a zero one has the sign `zero_sign`.
    fn y_times(&self, logarithm: Wide, exact: bool, zero_sign: bool, y: Value) -> Computed {
        if logarithm.is_zero() {
            return match y.class {
                Class::Infinity => Computed::invalid(),
                _ => Computed::exact(Value::zero(zero_sign != y.sign)),
            };
        }
        let sign = logarithm.sign != y.sign;
        match y.class {
            Class::Infinity => Computed::exact(Value::infinity(sign)),
            Class::Zero => Computed::exact(Value::zero(sign)),
            // Hardware calls every result inexact.
            _ => self
                .rounded(logarithm.mul(Wide::from_value(y)), exact)
                .with(flag::INEXACT),
        }
    }
}
