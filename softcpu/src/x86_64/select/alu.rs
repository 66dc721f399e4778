//! Arithmetic, logic, shifts, bits.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Form, Way, form, size_of_operand, sized, sized_reach, sized_wide, way};
use crate::x86_64::access::{BaseDisp, General, Indexed};
use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::Choice;
use crate::x86_64::exec::chain::chain;
use crate::x86_64::exec::{
    arith::{self, Adc, Add, And, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Xor},
    atomic,
    bits::{self, Bt, Btc, Btr, Bts},
    muldiv,
    shift::{self, Rcl, Rcr, Rol, Ror, Sar, Shl, Shr},
};
use crate::x86_64::state::CodeSize;

macro_rules! alu {
    ($instr:expr, $code:expr, $o:ty) => {{
        let (instr, size) = ($instr, size_of_operand($instr, 0));
        let lock = instr.has_lock_prefix();
        let way = way(instr, $code);
        match form(instr)? {
            Form::RegReg => sized!(size; arith::rr, $o),
            Form::RegImm => sized!(size; arith::ri, $o),
            Form::RegMem => sized_reach!(size, way; arith::rm, $o),
            Form::MemReg if lock => sized!(size; atomic::mr, $o),
            Form::MemReg => sized_reach!(size, way; arith::mr, $o),
            Form::MemImm if lock => sized!(size; atomic::mi, $o),
            Form::MemImm => sized_reach!(size, way; arith::mi, $o),
            _ => return None,
        }
    }};
}

macro_rules! unary {
    ($instr:expr, $o:ty) => {{
        let size = size_of_operand($instr, 0);
        match form($instr)? {
            Form::Reg => sized!(size; arith::unary_r, $o),
            Form::Mem if $instr.has_lock_prefix() => sized!(size; atomic::unary, $o),
            Form::Mem => sized!(size; arith::unary_m, $o),
            _ => return None,
        }
    }};
}

macro_rules! shift {
    ($instr:expr, $s:ty) => {{
        let size = size_of_operand($instr, 0);
        let by_cl = $instr.op_kind(1) == OpKind::Register;
        match (form($instr)?, by_cl) {
            (Form::RegReg | Form::RegImm, true) => sized!(size; shift::rc, $s),
            (Form::RegReg | Form::RegImm, false) => sized!(size; shift::ri, $s),
            (Form::MemReg | Form::MemImm, true) => sized!(size; shift::mc, $s),
            (Form::MemReg | Form::MemImm, false) => sized!(size; shift::mi, $s),
            _ => return None,
        }
    }};
}

macro_rules! bit {
    ($instr:expr, $o:ty) => {{
        let size = size_of_operand($instr, 0);
        if $instr.op_kind(1) == OpKind::Register {
            sized_wide!(size; bits::by_register, $o)
        } else {
            sized_wide!(size; bits::by_immediate, $o)
        }
    }};
}

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction, code: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let op0 = || size_of_operand(instr, 0);
    let run: Chained = match instr.mnemonic() {
        M::Add => alu!(instr, code, Add),
        M::Adc => alu!(instr, code, Adc),
        M::Sub => alu!(instr, code, Sub),
        M::Sbb => alu!(instr, code, Sbb),
        M::And => alu!(instr, code, And),
        M::Or => alu!(instr, code, Or),
        M::Xor => alu!(instr, code, Xor),
        M::Cmp => alu!(instr, code, Cmp),
        M::Test => alu!(instr, code, Test),
        M::Inc => unary!(instr, Inc),
        M::Dec => unary!(instr, Dec),
        M::Neg => unary!(instr, Neg),
        M::Not => unary!(instr, Not),
        M::Shl | M::Sal => shift!(instr, Shl),
        M::Shr => shift!(instr, Shr),
        M::Sar => shift!(instr, Sar),
        M::Rol => shift!(instr, Rol),
        M::Ror => shift!(instr, Ror),
        M::Rcl => shift!(instr, Rcl),
        M::Rcr => shift!(instr, Rcr),
        M::Shld if instr.op_kind(2) == OpKind::Register => sized_wide!(op0(); shift::double_cl, true),
        M::Shld => sized_wide!(op0(); shift::double_imm, true),
        M::Shrd if instr.op_kind(2) == OpKind::Register => sized_wide!(op0(); shift::double_cl, false),
        M::Shrd => sized_wide!(op0(); shift::double_imm, false),
        M::Bt => bit!(instr, Bt),
        M::Bts => bit!(instr, Bts),
        M::Btr => bit!(instr, Btr),
        M::Btc => bit!(instr, Btc),
        M::Bsf => sized_wide!(op0(); bits::bsf),
        M::Bsr => sized_wide!(op0(); bits::bsr),
        M::Popcnt => sized_wide!(op0(); bits::popcnt),
        M::Mul => sized!(op0(); muldiv::mul),
        M::Imul => match instr.op_count() {
            1 => sized!(op0(); muldiv::imul1),
            2 => sized_wide!(op0(); muldiv::imul2),
            _ => sized_wide!(op0(); muldiv::imul3),
        },
        M::Div => sized!(op0(); muldiv::div),
        M::Idiv => sized!(op0(); muldiv::idiv),
        _ => return None,
    };
    Some(Choice::plain(run))
}
