//! Single elements in and out of vector registers, masks, tests, string comparison, and the state that is not
//! a register's.

use iced_x86::{Code, Mnemonic};

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::handlers;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::simd::shuffle::{extract, insert, insertps, movmskpd, movmskps, pmovmskb};

/// The handler of an instruction of this table.
pub(super) fn handler(mnemonic: Mnemonic, code: Code, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpmovmskb => by_width!(shape; mask; 16, pmovmskb),
        M::Vmovmskps => by_width!(shape; mask; 4, movmskps),
        M::Vmovmskpd => by_width!(shape; mask; 2, movmskpd),
        M::Vpextrb => by_memory!(shape; extract_element; 8, |cpu, op, v| store8(cpu, op, v as u8)),
        M::Vpextrw => by_memory!(shape; extract_element; 16, |cpu, op, v| store16(cpu, op, v as u16)),
        M::Vpextrd | M::Vextractps => {
            by_memory!(shape; extract_element; 32, |cpu, op, v| store32(cpu, op, v as u32))
        }
        M::Vpextrq => by_memory!(shape; extract_element; 64, store64),
        M::Vpinsrb => by_memory!(shape; insert_element, u8; 8, load8),
        M::Vpinsrw => by_memory!(shape; insert_element, u16; 16, load16),
        M::Vpinsrd => by_memory!(shape; insert_element, u32; 32, load32),
        M::Vpinsrq => by_memory!(shape; insert_element, u64; 64, load64),
        M::Vinsertps => by_memory!(shape; insert_single;),
        M::Vptest => by_shape!(shape; test; u128::MAX),
        M::Vtestps => by_shape!(shape; test; 0x8000_0000_8000_0000_8000_0000_8000_0000),
        M::Vtestpd => by_shape!(shape; test; 0x8000_0000_0000_0000_8000_0000_0000_0000),
        M::Vldmxcsr => |cpu, op| {
            enter(cpu)?;
            let bits = load32(cpu, op)?;
            match Mxcsr::from_bits(bits) {
                Some(value) => cpu.mxcsr = value,
                None => return cpu.general_protection(0),
            }
            Ok(())
        },
        M::Vstmxcsr => |cpu, op| {
            enter(cpu)?;
            let bits = cpu.mxcsr.bits();
            store32(cpu, op, bits)
        },
        M::Vzeroupper => |cpu, _| {
            enter(cpu)?;
            let count = register_count(cpu);
            cpu.ymm_upper[..count].fill(0);
            Ok(())
        },
        M::Vzeroall => |cpu, _| {
            enter(cpu)?;
            let count = register_count(cpu);
            cpu.xmm[..count].fill(0);
            cpu.ymm_upper[..count].fill(0);
            Ok(())
        },
        _ => return string(code),
    })
}

/// Registers outside 64-bit mode are eight.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.is_long() { 16 } else { 8 }
}

/// A general register gets a bit for each of the `elements` of a lane.
#[inline(always)]
fn mask<const N: usize>(cpu: &mut Cpu, op: &Op, elements: u32, f: impl Fn(u128) -> u32) -> Flow {
    enter(cpu)?;
    let b = get::<N>(cpu, op.b);
    let bits = b
        .iter()
        .rev()
        .fold(0, |bits, lane| bits << elements | f(*lane) as u64);
    set_general(cpu, op.a, bits);
    Ok(())
}

/// Register or memory gets the element of `bits` bits that imm8 selects.
#[inline(always)]
fn extract_element<const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    bits: u32,
    store: impl Fn(&mut Cpu, &Op, u64) -> Flow,
) -> Flow {
    enter(cpu)?;
    let element = extract(xmm(cpu, op.b), op.imm as u32 & (128 / bits - 1), bits);
    if MEMORY {
        return store(cpu, op, element);
    }
    set_general(cpu, op.a, element);
    Ok(())
}

/// `a` is `b` with the element that imm8 selects taken from a general register or memory.
#[inline(always)]
fn insert_element<T: Into<u64>, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    bits: u32,
    load: impl Fn(&mut Cpu, &Op) -> Result<T, Stop>,
) -> Flow {
    enter(cpu)?;
    let value = if MEMORY {
        load(cpu, op)?.into()
    } else {
        general(cpu, op.c)
    };
    let lane = insert(xmm(cpu, op.b), value, op.imm as u32 & (128 / bits - 1), bits);
    set(cpu, op.a, [lane]);
    Ok(())
}

/// VINSERTPS
fn insert_single<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let element = if MEMORY {
        load32(cpu, op)?
    } else {
        extract(xmm(cpu, op.c), op.imm as u32 >> 6 & 3, 32) as u32
    };
    let lane = insertps(xmm(cpu, op.b), element, op.imm as u8);
    set(cpu, op.a, [lane]);
    Ok(())
}

/// VPTEST, VTESTPS, VTESTPD: ZF and CF say whether all looked-at bits of `a & b` and of `!a & b` are zero.
#[inline(always)]
fn test<const N: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, looked_at: u128) -> Flow {
    enter(cpu)?;
    let b = source::<N, MEMORY>(cpu, op, op.b)?;
    let a = get::<N>(cpu, op.a);
    let none = |f: fn(u128, u128) -> u128| a.iter().zip(b).all(|(a, b)| f(*a, b) & looked_at == 0);
    let (zero, carry) = (none(|a, b| a & b), none(|a, b| !a & b));
    set_flags(cpu, zero, false, carry);
    Ok(())
}

/// Runs an SSE instruction's handler, which also zeroes the upper half of what it writes where `register`.
fn string(code: Code) -> Option<Handler> {
    /// The handler with register or memory operand, as the operation says.
    fn legacy(cpu: &mut Cpu, op: &Op, code: Code) -> Flow {
        enter(cpu)?;
        match handlers::handler(code, op.has_memory()) {
            Some(handler) => handler(cpu, op),
            None => cpu.undefined(),
        }
    }
    fn to_xmm0(cpu: &mut Cpu, op: &Op, code: Code) -> Flow {
        legacy(cpu, op, code)?;
        cpu.ymm_upper[0] = 0;
        Ok(())
    }
    Some(match code {
        Code::VEX_Vpcmpistri_xmm_xmmm128_imm8 => |cpu, op| legacy(cpu, op, Code::Pcmpistri_xmm_xmmm128_imm8),
        Code::VEX_Vpcmpestri_xmm_xmmm128_imm8 => |cpu, op| legacy(cpu, op, Code::Pcmpestri_xmm_xmmm128_imm8),
        Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8 => {
            |cpu, op| legacy(cpu, op, Code::Pcmpestri64_xmm_xmmm128_imm8)
        }
        Code::VEX_Vpcmpistrm_xmm_xmmm128_imm8 => |cpu, op| to_xmm0(cpu, op, Code::Pcmpistrm_xmm_xmmm128_imm8),
        Code::VEX_Vpcmpestrm_xmm_xmmm128_imm8 => |cpu, op| to_xmm0(cpu, op, Code::Pcmpestrm_xmm_xmmm128_imm8),
        Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8 => {
            |cpu, op| to_xmm0(cpu, op, Code::Pcmpestrm64_xmm_xmmm128_imm8)
        }
        _ => return None,
    })
}
