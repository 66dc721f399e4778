//! Conversions.

use iced_x86::{Code, Mnemonic};

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::convert::cvtdq2pd;
use crate::x86_64::simd::element::{Element, Session};
use crate::x86_64::simd::float::instruction;
use crate::x86_64::simd::lanes::*;

/// The handler of an instruction of this table. The shape is that of the wider of source and destination.
pub(super) fn handler(mnemonic: Mnemonic, code: Code, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vcvtdq2ps => {
            by_shape!(shape; lanes_unary; |s, b, _| map32(b, |v| s.from_integer(v as i32 as i64)))
        }
        M::Vcvtps2dq => by_shape!(shape; lanes_unary; |s, b, _| to_dwords(s, b, false)),
        M::Vcvttps2dq => by_shape!(shape; lanes_unary; |s, b, _| to_dwords(s, b, true)),
        M::Vcvtps2pd => by_shape!(shape; widening; |s, low| {
            let [a, b, ..] = split32(low as u128);
            join64([s.convert(a), s.convert(b)])
        }),
        M::Vcvtdq2pd => by_shape!(shape; widening; |_, low| cvtdq2pd(low as u128)),
        M::Vcvtph2ps => by_shape!(shape; widening; |s, low| {
            join32([0, 16, 32, 48].map(|at| s.from_half((low >> at) as u16)))
        }),
        M::Vcvtpd2ps => by_shape!(shape; narrowing; |s, v| s.convert::<u64, u32>(v)),
        M::Vcvtpd2dq => by_shape!(shape; narrowing; |s, v| s.to_integer(v, 32, false) as u32),
        M::Vcvttpd2dq => by_shape!(shape; narrowing; |s, v| s.to_integer(v, 32, true) as u32),
        M::Vcvtps2ph => by_shape!(shape; to_half;),
        M::Vcvtss2sd => by_memory!(shape; between, u32, u64;),
        M::Vcvtsd2ss => by_memory!(shape; between, u64, u32;),
        _ => return general_register(code, shape),
    })
}

fn to_dwords(s: &mut Session, b: u128, truncate: bool) -> u128 {
    map32(b, |v| s.to_integer(v, 32, truncate) as u32)
}

/// Each lane of `a` is `f` of half a lane of `b`.
#[inline(always)]
fn widening<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, u64) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = if !MEMORY {
        xmm(cpu, op.b)
    } else if N == 2 {
        load128(cpu, op)?
    } else {
        load64(cpu, op)? as u128
    };
    let result = instruction(&mut cpu.mxcsr, |s| {
        std::array::from_fn(|lane| f(s, (b >> (64 * lane)) as u64))
    });
    deliver::<N>(cpu, op, result)
}

/// Each half a lane of `a` is `f` of the doubles of a lane of `b`.
#[inline(always)]
fn narrowing<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Session, u64) -> u32,
) -> Flow {
    enter(cpu)?;
    let b = source::<N, MEMORY>(cpu, op, op.b)?;
    let result = instruction(&mut cpu.mxcsr, |s| {
        b.iter().enumerate().fold(0, |all, (lane, doubles)| {
            let [low, high] = split64(*doubles).map(|v| f(s, v) as u128);
            all | (low | high << 32) << (64 * lane)
        })
    });
    deliver(cpu, op, result.map(|lane| [lane]))
}

/// VCVTPS2PH: the destination is the first operand, in a register or in memory.
#[inline(always)]
fn to_half<const N: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    if MEMORY {
        // A fault of the address comes before one of the arithmetic.
        cpu.check_write(cpu.address(op), 8 * N)?;
    }
    let b = get::<N>(cpu, op.b);
    let result = instruction(&mut cpu.mxcsr, |s| {
        b.iter().enumerate().fold(0, |all, (lane, singles)| {
            let halves = split32(*singles).map(|v| s.to_half(v, op.imm as u8) as u128);
            let packed = halves.iter().rev().fold(0, |packed, half| packed << 16 | half);
            all | packed << (64 * lane)
        })
    });
    let packed: u128 = arithmetic(cpu, result)?;
    match (MEMORY, N) {
        (false, _) => set(cpu, op.a, [packed]),
        (true, 1) => return store64(cpu, op, packed as u64),
        (true, _) => return store128(cpu, op, packed),
    }
    Ok(())
}

/// VCVTSS2SD, VCVTSD2SS: the lowest element in the other format, the rest of `b`.
#[inline(always)]
fn between<A: Packed, B: Packed, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let c = if MEMORY {
        A::load(cpu, op)?
    } else {
        A::low(xmm(cpu, op.c))
    };
    let b = xmm(cpu, op.b);
    let result = instruction(&mut cpu.mxcsr, |s| [B::with_low(b, s.convert(c))]);
    deliver(cpu, op, result)
}

fn general_register(code: Code, shape: Shape) -> Option<Handler> {
    Some(match code {
        Code::VEX_Vcvtsi2ss_xmm_xmm_rm32 => by_memory!(shape; from_general, u32; signed32),
        Code::VEX_Vcvtsi2sd_xmm_xmm_rm32 => by_memory!(shape; from_general, u64; signed32),
        Code::VEX_Vcvtsi2ss_xmm_xmm_rm64 => by_memory!(shape; from_general, u32; signed64),
        Code::VEX_Vcvtsi2sd_xmm_xmm_rm64 => by_memory!(shape; from_general, u64; signed64),
        Code::VEX_Vcvtss2si_r32_xmmm32 => by_memory!(shape; to_general, u32; 32, false),
        Code::VEX_Vcvtss2si_r64_xmmm32 => by_memory!(shape; to_general, u32; 64, false),
        Code::VEX_Vcvtsd2si_r32_xmmm64 => by_memory!(shape; to_general, u64; 32, false),
        Code::VEX_Vcvtsd2si_r64_xmmm64 => by_memory!(shape; to_general, u64; 64, false),
        Code::VEX_Vcvttss2si_r32_xmmm32 => by_memory!(shape; to_general, u32; 32, true),
        Code::VEX_Vcvttss2si_r64_xmmm32 => by_memory!(shape; to_general, u32; 64, true),
        Code::VEX_Vcvttsd2si_r32_xmmm64 => by_memory!(shape; to_general, u64; 32, true),
        Code::VEX_Vcvttsd2si_r64_xmmm64 => by_memory!(shape; to_general, u64; 64, true),
        _ => return None,
    })
}

fn signed32(cpu: &mut Cpu, op: &Op, memory: bool) -> Result<i64, Stop> {
    let value = if memory {
        load32(cpu, op)?
    } else {
        general(cpu, op.c) as u32
    };
    Ok(value as i32 as i64)
}

fn signed64(cpu: &mut Cpu, op: &Op, memory: bool) -> Result<i64, Stop> {
    let value = if memory {
        load64(cpu, op)?
    } else {
        general(cpu, op.c)
    };
    Ok(value as i64)
}

#[inline(always)]
fn from_general<E: Packed, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    integer: impl Fn(&mut Cpu, &Op, bool) -> Result<i64, Stop>,
) -> Flow {
    enter(cpu)?;
    let value = integer(cpu, op, MEMORY)?;
    let b = xmm(cpu, op.b);
    let result = instruction(&mut cpu.mxcsr, |s| [E::with_low(b, s.from_integer(value))]);
    deliver(cpu, op, result)
}

#[inline(always)]
fn to_general<E: Packed + Element, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    bits: u32,
    truncate: bool,
) -> Flow {
    enter(cpu)?;
    let b = if MEMORY {
        E::load(cpu, op)?
    } else {
        E::low(xmm(cpu, op.b))
    };
    let result = instruction(&mut cpu.mxcsr, |s| s.to_integer(b, bits, truncate));
    let value = arithmetic(cpu, result)?;
    let value = if bits == 32 {
        value as u32 as u64
    } else {
        value as u64
    };
    set_general(cpu, op.a, value);
    Ok(())
}
