//! Jumps, calls, returns, and what else asks for a condition.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{by_condition, size_of_operand, sized_wide};
use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::Choice;
use crate::x86_64::exec::branch::jcc;
use crate::x86_64::exec::chain::chain;
use crate::x86_64::exec::mov::{cmov, setcc_m, setcc_r};
use crate::x86_64::exec::{branch, far};

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction) -> Option<Choice> {
    use Mnemonic as M;
    let cc = instr.condition_code() as u8;
    let wide = size_of_operand(instr, 0);
    let memory = instr.op_count() > 0 && instr.op_kind(0) == OpKind::Memory;
    if instr.is_jcc_short_or_near() {
        return Some(Choice::end(by_condition!(cc - 1; jcc)));
    }
    let run: Chained = match instr.mnemonic() {
        M::Jmp if instr.is_jmp_short_or_near() => chain(branch::jmp),
        M::Jmp if instr.is_jmp_far_indirect() || instr.is_jmp_far() => {
            return Some(Choice::end(match instr.code() {
                Code::Jmp_m1664 => chain(far::jmp::<u64>),
                Code::Jmp_m1632 | Code::Jmp_ptr1632 => chain(far::jmp::<u32>),
                _ => chain(far::jmp::<u16>),
            }));
        }
        M::Jmp => sized_wide!(wide; branch::jmp_indirect),
        M::Call if instr.is_call_near() => {
            sized_wide!(instr.stack_pointer_increment().unsigned_abs(); branch::call)
        }
        M::Call if instr.is_call_far_indirect() || instr.is_call_far() => match instr.code() {
            Code::Call_m1664 => chain(far::call::<u64>),
            Code::Call_m1632 | Code::Call_ptr1632 => chain(far::call::<u32>),
            _ => chain(far::call::<u16>),
        },
        M::Call => sized_wide!(wide; branch::call_indirect),
        M::Ret => match instr.code() {
            Code::Retnw | Code::Retnw_imm16 => chain(branch::ret::<u16>),
            Code::Retnd | Code::Retnd_imm16 => chain(branch::ret::<u32>),
            _ => chain(branch::ret::<u64>),
        },
        M::Retf => match instr.code() {
            Code::Retfw | Code::Retfw_imm16 => chain(far::retf::<u16>),
            Code::Retfd | Code::Retfd_imm16 => chain(far::retf::<u32>),
            _ => chain(far::retf::<u64>),
        },
        M::Iret => chain(far::iret::<u16>),
        M::Iretd => chain(far::iret::<u32>),
        M::Iretq => chain(far::iret::<u64>),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => return counted(instr),
        _ if cc == 0 => return None,
        _ => {
            // SETcc has one operand, CMOVcc two.
            let run: Chained = match (instr.op_count(), wide) {
                (1, _) if memory => by_condition!(cc - 1; setcc_m),
                (1, _) => by_condition!(cc - 1; setcc_r),
                (2, 2) => by_condition!(cc - 1; cmov, u16),
                (2, 4) => by_condition!(cc - 1; cmov, u32),
                (2, 8) => by_condition!(cc - 1; cmov, u64),
                _ => return None,
            };
            // FCMOVcc has a condition too, but is another unit's.
            let general = instr.op_kind(0) != OpKind::Register || instr.op0_register().is_gpr();
            return general.then_some(Choice::plain(run));
        }
    };
    Some(Choice::end(run))
}

/// LOOP and JCXZ: the counter's width is that of addresses.
fn counted(instr: &Instruction) -> Option<Choice> {
    use Mnemonic as M;
    let run: Chained = match instr.mnemonic() {
        M::Loopne => chain(branch::loops::<0>),
        M::Loope => chain(branch::loops::<1>),
        M::Loop => chain(branch::loops::<2>),
        _ => chain(branch::loops::<3>),
    };
    Some(Choice::end(run))
}
