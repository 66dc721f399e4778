//! The x87 floating point unit: eight 80-bit registers as a stack, control, status and tags
//! (Intel SDM vol. 1, chapter 8). MMX registers are the significands of the same eight.

mod arith;
mod compare;
pub mod handlers;
mod image;
mod load;
mod store;
#[cfg(test)]
mod tests;
mod transcendental;
mod wide;

pub use arith::Arith;
pub use compare::Relation;
pub use image::{Fxsave, Width};
pub use load::Constant;

use crate::x86_64::float::{Environment, F80, Rounding, Target, flag};

/// Bits of the status word beyond the six exception flags.
pub mod status {
    /// Stack fault: the invalid operation was an overflow or underflow of the stack.
    pub const STACK_FAULT: u16 = 1 << 6;
    /// Error summary: an unmasked exception is pending.
    pub const ERROR_SUMMARY: u16 = 1 << 7;
    /// Condition code 0.
    pub const C0: u16 = 1 << 8;
    /// Condition code 1: rounded up, or the stack overflowed.
    pub const C1: u16 = 1 << 9;
    /// Condition code 2: reduction incomplete, or unordered.
    pub const C2: u16 = 1 << 10;
    /// Condition code 3.
    pub const C3: u16 = 1 << 14;
    /// Busy; mirrors the error summary since the 387.
    pub const BUSY: u16 = 1 << 15;
    /// The field that holds TOP.
    pub const TOP: u16 = 7 << 11;
}

/// What an unmasked overflow or underflow adds to a result's exponent (Intel SDM vol. 1, 8.5.4).
const EXPONENT_WRAP: i32 = 24576;

/// Where the last non-control instruction and its memory operand were; shown by FNSTENV and FXSAVE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastInstruction {
    /// The low 11 bits of its opcode.
    pub opcode: u16,
    /// Its address.
    pub ip: u64,
    /// The address of its memory operand.
    pub dp: u64,
}

/// The unit's whole state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fpu {
    /// The physical registers R0 to R7.
    registers: [F80; 8],
    /// One bit for each physical register that is not empty: FXSAVE's abridged tag word.
    valid: u8,
    control: u16,
    /// TOP lives in its field here.
    status: u16,
    /// See [`LastInstruction`].
    pub last: LastInstruction,
}

impl Default for Fpu {
    fn default() -> Self {
        Fpu {
            registers: [F80::ZERO; 8],
            valid: 0,
            control: Fpu::INITIAL_CONTROL,
            status: 0,
            last: LastInstruction::default(),
        }
    }
}

impl Fpu {
    /// The control word after FNINIT: every exception masked, 64-bit precision, round to nearest.
    pub const INITIAL_CONTROL: u16 = 0x037f;

    /// FNINIT: the registers keep their content, but are empty.
    pub fn init(&mut self) {
        let Fpu {
            registers: _,
            valid,
            control,
            status,
            last,
        } = self;
        *valid = 0;
        *control = Fpu::INITIAL_CONTROL;
        *status = 0;
        *last = LastInstruction::default();
    }

    /// The control word.
    pub const fn control(&self) -> u16 {
        self.control
    }

    /// FLDCW: a flag that loses its mask becomes a pending exception.
    pub fn set_control(&mut self, control: u16) {
        // Bit 6 always reads as one; bits 7 and 13 to 15 are not there.
        self.control = control & 0x1f3f | 0x40;
        self.summarise();
    }

    /// The status word.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// FNCLEX
    pub fn clear_exceptions(&mut self) {
        self.status &= !(flag::ALL as u16 | status::STACK_FAULT | status::ERROR_SUMMARY | status::BUSY);
    }

    /// An unmasked exception waits: the next waiting instruction faults with #MF.
    pub const fn exception_pending(&self) -> bool {
        self.status & status::ERROR_SUMMARY != 0
    }

    /// Makes the error summary say what flags and masks say.
    fn summarise(&mut self) {
        let pending = self.status as u8 & !self.masked() & flag::ALL != 0;
        self.status &= !(status::ERROR_SUMMARY | status::BUSY);
        if pending {
            self.status |= status::ERROR_SUMMARY | status::BUSY;
        }
    }

    const fn masked(&self) -> u8 {
        self.control as u8 & flag::ALL
    }

    /// The environment of an operation, as the control word asks.
    fn environment(&self) -> Environment {
        Environment {
            rounding: Rounding::from_bits(self.control as u32 >> 10),
            masked: self.masked(),
            flush_to_zero: false,
            wrap: EXPONENT_WRAP,
            flags: 0,
            rounded_up: false,
        }
    }

    /// The precision that the control word sets for arithmetic; the exponent range is always extended.
    fn target(&self) -> Target {
        let precision = match self.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Target {
            precision,
            ..Target::F80
        }
    }

    /// The number of the register that is the top of the stack.
    pub const fn top(&self) -> usize {
        (self.status >> 11 & 7) as usize
    }

    fn set_top(&mut self, top: usize) {
        self.status = self.status & !status::TOP | (top as u16 & 7) << 11;
    }

    const fn physical(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }

    /// ST(i) is empty.
    pub const fn is_empty(&self, i: usize) -> bool {
        self.valid >> self.physical(i) & 1 == 0
    }

    /// The content of ST(i), empty or not.
    pub const fn register(&self, i: usize) -> F80 {
        self.registers[self.physical(i)]
    }

    /// Writes ST(i), which is then not empty.
    fn write(&mut self, i: usize, value: F80) {
        let physical = self.physical(i);
        self.registers[physical] = value;
        self.valid |= 1 << physical;
    }

    /// ST(0) becomes empty and ST(1) becomes the top.
    fn pop(&mut self) {
        self.valid &= !(1 << self.top());
        self.set_top(self.top() + 1);
    }

    /// FFREE
    pub fn free(&mut self, i: usize) {
        self.valid &= !(1 << self.physical(i));
        self.set_condition(status::C1, 0);
    }

    /// FFREEP: free ST(i), then pop without looking.
    pub fn free_and_pop(&mut self, i: usize) {
        self.free(i);
        self.pop();
    }

    /// FINCSTP
    pub fn increment_top(&mut self) {
        self.set_top(self.top() + 1);
        self.set_condition(status::C1, 0);
    }

    /// FDECSTP
    pub fn decrement_top(&mut self) {
        self.set_top(self.top() + 7);
        self.set_condition(status::C1, 0);
    }

    /// Replaces the condition codes that `mask` names.
    fn set_condition(&mut self, mask: u16, bits: u16) {
        self.status = self.status & !mask | bits;
    }

    /// Records an operation's flags and, in C1, whether it rounded up. False where an unmasked exception
    /// forbids a result: those found from the operands are reported alone then.
    fn record(&mut self, flags: u8, rounded_up: bool) -> bool {
        self.set_condition(status::C1, 0);
        let stopped = flags & !self.masked() & flag::BEFORE_RESULT != 0;
        let reported = if stopped {
            flags & flag::BEFORE_RESULT
        } else {
            flags
        };
        self.status |= reported as u16;
        if reported & !self.masked() != 0 {
            self.summarise();
        }
        if !stopped && rounded_up {
            self.status |= status::C1;
        }
        !stopped
    }

    /// Records a stack underflow; true where it is masked.
    fn stack_underflow(&mut self) -> bool {
        self.status |= status::STACK_FAULT;
        self.record(flag::INVALID, false)
    }

    /// Records a stack overflow; true where it is masked.
    fn stack_overflow(&mut self) -> bool {
        self.status |= status::STACK_FAULT;
        let masked = self.record(flag::INVALID, false);
        self.status |= status::C1;
        masked
    }

    /// MMX register `i`.
    pub const fn mmx(&self, i: usize) -> u64 {
        self.registers[i & 7].significand
    }

    /// Writes MMX register `i`; the exponent becomes all ones.
    pub fn set_mmx(&mut self, i: usize, value: u64) {
        self.registers[i & 7] = F80::new(0xffff, value);
    }

    /// What every MMX instruction but EMMS does besides its work: no register is empty, TOP is 0.
    pub fn enter_mmx(&mut self) {
        self.valid = 0xff;
        self.set_top(0);
    }

    /// EMMS: every register is empty.
    pub fn leave_mmx(&mut self) {
        self.valid = 0;
        self.set_top(0);
    }
}
