//! Comparison and classification.

use super::arith::denormal_flag;
use super::{Fpu, status};
use crate::float::{self, Class, Value, flag, unpack_f80};
use std::cmp::Ordering;

/// The outcome of a comparison in the terms of both kinds of flags: C3 is ZF, C2 is PF, C0 is CF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// C3 or ZF: equal or unordered.
    pub zero: bool,
    /// C2 or PF: unordered.
    pub parity: bool,
    /// C0 or CF: less or unordered.
    pub carry: bool,
}

impl Relation {
    const UNORDERED: Relation = Relation {
        zero: true,
        parity: true,
        carry: true,
    };

    fn of(order: Ordering) -> Relation {
        Relation {
            zero: order == Ordering::Equal,
            parity: false,
            carry: order == Ordering::Less,
        }
    }

    fn conditions(self) -> u16 {
        let bit = |on: bool, bit: u16| if on { bit } else { 0 };
        bit(self.zero, status::C3) | bit(self.parity, status::C2) | bit(self.carry, status::C0)
    }
}

impl Fpu {
    /// Compares and raises flags; nothing where an unmasked exception stopped the instruction.
    fn relate(&mut self, a: Value, b: Value, quiet: bool) -> Option<Relation> {
        let unsupported = a.class == Class::Unsupported || b.class == Class::Unsupported;
        let signalling = a.class == Class::SignallingNan || b.class == Class::SignallingNan;
        if unsupported || a.is_nan() || b.is_nan() {
            let invalid = unsupported || signalling || !quiet;
            let flags = if invalid { flag::INVALID } else { 0 };
            return self.record(flags, false).then_some(Relation::UNORDERED);
        }
        let goes_on = self.record(denormal_flag(a, b), false);
        goes_on.then(|| Relation::of(float::compare(a, b)))
    }

    /// Compares ST(0) with ST(i).
    fn relate_register(&mut self, i: usize, quiet: bool) -> Option<Relation> {
        if self.is_empty(0) || self.is_empty(i) {
            return self.stack_underflow().then_some(Relation::UNORDERED);
        }
        self.relate(unpack_f80(self.register(0)), unpack_f80(self.register(i)), quiet)
    }

    fn finish_compare(&mut self, relation: Option<Relation>, pops: usize) {
        let Some(relation) = relation else { return };
        self.set_condition(status::C0 | status::C2 | status::C3, relation.conditions());
        for _ in 0..pops {
            self.pop();
        }
    }

    /// FCOM, FCOMP, FCOMPP and (quiet) FUCOM, FUCOMP, FUCOMPP.
    pub fn compare(&mut self, i: usize, quiet: bool, pops: usize) {
        let relation = self.relate_register(i, quiet);
        self.finish_compare(relation, pops);
    }

    /// FCOM, FCOMP, FICOM, FICOMP with a memory operand.
    pub fn compare_memory(&mut self, b: Value, pops: usize) {
        let relation = if self.is_empty(0) {
            self.stack_underflow().then_some(Relation::UNORDERED)
        } else {
            self.relate(unpack_f80(self.register(0)), b, false)
        };
        self.finish_compare(relation, pops);
    }

    /// FTST
    pub fn test(&mut self) {
        self.compare_memory(Value::zero(false), 0);
    }

    /// FCOMI, FUCOMI and their popping forms: the relation goes to RFLAGS. Nothing where an unmasked exception
    /// leaves RFLAGS alone.
    pub fn compare_to_flags(&mut self, i: usize, quiet: bool, pop: bool) -> Option<Relation> {
        let relation = self.relate_register(i, quiet)?;
        if pop {
            self.pop();
        }
        Some(relation)
    }

    /// FXAM
    pub fn examine(&mut self) {
        let register = self.register(0);
        let value = unpack_f80(register);
        let class = if self.is_empty(0) {
            status::C3 | status::C0
        } else {
            match value.class {
                Class::Unsupported => 0,
                Class::QuietNan | Class::SignallingNan => status::C0,
                Class::Finite if value.denormal => status::C3 | status::C2,
                Class::Finite => status::C2,
                Class::Infinity => status::C2 | status::C0,
                Class::Zero => status::C3,
            }
        };
        let sign = if register.is_negative() { status::C1 } else { 0 };
        self.set_condition(status::C0 | status::C1 | status::C2 | status::C3, class | sign);
    }
}
