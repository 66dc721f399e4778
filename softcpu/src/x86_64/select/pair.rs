//! Which pairs of instructions are run as one.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, Way, form, size_of_operand, way};
use crate::x86_64::cpu::Chained;
use crate::x86_64::exec::arith::{Add, And, Cmp, Sub, Test};
use crate::x86_64::exec::fuse::{MemImm, MemReg, RegImm, RegMem, RegReg, branch};
use crate::x86_64::state::CodeSize;

/// By condition: those that programs use. Overflow and parity are left to the single handlers.
macro_rules! by_condition {
    ($cc:expr; $w:ty, $o:ty, $s:ty) => {
        by_condition!(@ $cc; $w, $o, $s; 2 3 4 5 6 7 8 9 12 13 14 15)
    };
    (@ $cc:expr; $w:ty, $o:ty, $s:ty; $($n:literal)*) => {
        match $cc { $($n => branch::<$w, $o, $s, $n> as Chained,)* _ => return None }
    };
}

macro_rules! by_size {
    ($size:expr, $cc:expr; $o:ty, $s:ty) => {
        match $size {
            1 => by_condition!($cc; u8, $o, $s),
            4 => by_condition!($cc; u32, $o, $s),
            8 => by_condition!($cc; u64, $o, $s),
            _ => return None,
        }
    };
}

/// The handler of `first` that also runs `jump`, the instruction after it.
pub(crate) fn fused(first: &Instruction, jump: &Instruction, code: CodeSize) -> Option<Chained> {
    if !jump.is_jcc_short_or_near() || first.has_lock_prefix() {
        return None;
    }
    let cc = jump.condition_code() as u8 - 1;
    let size = size_of_operand(first, 0);
    let form = form(first)?;
    if matches!(form, Form::RegMem | Form::MemReg | Form::MemImm) && way(first, code) != Way::BaseDisp {
        return None;
    }
    Some(match (first.mnemonic(), form) {
        (Mnemonic::Cmp, Form::RegReg) => by_size!(size, cc; Cmp, RegReg),
        (Mnemonic::Cmp, Form::RegImm) => by_size!(size, cc; Cmp, RegImm),
        (Mnemonic::Cmp, Form::RegMem) => by_size!(size, cc; Cmp, RegMem),
        (Mnemonic::Cmp, Form::MemReg) => by_size!(size, cc; Cmp, MemReg),
        (Mnemonic::Cmp, Form::MemImm) => by_size!(size, cc; Cmp, MemImm),
        (Mnemonic::Test, Form::RegReg) => by_size!(size, cc; Test, RegReg),
        (Mnemonic::Test, Form::RegImm) => by_size!(size, cc; Test, RegImm),
        (Mnemonic::Test, Form::MemImm) => by_size!(size, cc; Test, MemImm),
        (Mnemonic::And, Form::RegImm) => by_size!(size, cc; And, RegImm),
        (Mnemonic::Sub, Form::RegImm) => by_size!(size, cc; Sub, RegImm),
        (Mnemonic::Add, Form::RegImm) => by_size!(size, cc; Add, RegImm),
        _ => return None,
    })
}
