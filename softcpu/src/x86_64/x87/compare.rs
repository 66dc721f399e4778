//! Comparison and classification.

use super::arith::denormal_flag;
use super::{Fpu, status};
use crate::x86_64::float::{self, Class, Value, flag, unpack_f80};
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

/// The outcome of comparing two operands.
struct Compared {
    relation: Relation,
    /// Exception flags.
    flags: u8,
    /// The invalid operation is that of the stack.
    stack_fault: bool,
}

/// Compares two values; a quiet comparison accepts quiet NaNs.
fn relate(a: Value, b: Value, quiet: bool) -> Compared {
    let unsupported = a.class == Class::Unsupported || b.class == Class::Unsupported;
    let signalling = a.class == Class::SignallingNan || b.class == Class::SignallingNan;
    if unsupported || a.is_nan() || b.is_nan() {
        let invalid = unsupported || signalling || !quiet;
        let flags = if invalid { flag::INVALID } else { 0 };
        return Compared {
            relation: Relation::UNORDERED,
            flags,
            stack_fault: false,
        };
    }
    let relation = Relation::of(float::compare(a, b));
    Compared {
        relation,
        flags: denormal_flag(a, b),
        stack_fault: false,
    }
}

impl Fpu {
    /// Compares ST(0) with `b`, or an empty register.
    fn relate_top(&self, b: Option<Value>, quiet: bool) -> Compared {
        match b {
            Some(b) if !self.is_empty(0) => relate(unpack_f80(self.register(0)), b, quiet),
            _ => Compared {
                relation: Relation::UNORDERED,
                flags: flag::INVALID,
                stack_fault: true,
            },
        }
    }

    /// ST(i) unpacked, unless it is empty.
    fn unpacked(&self, i: usize) -> Option<Value> {
        (!self.is_empty(i)).then(|| unpack_f80(self.register(i)))
    }

    /// Records the flags of a comparison; true where no unmasked exception stopped it. The relation is
    /// reported in either case, only the pops are not done.
    fn record_compared(&mut self, compared: &Compared) -> bool {
        if compared.stack_fault {
            self.stack_underflow()
        } else {
            self.record(compared.flags, false)
        }
    }

    fn finish_compare(&mut self, compared: Compared, pops: usize) {
        let goes_on = self.record_compared(&compared);
        self.set_condition(
            status::C0 | status::C2 | status::C3,
            compared.relation.conditions(),
        );
        for _ in 0..if goes_on { pops } else { 0 } {
            self.pop();
        }
    }

    /// FCOM, FCOMP, FCOMPP and (quiet) FUCOM, FUCOMP, FUCOMPP.
    pub fn compare(&mut self, i: usize, quiet: bool, pops: usize) {
        let compared = self.relate_top(self.unpacked(i), quiet);
        self.finish_compare(compared, pops);
    }

    /// FCOM, FCOMP, FICOM, FICOMP with a memory operand.
    pub fn compare_memory(&mut self, b: Value, pops: usize) {
        let compared = self.relate_top(Some(b), false);
        self.finish_compare(compared, pops);
    }

    /// FTST
    pub fn test(&mut self) {
        self.compare_memory(Value::zero(false), 0);
    }

    /// FCOMI, FUCOMI and their popping forms: the relation goes to RFLAGS. C1 changes only with a stack
    /// fault.
    pub fn compare_to_flags(&mut self, i: usize, quiet: bool, pop: bool) -> Relation {
        let compared = self.relate_top(self.unpacked(i), quiet);
        let c1 = if compared.stack_fault {
            0
        } else {
            self.status & status::C1
        };
        let goes_on = self.record_compared(&compared);
        self.set_condition(status::C1, c1);
        if goes_on && pop {
            self.pop();
        }
        compared.relation
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
