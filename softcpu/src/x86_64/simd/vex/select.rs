//! From an instruction with a VEX prefix to the function that executes it.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, OpKind};

use super::forms::Shape;
use super::{convert, elements, float, fused, gather, int, moves, shuffle};
use crate::x86_64::cpu::Handler;
use crate::x86_64::features::Features;

/// The handler of a VEX-encoded vector instruction; nothing for others, and where the processor lacks the
/// instruction's feature.
pub(crate) fn select(instr: &Instruction, features: Features) -> Option<Handler> {
    let code = instr.code();
    let has = |feature: &CpuidFeature| required(*feature).is_some_and(|needed| features.has(needed));
    if code.encoding() != EncodingKind::VEX || !code.cpuid_features().iter().all(has) {
        return None;
    }
    let (mnemonic, shape) = (instr.mnemonic(), shape(instr));
    let stores = instr.op_kinds().next() == Some(OpKind::Memory);
    let constant = instr.op_count() > 2 && instr.op_kind(2) == OpKind::Immediate8;
    moves::handler(mnemonic, code, shape, stores)
        .or_else(|| int::handler(mnemonic, shape))
        .or_else(|| int::unary_handler(mnemonic, shape))
        .or_else(|| int::shift_handler(mnemonic, shape, constant))
        .or_else(|| shuffle::handler(mnemonic, shape, constant))
        .or_else(|| float::handler(mnemonic, shape))
        .or_else(|| fused::handler(mnemonic, shape))
        .or_else(|| convert::handler(mnemonic, code, shape))
        .or_else(|| elements::handler(mnemonic, code, shape))
        .or_else(|| gather::handler(code, shape))
}

/// What an instruction of a feature needs here; nothing for features that there are no handlers for.
fn required(feature: CpuidFeature) -> Option<Features> {
    match feature {
        CpuidFeature::AVX => Some(Features::AVX),
        CpuidFeature::AVX2 => Some(Features::AVX2),
        CpuidFeature::FMA => Some(Features::FMA),
        CpuidFeature::F16C => Some(Features::F16C),
        _ => None,
    }
}

/// The width is that of the widest operand: conversions have one register of each.
fn shape(instr: &Instruction) -> Shape {
    let memory = instr.op_kinds().any(|kind| kind == OpKind::Memory);
    let registers = (0..instr.op_count()).filter(|n| instr.op_kind(*n) == OpKind::Register);
    let wide_register = registers
        .map(|n| instr.op_register(n))
        .any(|register| register.is_ymm());
    Shape {
        wide: wide_register || memory && instr.memory_size().size() == 32,
        memory,
    }
}
