//! String comparison and CRC32.

use super::forms::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::string::{self, Comparison};
use iced_x86::Code;

/// Numbers of the registers that the explicit forms take lengths from, and that the index goes to.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// The second operand; it need not be aligned (Intel SDM vol. 2, PCMPESTRI).
fn second(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    if op.has_memory() {
        load128(cpu, op)
    } else {
        Ok(xmm(cpu, op.b))
    }
}

/// Where the lengths come from.
#[derive(Clone, Copy)]
enum Lengths {
    /// Each string ends at its first zero.
    Implicit,
    /// EAX and EDX.
    Explicit32,
    /// RAX and RDX.
    Explicit64,
}

fn compare(cpu: &mut Cpu, op: &Op, lengths: Lengths) -> Result<Comparison, Stop> {
    enter_sse(cpu)?;
    let control = op.imm as u8;
    let (a, b) = (xmm(cpu, op.a), second(cpu, op)?);
    let explicit = |register: u8| match lengths {
        Lengths::Explicit32 => general(cpu, register) as i32 as i64,
        _ => general(cpu, register) as i64,
    };
    let (length_a, length_b) = match lengths {
        Lengths::Implicit => (
            string::implicit_length(a, control),
            string::implicit_length(b, control),
        ),
        _ => (
            string::explicit_length(explicit(RAX), control),
            string::explicit_length(explicit(RDX), control),
        ),
    };
    let result = string::compare(a, b, length_a, length_b, control);
    set_string_flags(cpu, &result);
    Ok(result)
}

fn to_index(cpu: &mut Cpu, op: &Op, lengths: Lengths) -> Flow {
    let index = compare(cpu, op, lengths)?.index(op.imm as u8);
    set_general(cpu, RCX, index as u64);
    Ok(())
}

fn to_mask(cpu: &mut Cpu, op: &Op, lengths: Lengths) -> Flow {
    let mask = compare(cpu, op, lengths)?.mask(op.imm as u8);
    set_xmm(cpu, 0, mask);
    Ok(())
}

/// CRC32 over `bytes` bytes of a general register or memory.
macro_rules! crc {
    ($memory:ident, $bytes:literal, $load:ident) => {
        if $memory {
            (|cpu, op| {
                let data = $load(cpu, op)? as u64;
                let crc = string::crc32(general(cpu, op.a) as u32, data, $bytes);
                set_general(cpu, op.a, crc as u64);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                let crc = string::crc32(general(cpu, op.a) as u32, general(cpu, op.b), $bytes);
                set_general(cpu, op.a, crc as u64);
                Ok(())
            }) as Handler
        }
    };
}

/// The handler of a code of this table; `memory` says that an operand is in memory.
pub(super) fn handler(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Pcmpistri_xmm_xmmm128_imm8 => |cpu, op| to_index(cpu, op, Lengths::Implicit),
        Code::Pcmpestri_xmm_xmmm128_imm8 => |cpu, op| to_index(cpu, op, Lengths::Explicit32),
        Code::Pcmpestri64_xmm_xmmm128_imm8 => |cpu, op| to_index(cpu, op, Lengths::Explicit64),
        Code::Pcmpistrm_xmm_xmmm128_imm8 => |cpu, op| to_mask(cpu, op, Lengths::Implicit),
        Code::Pcmpestrm_xmm_xmmm128_imm8 => |cpu, op| to_mask(cpu, op, Lengths::Explicit32),
        Code::Pcmpestrm64_xmm_xmmm128_imm8 => |cpu, op| to_mask(cpu, op, Lengths::Explicit64),
        Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 if memory => crc!(memory, 1, load8),
        Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => |cpu, op| {
            let data = cpu.byte(op.b) as u64;
            let crc = string::crc32(general(cpu, op.a) as u32, data, 1);
            set_general(cpu, op.a, crc as u64);
            Ok(())
        },
        Code::Crc32_r32_rm16 => crc!(memory, 2, load16),
        Code::Crc32_r32_rm32 => crc!(memory, 4, load32),
        Code::Crc32_r64_rm64 => crc!(memory, 8, load64),
        _ => return None,
    })
}
