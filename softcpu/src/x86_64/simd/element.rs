//! One SSE floating point element: the operation with host arithmetic where that is exact in value and
//! flags, with [`crate::x86_64::float`] otherwise.

use super::mxcsr::{Mxcsr, Unmasked};
use crate::x86_64::float::{self, Class, Environment, Target, Value, flag};
use std::cmp::Ordering;

/// A two-operand arithmetic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

/// The bit pattern of a single (`u32`) or double (`u64`) precision number.
pub trait Element: Copy + Eq {
    /// Precision and range.
    const TARGET: Target;
    /// Unpacks.
    fn unpack(self) -> Value;
    /// Packs a value rounded to [`Element::TARGET`].
    fn pack(value: Value) -> Self;
    /// The host's result, rounded to nearest.
    fn host(op: Op, a: Self, b: Self) -> Self;
    /// The host's square root, rounded to nearest.
    fn host_sqrt(self) -> Self;
    /// Finite and so far from the denormal range that no rounding could have come from there.
    fn is_safe_result(self) -> bool;
    /// A zero of either sign.
    fn is_zero(self) -> bool;
    /// A denormal number.
    fn is_denormal(self) -> bool;
    /// The host's order; nothing for NaNs.
    fn order(self, other: Self) -> Option<Ordering>;
    /// The host's `a * b + c`, rounded once, to nearest.
    fn host_fused(a: Self, b: Self, c: Self) -> Self;
    /// With the sign turned where `negate`.
    fn negated_if(self, negate: bool) -> Self;
}

macro_rules! element {
    ($bits:ty, $host:ty, $target:ident, $unpack:ident, $pack:ident, $fraction:literal, $max:literal) => {
        impl Element for $bits {
            const TARGET: Target = Target::$target;

            #[inline]
            fn unpack(self) -> Value {
                float::$unpack(self)
            }

            #[inline]
            fn pack(value: Value) -> Self {
                float::$pack(value)
            }

            #[inline(always)]
            fn host(op: Op, a: Self, b: Self) -> Self {
                let (a, b) = (<$host>::from_bits(a), <$host>::from_bits(b));
                match op {
                    Op::Add => a + b,
                    Op::Sub => a - b,
                    Op::Mul => a * b,
                    Op::Div => a / b,
                }
                .to_bits()
            }

            #[inline(always)]
            fn host_sqrt(self) -> Self {
                <$host>::from_bits(self).sqrt().to_bits()
            }

            #[inline(always)]
            fn is_safe_result(self) -> bool {
                (2..$max).contains(&(self >> $fraction & $max))
            }

            #[inline(always)]
            fn is_zero(self) -> bool {
                self << 1 == 0
            }

            #[inline(always)]
            fn is_denormal(self) -> bool {
                self >> $fraction & $max == 0 && !self.is_zero()
            }

            #[inline(always)]
            fn order(self, other: Self) -> Option<Ordering> {
                <$host>::from_bits(self).partial_cmp(&<$host>::from_bits(other))
            }

            #[inline(always)]
            fn host_fused(a: Self, b: Self, c: Self) -> Self {
                let [a, b, c] = [a, b, c].map(<$host>::from_bits);
                a.mul_add(b, c).to_bits()
            }

            #[inline(always)]
            fn negated_if(self, negate: bool) -> Self {
                self ^ (negate as $bits) << (<$bits>::BITS - 1)
            }
        }
    };
}

element!(u32, f32, F32, unpack_f32, pack_f32, 23, 0xff);
element!(u64, f64, F64, unpack_f64, pack_f64, 52, 0x7ff);

/// One instruction's view of MXCSR: what holds for all elements, and the flags they raised.
#[derive(Clone, Copy)]
pub struct Session {
    mxcsr: Mxcsr,
    /// Host arithmetic may be used; see [`Mxcsr::inexact_is_settled`].
    quick: bool,
    /// Flags of all elements so far.
    flags: u8,
}

impl Session {
    /// Starts an instruction.
    #[inline(always)]
    pub fn new(mxcsr: Mxcsr) -> Session {
        Session {
            mxcsr,
            quick: mxcsr.inexact_is_settled(),
            flags: 0,
        }
    }

    /// Ends it: records the flags.
    #[inline(always)]
    pub fn finish(self, mxcsr: &mut Mxcsr) -> Result<(), Unmasked> {
        mxcsr.raise(self.flags)
    }

    /// Raises flags.
    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Runs an operation of the core in this instruction's environment.
    fn in_environment(&mut self, f: impl FnOnce(&mut Environment) -> Value) -> Value {
        let mut env = self.mxcsr.environment();
        let value = f(&mut env);
        self.flags |= env.flags;
        value
    }

    /// An operand, a denormal read as zero where MXCSR says so.
    fn operand<E: Element>(&self, bits: E) -> Value {
        let value = bits.unpack();
        if self.mxcsr.denormals_are_zeros() {
            value.flush_denormal()
        } else {
            value
        }
    }

    /// The NaN that an operation delivers if an operand is one: the first, made quiet.
    fn propagate(&mut self, a: Value, b: Value) -> Option<Value> {
        if a.class == Class::SignallingNan || b.class == Class::SignallingNan {
            self.raise(flag::INVALID);
        }
        [a, b].into_iter().find(Value::is_nan).map(Value::quieted)
    }

    /// A two-operand operation.
    #[inline(always)]
    pub fn arithmetic<E: Element>(&mut self, op: Op, a: E, b: E) -> E {
        if self.quick && !a.is_denormal() && !b.is_denormal() {
            let result = E::host(op, a, b);
            let exact_zero = || match op {
                Op::Add | Op::Sub => true,
                Op::Mul => a.is_zero() || b.is_zero(),
                Op::Div => a.is_zero(),
            };
            if result.is_safe_result() || result.is_zero() && exact_zero() {
                return result;
            }
        }
        self.arithmetic_exactly(op, a, b)
    }

    #[cold]
    #[inline(never)]
    fn arithmetic_exactly<E: Element>(&mut self, op: Op, a: E, b: E) -> E {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.propagate(a, b) {
            return E::pack(nan);
        }
        let operation = match op {
            Op::Add => float::add,
            Op::Sub => float::sub,
            Op::Mul => float::mul,
            Op::Div => float::div,
        };
        let value = self.in_environment(|env| operation(env, &E::TARGET, a, b));
        // Invalid and divide-by-zero come before denormal and hide it.
        if (a.denormal || b.denormal) && !value.is_nan() && !(op == Op::Div && b.class == Class::Zero) {
            self.raise(flag::DENORMAL);
        }
        E::pack(value)
    }

    /// `a * b + c` with the product or the addend negated, rounded once. Of several NaNs the first is kept.
    #[inline(always)]
    pub fn fused<E: Element>(&mut self, a: E, b: E, c: E, negate_product: bool, negate_addend: bool) -> E {
        if self.quick && !a.is_denormal() && !b.is_denormal() && !c.is_denormal() {
            let result = E::host_fused(a.negated_if(negate_product), b, c.negated_if(negate_addend));
            if result.is_safe_result() {
                return result;
            }
        }
        self.fused_exactly(a, b, c, negate_product, negate_addend)
    }

    #[cold]
    #[inline(never)]
    fn fused_exactly<E: Element>(
        &mut self,
        a: E,
        b: E,
        c: E,
        negate_product: bool,
        negate_addend: bool,
    ) -> E {
        let [a, b, c] = [a, b, c].map(|v| self.operand(v));
        let all = [a, b, c];
        if all.iter().any(|v| v.class == Class::SignallingNan) {
            self.raise(flag::INVALID);
        }
        if let Some(nan) = all.into_iter().find(Value::is_nan) {
            return E::pack(nan.quieted());
        }
        let factor = a.with_sign(a.sign != negate_product);
        let addend = c.with_sign(c.sign != negate_addend);
        let value = self.in_environment(|env| float::fused(env, &E::TARGET, factor, b, addend));
        if all.iter().any(|v| v.denormal) && !value.is_nan() {
            self.raise(flag::DENORMAL);
        }
        E::pack(value)
    }

    /// A half-precision number as a single: exact, and its denormals are numbers like others.
    pub fn from_half(&mut self, half: u16) -> u32 {
        let value = float::unpack_f16(half);
        if value.class == Class::SignallingNan {
            self.raise(flag::INVALID);
        }
        let value = if value.is_nan() { value.quieted() } else { value };
        u32::pack(value)
    }

    /// A single in half precision: `control` chooses the rounding. Tiny results are never flushed.
    pub fn to_half(&mut self, a: u32, control: u8) -> u16 {
        let a = self.operand(a);
        if let Some(nan) = self.propagate(a, a) {
            return float::pack_f16(nan);
        }
        if a.denormal {
            self.raise(flag::DENORMAL);
        }
        let mut env = Environment {
            flush_to_zero: false,
            ..self.mxcsr.environment()
        };
        if control & 4 == 0 {
            env.rounding = float::Rounding::from_bits(control as u32);
        }
        let value = float::add(&mut env, &Target::F16, a, Value::zero(a.sign));
        self.raise(env.flags);
        float::pack_f16(value)
    }

    /// The square root.
    #[inline(always)]
    pub fn sqrt<E: Element>(&mut self, a: E) -> E {
        if self.quick && !a.is_denormal() {
            let result = a.host_sqrt();
            if result.is_safe_result() {
                return result;
            }
        }
        self.sqrt_exactly(a)
    }

    #[cold]
    #[inline(never)]
    fn sqrt_exactly<E: Element>(&mut self, a: E) -> E {
        let a = self.operand(a);
        if let Some(nan) = self.propagate(a, a) {
            return E::pack(nan);
        }
        let value = self.in_environment(|env| float::sqrt(env, &E::TARGET, a));
        if a.denormal && !value.is_nan() {
            self.raise(flag::DENORMAL);
        }
        E::pack(value)
    }

    /// Orders two operands; nothing where one is a NaN. `quiet` comparisons raise invalid for signalling
    /// NaNs only.
    #[inline]
    pub fn compare<E: Element>(&mut self, a: E, b: E, quiet: bool) -> Option<Ordering> {
        match a.order(b) {
            Some(order) if !a.is_denormal() && !b.is_denormal() => Some(order),
            _ => self.compare_exactly(a, b, quiet),
        }
    }

    #[cold]
    fn compare_exactly<E: Element>(&mut self, a: E, b: E, quiet: bool) -> Option<Ordering> {
        let (a, b) = (self.operand(a), self.operand(b));
        if self.propagate(a, b).is_some() {
            if !quiet {
                self.raise(flag::INVALID);
            }
            return None;
        }
        if a.denormal || b.denormal {
            self.raise(flag::DENORMAL);
        }
        Some(float::compare(a, b))
    }

    /// MIN and MAX: the first operand where its order to the second is `wanted`, else the second; so the
    /// second where they are equal or one is a NaN.
    #[inline]
    pub fn select<E: Element>(&mut self, a: E, b: E, wanted: Ordering) -> E {
        let chosen = if self.compare(a, b, false) == Some(wanted) {
            a
        } else {
            b
        };
        if chosen.is_denormal() {
            E::pack(self.denormal_image(chosen))
        } else {
            chosen
        }
    }

    /// A denormal as MIN and MAX deliver it.
    #[cold]
    fn denormal_image<E: Element>(&self, bits: E) -> Value {
        if self.mxcsr.denormals_are_zeros() {
            return Value::zero(bits.unpack().sign);
        }
        float::add(
            &mut Environment::nearest(),
            &E::TARGET,
            bits.unpack(),
            Value::zero(false),
        )
    }

    /// The number in another format; raises denormal, unlike conversions to integers.
    pub fn convert<A: Element, B: Element>(&mut self, a: A) -> B {
        let a = self.operand(a);
        if let Some(nan) = self.propagate(a, a) {
            return B::pack(nan);
        }
        if a.denormal {
            self.raise(flag::DENORMAL);
        }
        let zero = Value::zero(a.sign);
        B::pack(self.in_environment(|env| float::add(env, &B::TARGET, a, zero)))
    }

    /// An integer in this format.
    pub fn from_integer<E: Element>(&mut self, value: i64) -> E {
        E::pack(self.in_environment(|env| float::from_i64(env, &E::TARGET, value)))
    }

    /// The number as a signed integer of `bits` bits, rounded as MXCSR says or truncated.
    pub fn to_integer<E: Element>(&mut self, a: E, bits: u32, truncate: bool) -> i64 {
        let a = self.operand(a);
        let mut env = self.mxcsr.environment();
        if truncate {
            env.rounding = float::Rounding::Zero;
        }
        let value = float::to_integer(&mut env, a, bits);
        self.raise(env.flags);
        value
    }

    /// ROUNDSS and its like: `control` chooses the rounding and may silence inexact.
    pub fn round_to_integral<E: Element>(&mut self, a: E, control: u8) -> E {
        let a = self.operand(a);
        if let Some(nan) = self.propagate(a, a) {
            return E::pack(nan);
        }
        let mut env = self.mxcsr.environment();
        if control & 4 == 0 {
            env.rounding = float::Rounding::from_bits(control as u32);
        }
        let value = float::round_to_integral(&mut env, a);
        if control & 8 == 0 {
            self.raise(env.flags);
        }
        E::pack(value)
    }
}
