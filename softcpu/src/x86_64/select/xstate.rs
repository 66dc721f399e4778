//! XSAVE and its kin.

use iced_x86::{Code, Instruction};

use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::Choice;
use crate::x86_64::exec::chain::chain;
use crate::x86_64::features::Features;
use crate::x86_64::xstate::{self, Format};

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction, features: Features) -> Option<Choice> {
    if !features.has(Features::XSAVE) {
        return None;
    }
    let run: Chained = match instr.code() {
        Code::Xgetbv => chain(xstate::xgetbv),
        Code::Xsetbv => chain(xstate::xsetbv),
        Code::Xsave_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Standard, false)),
        Code::Xsave64_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Standard, true)),
        Code::Xsaveopt_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Optimised, false)),
        Code::Xsaveopt64_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Optimised, true)),
        Code::Xsavec_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Compacted, false)),
        Code::Xsavec64_mem => chain(|cpu, op| xstate::save(cpu, op, Format::Compacted, true)),
        Code::Xrstor_mem => chain(|cpu, op| xstate::restore(cpu, op, false)),
        Code::Xrstor64_mem => chain(|cpu, op| xstate::restore(cpu, op, true)),
        _ => return None,
    };
    Some(Choice::plain(run))
}
