//! Instructions as bytes, and the address that one of them touches.

use super::case::*;
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

/// The address of an explicit memory operand.
pub fn effective_address(instruction: &Instruction, state: &State) -> Option<u64> {
    instruction.op_kinds().position(|kind| kind == OpKind::Memory)?;
    if instruction.memory_index().is_vector_register() {
        return None;
    }
    let value = |register: Register| match register {
        Register::None => 0,
        Register::RIP => 0,
        r => {
            let full = state.gpr[r.full_register().number()];
            if r.size() == 4 { full & 0xffff_ffff } else { full }
        }
    };
    let scale = instruction.memory_index_scale() as u64;
    let offset = value(instruction.memory_base())
        .wrapping_add(value(instruction.memory_index()).wrapping_mul(scale))
        .wrapping_add(instruction.memory_displacement64());
    let narrow = instruction.memory_base().size() == 4 || instruction.memory_index().size() == 4;
    let offset = if narrow { offset & 0xffff_ffff } else { offset };
    let base = if instruction.segment_prefix() == Register::GS {
        GS_BASE
    } else {
        0
    };
    Some(offset.wrapping_add(base))
}

/// Encodes instructions one behind the other; nothing where one cannot be encoded or comes back as another.
pub fn encode(instructions: &[Instruction], bitness: u32, at: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for instruction in instructions {
        let mut encoder = Encoder::new(bitness);
        let ip = at + bytes.len() as u64;
        let length = encoder.encode(instruction, ip).ok()?;
        let encoded = encoder.take_buffer();
        let mut decoder = Decoder::with_ip(bitness, &encoded, ip, DecoderOptions::NONE);
        let decoded = decoder.decode();
        if decoded.len() != length || decoded.code() != instruction.code() {
            return None;
        }
        bytes.extend(encoded);
    }
    (bytes.len() <= CODE_MAX).then_some(bytes)
}
