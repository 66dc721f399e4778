//! Stores. Each gives what is to be written to memory; nothing where an unmasked exception forbids it, and
//! then the stack is not popped either. The caller writes memory *before* it makes the new state the
//! processor's, since the write may fault.

use super::Fpu;
use super::arith::{Computed, propagate};
use crate::x86_64::float::{self, F80, Rounding, Target, Value, flag, pack_f32, pack_f64, unpack_f80};

/// The packed decimal indefinite.
const BCD_INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;

/// The smallest magnitude that eighteen digits cannot hold.
const BCD_LIMIT: u64 = 1_000_000_000_000_000_000;

impl Fpu {
    /// ST(0), or the indefinite where an empty register's fault is masked.
    fn stored_operand(&mut self) -> Option<F80> {
        if !self.is_empty(0) {
            return Some(self.register(0));
        }
        self.stack_underflow().then_some(F80::INDEFINITE)
    }

    /// Records the flags of a store; true where it takes place. An unmasked overflow or underflow withholds
    /// the result, so that nothing is inexact.
    fn record_store(&mut self, computed: &Computed) -> bool {
        if self.is_empty(0) {
            // Recorded already, C1 included.
            return true;
        }
        let withheld = computed.flags & !self.masked() & (flag::OVERFLOW | flag::UNDERFLOW) != 0;
        if withheld {
            self.record(computed.flags & !flag::INEXACT, false);
            return false;
        }
        self.record(computed.flags, computed.rounded_up)
    }

    fn pop_if(&mut self, pop: bool) {
        if pop {
            self.pop();
        }
    }

    /// ST(0) rounded to an interchange format.
    fn store_rounded(&mut self, target: &Target, pop: bool) -> Option<Value> {
        let a = unpack_f80(self.stored_operand()?);
        let computed = propagate(a, a).unwrap_or_else(|| {
            let mut env = self.environment();
            let value = float::add(&mut env, target, a, Value::zero(a.sign));
            Computed::of(env, value)
        });
        let stored = self.record_store(&computed);
        self.pop_if(pop && stored);
        stored.then_some(computed.value)
    }

    /// FST m32, FSTP m32
    pub fn store_f32(&mut self, pop: bool) -> Option<u32> {
        self.store_rounded(&Target::F32, pop).map(pack_f32)
    }

    /// FST m64, FSTP m64
    pub fn store_f64(&mut self, pop: bool) -> Option<u64> {
        self.store_rounded(&Target::F64, pop).map(pack_f64)
    }

    /// FSTP m80: the register as it is.
    pub fn store_f80(&mut self) -> Option<F80> {
        let bits = self.stored_operand()?;
        if !self.is_empty(0) {
            self.record(0, false);
        }
        self.pop();
        Some(bits)
    }

    /// FST ST(i), FSTP ST(i)
    pub fn store_register(&mut self, i: usize, pop: bool) {
        if let Some(bits) = self.stored_operand() {
            if !self.is_empty(0) {
                self.record(0, false);
            }
            self.write(i, bits);
            self.pop_if(pop);
        }
    }

    /// FSTPNCE (undocumented): FSTP ST(i) that does not look whether ST(0) is empty.
    pub fn store_register_unchecked(&mut self, i: usize) {
        if !self.is_empty(0) {
            return self.store_register(i, true);
        }
        self.record(0, false);
        self.pop();
    }

    /// FIST, FISTP and (truncating) FISTTP to a signed integer of `bits` bits.
    pub fn store_integer(&mut self, bits: u32, truncate: bool, pop: bool) -> Option<i64> {
        let a = unpack_f80(self.stored_operand()?);
        let mut env = self.environment();
        if truncate {
            env.rounding = Rounding::Zero;
        }
        let integer = float::to_integer(&mut env, a, bits);
        let stored = self.record_store(&Computed::of(env, a));
        self.pop_if(pop && stored);
        stored.then_some(integer)
    }

    /// FBSTP: eighteen decimal digits and a sign.
    pub fn store_bcd(&mut self) -> Option<u128> {
        let a = unpack_f80(self.stored_operand()?);
        let mut env = self.environment();
        let integer = float::checked_to_integer(&mut env, a, 64).filter(|n| n.unsigned_abs() < BCD_LIMIT);
        let (computed, digits) = match integer {
            Some(n) => (Computed::of(env, a), bcd(n.unsigned_abs(), a.sign)),
            None => (Computed::invalid(), BCD_INDEFINITE),
        };
        let stored = self.record_store(&computed);
        self.pop_if(stored);
        stored.then_some(digits)
    }
}

/// Packed decimal: the sign is in bit 79; a zero keeps the sign of what was rounded.
fn bcd(magnitude: u64, sign: bool) -> u128 {
    let mut rest = magnitude;
    let digits = (0..18).fold(0u128, |digits, i| {
        let digit = rest % 10;
        rest /= 10;
        digits | (digit as u128) << (4 * i)
    });
    digits | (sign as u128) << 79
}
