//! Arithmetic: the basic operations, square root, remainders, scaling, rounding, signs.

use super::{Fpu, status};
use crate::x86_64::float::{
    self, Class, Environment, F80, Quotient, Target, Value, flag, pack_f80, unpack_f80,
};

/// A two-operand operation; the reversed ones take their operands the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arith {
    /// FADD
    Add,
    /// FMUL
    Mul,
    /// FSUB
    Sub,
    /// FSUBR
    SubReversed,
    /// FDIV
    Div,
    /// FDIVR
    DivReversed,
}

/// A result before it is rounded into a register: value, flags, and whether it was rounded up.
pub(super) struct Computed {
    pub value: Value,
    pub flags: u8,
    pub rounded_up: bool,
}

impl Computed {
    pub(super) fn of(env: Environment, value: Value) -> Computed {
        Computed {
            value,
            flags: env.flags,
            rounded_up: env.rounded_up && env.flags & flag::INEXACT != 0,
        }
    }

    pub(super) fn invalid() -> Computed {
        Computed {
            value: Value::indefinite(),
            flags: flag::INVALID,
            rounded_up: false,
        }
    }

    pub(super) fn exact(value: Value) -> Computed {
        Computed {
            value,
            flags: 0,
            rounded_up: false,
        }
    }

    pub(super) fn with(self, flags: u8) -> Computed {
        Computed {
            flags: self.flags | flags,
            ..self
        }
    }
}

/// The NaN an operation delivers where an operand is one (Intel SDM vol. 1, table 4-7): a quiet one before a
/// signalling one, then the larger significand, then the positive one.
pub(super) fn propagate(a: Value, b: Value) -> Option<Computed> {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return Some(Computed::invalid());
    }
    let rank = |v: &Value| (v.class == Class::QuietNan, v.significand, !v.sign);
    let nan = [a, b]
        .into_iter()
        .filter(Value::is_nan)
        .max_by_key(|v| match (a.class, b.class) {
            (Class::QuietNan, Class::SignallingNan) | (Class::SignallingNan, Class::QuietNan) => rank(v),
            _ => (true, v.significand, !v.sign),
        })?;
    let signalling = [a, b].iter().any(|v| v.class == Class::SignallingNan);
    let computed = Computed::exact(nan.quieted());
    Some(computed.with(if signalling { flag::INVALID } else { 0 }))
}

/// The denormal flag where an operand is denormal.
pub(super) const fn denormal_flag(a: Value, b: Value) -> u8 {
    if a.denormal || b.denormal {
        flag::DENORMAL
    } else {
        0
    }
}

impl Fpu {
    /// Delivers a computed result to ST(i).
    pub(super) fn deliver(&mut self, i: usize, computed: Computed) -> bool {
        let delivered = self.record(computed.flags, computed.rounded_up);
        if delivered {
            self.write(i, pack_f80(computed.value));
        }
        delivered
    }

    /// ST(0) unpacked; where it is empty the fault is dealt with and there is nothing more to do.
    fn top_operand(&mut self) -> Option<Value> {
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
            }
            return None;
        }
        Some(unpack_f80(self.register(0)))
    }

    /// `ST(i) = ST(i) op ST(j)`, then a pop where asked.
    pub fn arithmetic(&mut self, op: Arith, i: usize, j: usize, pop: bool) {
        let done = if self.is_empty(i) || self.is_empty(j) {
            let masked = self.stack_underflow();
            if masked {
                self.write(i, F80::INDEFINITE);
            }
            masked
        } else {
            let (a, b) = (unpack_f80(self.register(i)), unpack_f80(self.register(j)));
            let computed = self.compute(op, a, b);
            self.deliver(i, computed)
        };
        if done && pop {
            self.pop();
        }
    }

    /// `ST(0) = ST(0) op b` for a memory operand.
    pub fn arithmetic_memory(&mut self, op: Arith, b: Value) {
        if let Some(a) = self.top_operand() {
            let computed = self.compute(op, a, b);
            self.deliver(0, computed);
        }
    }

    fn compute(&self, op: Arith, a: Value, b: Value) -> Computed {
        if let Some(nan) = propagate(a, b) {
            return nan;
        }
        let mut env = self.environment();
        let target = self.target();
        let (a, b) = match op {
            Arith::SubReversed | Arith::DivReversed => (b, a),
            _ => (a, b),
        };
        let value = match op {
            Arith::Add => float::add(&mut env, &target, a, b),
            Arith::Mul => float::mul(&mut env, &target, a, b),
            Arith::Sub | Arith::SubReversed => float::sub(&mut env, &target, a, b),
            Arith::Div | Arith::DivReversed => float::div(&mut env, &target, a, b),
        };
        let hidden = env.flags & (flag::INVALID | flag::DIVIDE_BY_ZERO) != 0;
        Computed::of(env, value).with(if hidden { 0 } else { denormal_flag(a, b) })
    }

    /// FSQRT
    pub fn sqrt(&mut self) {
        let Some(a) = self.top_operand() else { return };
        let mut env = self.environment();
        let computed = propagate(a, a).unwrap_or_else(|| {
            let value = float::sqrt(&mut env, &self.target(), a);
            let hidden = env.flags & flag::INVALID != 0;
            Computed::of(env, value).with(if hidden { 0 } else { denormal_flag(a, a) })
        });
        self.deliver(0, computed);
    }

    /// FRNDINT
    pub fn round_to_integral(&mut self) {
        let Some(a) = self.top_operand() else { return };
        let mut env = self.environment();
        let computed = propagate(a, a).unwrap_or_else(|| {
            let value = float::round_to_integral(&mut env, a);
            Computed::of(env, value).with(denormal_flag(a, a))
        });
        self.deliver(0, computed);
    }

    /// FCHS
    pub fn change_sign(&mut self) {
        self.edit_sign(|sign| sign ^ 0x8000);
    }

    /// FABS
    pub fn absolute(&mut self) {
        self.edit_sign(|sign| sign & 0x7fff);
    }

    fn edit_sign(&mut self, f: impl Fn(u16) -> u16) {
        if self.top_operand().is_some() {
            let F80 {
                significand,
                sign_exponent,
            } = self.register(0);
            self.write(0, F80::new(f(sign_exponent), significand));
            self.set_condition(status::C1, 0);
        }
    }

    /// Both of ST(0) and ST(1); where one is empty ST(0) becomes the indefinite.
    pub(super) fn two_operands(&mut self) -> Option<(Value, Value)> {
        if self.is_empty(0) || self.is_empty(1) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
            }
            return None;
        }
        Some((unpack_f80(self.register(0)), unpack_f80(self.register(1))))
    }

    /// FSCALE: ST(0) times two to the power of ST(1) truncated.
    pub fn scale(&mut self) {
        let Some((a, b)) = self.two_operands() else { return };
        let computed = propagate(a, b).unwrap_or_else(|| self.scaled(a, b));
        self.deliver(0, computed);
    }

    fn scaled(&self, a: Value, b: Value) -> Computed {
        let value = match (a.class, b.class) {
            (Class::Zero, Class::Infinity) if !b.sign => return Computed::invalid(),
            (Class::Infinity, Class::Infinity) if b.sign => return Computed::invalid(),
            (_, Class::Infinity) if b.sign => Value::zero(a.sign),
            (_, Class::Infinity) => Value::infinity(a.sign),
            (Class::Finite, _) => return self.scaled_finite(a, b),
            _ => a,
        };
        Computed::exact(value).with(denormal_flag(a, b))
    }

    fn scaled_finite(&self, a: Value, b: Value) -> Computed {
        // Beyond this every result overflows or underflows, wrapped or not.
        const LIMIT: i64 = 1 << 17;
        let mut truncate = Environment {
            rounding: float::Rounding::Zero,
            ..Environment::nearest()
        };
        let beyond = if b.sign { -LIMIT } else { LIMIT };
        let by = float::checked_to_integer(&mut truncate, b, 64)
            .unwrap_or(beyond)
            .clamp(-LIMIT, LIMIT);
        let mut env = self.environment();
        let exponent = a.exponent + by as i32;
        let wide = (a.significand as u128) << 64;
        let value = float::round::round(&mut env, &Target::F80, a.sign, exponent, wide);
        let computed = Computed::of(env, value).with(denormal_flag(a, b));
        within_range(computed)
    }

    /// FXTRACT: the exponent replaces ST(0), the significand is pushed.
    pub fn extract(&mut self) {
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.write(0, F80::INDEFINITE);
                self.set_top(self.top() + 7);
                self.write(0, F80::INDEFINITE);
            }
            return;
        }
        if !self.is_empty(7) {
            if self.stack_overflow() {
                self.write(0, F80::INDEFINITE);
                self.set_top(self.top() + 7);
                self.write(0, F80::INDEFINITE);
            }
            return;
        }
        let a = unpack_f80(self.register(0));
        let (exponent, significand, flags) = match propagate(a, a) {
            Some(nan) => (nan.value, nan.value, nan.flags),
            None => split(a),
        };
        if self.record(flags, false) {
            self.write(0, pack_f80(exponent));
            self.set_top(self.top() + 7);
            self.write(0, pack_f80(significand));
        }
    }

    /// FPREM and FPREM1.
    pub fn remainder(&mut self, quotient: Quotient) {
        self.set_condition(status::C2, 0);
        let Some((a, b)) = self.two_operands() else { return };
        let (computed, bits) = match propagate(a, b) {
            Some(nan) => (nan, None),
            None => {
                let (computed, bits) = self.remaindered(a, b, quotient);
                (computed, Some(bits))
            }
        };
        let invalid = computed.flags & flag::INVALID != 0;
        if let (true, Some(bits)) = (self.deliver(0, computed) && !invalid, bits) {
            self.set_quotient(bits);
        }
    }

    fn remaindered(&self, a: Value, b: Value, quotient: Quotient) -> (Computed, Option<u8>) {
        let denormal = denormal_flag(a, b);
        match (a.class, b.class) {
            (Class::Infinity, _) | (_, Class::Zero) => (Computed::invalid(), Some(0)),
            (Class::Zero, _) => (Computed::exact(a).with(denormal), Some(0)),
            (_, Class::Infinity) => (self.exactly(a).with(denormal), Some(0)),
            _ => {
                let (rest, bits) = float::remainder(a, b, quotient);
                (self.exactly(rest).with(denormal), bits)
            }
        }
    }

    /// A value that needs no rounding but may be tiny.
    fn exactly(&self, value: Value) -> Computed {
        if value.class != Class::Finite {
            return Computed::exact(value);
        }
        let mut env = self.environment();
        let wide = (value.significand as u128) << 64;
        let value = float::round::round(&mut env, &Target::F80, value.sign, value.exponent, wide);
        Computed::of(env, value)
    }

    /// The quotient's low bits, or C2 where the reduction is incomplete.
    fn set_quotient(&mut self, bits: Option<u8>) {
        let all = status::C0 | status::C1 | status::C2 | status::C3;
        let conditions = match bits {
            None => status::C2,
            Some(q) => [(4, status::C0), (2, status::C3), (1, status::C1)]
                .iter()
                .filter(|(bit, _)| q & bit != 0)
                .fold(0, |all, (_, condition)| all | condition),
        };
        self.set_condition(all, conditions);
    }
}

/// A result whose wrapped exponent is still out of range: massive overflow or underflow.
fn within_range(computed: Computed) -> Computed {
    let value = computed.value;
    let replaced = match value.class {
        Class::Finite if value.exponent > Target::F80.max_exponent => Value::infinity(value.sign),
        Class::Finite if value.exponent < Target::F80.min_exponent => Value::zero(value.sign),
        _ => return computed,
    };
    let rounded_up = replaced.class == Class::Infinity;
    Computed {
        value: replaced,
        flags: computed.flags | flag::INEXACT,
        rounded_up,
    }
}

/// Exponent, significand and flags of FXTRACT.
fn split(a: Value) -> (Value, Value, u8) {
    match a.class {
        Class::Zero => (Value::infinity(true), a, flag::DIVIDE_BY_ZERO),
        Class::Infinity => (Value::infinity(false), a, 0),
        _ => {
            let mut env = Environment::nearest();
            let exponent = float::from_i64(&mut env, &Target::F80, a.exponent as i64);
            (
                exponent,
                Value::finite(a.sign, 0, a.significand),
                denormal_flag(a, a),
            )
        }
    }
}
