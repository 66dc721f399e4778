//! Moves between registers and memory. The 128-bit ones are the most frequent vector instructions of all, so
//! every one has its own direct handler.

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::lanes::{with_low32, with_low64};
use crate::x86_64::simd::shuffle::{concat64, movhlps, punpcklqdq};
use iced_x86::Code;

/// An XMM register gets `f(old, loaded)`.
macro_rules! load_xmm {
    ($load:ident, $f:expr) => {
        (|cpu, op| {
            enter_sse(cpu)?;
            let b = $load(cpu, op)?;
            set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), b));
            Ok(())
        }) as Handler
    };
}

/// Memory gets `f(register b)`.
macro_rules! store_xmm {
    ($store:ident, $f:expr) => {
        (|cpu, op| {
            enter_sse(cpu)?;
            let value = ($f)(xmm(cpu, op.b));
            $store(cpu, op, value)
        }) as Handler
    };
}

/// A register gets `f(old, register b)`.
macro_rules! copy_xmm {
    ($f:expr) => {
        (|cpu, op| {
            enter_sse(cpu)?;
            set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), xmm(cpu, op.b)));
            Ok(())
        }) as Handler
    };
}

/// The handler of a code of this table; `memory` says that an operand is in memory.
pub(super) fn handler(code: Code, memory: bool) -> Option<Handler> {
    whole(code, memory)
        .or_else(|| part(code, memory))
        .or_else(|| general_register(code, memory))
}

/// Whole XMM registers.
fn whole(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 if memory => {
            load_xmm!(load128_aligned, |_a, b| b)
        }
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 if memory => {
            load_xmm!(load128, |_a, b| b)
        }
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm if memory => {
            store_xmm!(store128_aligned, |b| b)
        }
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm if memory => {
            store_xmm!(store128, |b| b)
        }
        Code::Movaps_xmm_xmmm128
        | Code::Movapd_xmm_xmmm128
        | Code::Movdqa_xmm_xmmm128
        | Code::Movups_xmm_xmmm128
        | Code::Movupd_xmm_xmmm128
        | Code::Movdqu_xmm_xmmm128
        | Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movups_xmmm128_xmm
        | Code::Movupd_xmmm128_xmm
        | Code::Movdqu_xmmm128_xmm => copy_xmm!(|_a, b| b),
        Code::Lddqu_xmm_m128 => load_xmm!(load128, |_a, b| b),
        Code::Movntdqa_xmm_m128 => load_xmm!(load128_aligned, |_a, b| b),
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => {
            store_xmm!(store128_aligned, |b| b)
        }
        _ => return None,
    })
}

/// Parts of XMM registers, and MMX registers.
fn part(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Movss_xmm_xmmm32 if memory => load_xmm!(load32, |_a, b| b as u128),
        Code::Movsd_xmm_xmmm64 if memory => load_xmm!(load64, |_a, b| b as u128),
        Code::Movss_xmmm32_xmm if memory => store_xmm!(store32, |b| b as u32),
        Code::Movsd_xmmm64_xmm if memory => store_xmm!(store64, |b| b as u64),
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => copy_xmm!(|a, b| with_low32(a, b as u32)),
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm => copy_xmm!(|a, b| with_low64(a, b as u64)),
        Code::Movq_xmm_xmmm64 if memory => load_xmm!(load64, |_a, b| b as u128),
        Code::Movq_xmmm64_xmm if memory => store_xmm!(store64, |b| b as u64),
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => copy_xmm!(|_a, b| b as u64 as u128),
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => load_xmm!(load64, with_low64),
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => load_xmm!(load64, |a, b| concat64(a as u64, b)),
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => store_xmm!(store64, |b| b as u64),
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => store_xmm!(store64, |b: u128| (b >> 64) as u64),
        Code::Movhlps_xmm_xmm => copy_xmm!(movhlps),
        Code::Movlhps_xmm_xmm => copy_xmm!(punpcklqdq),
        Code::Movq_mm_mmm64 => mmx!(memory, |_a, b| b),
        Code::Movq_mmm64_mm if !memory => mmx!(memory, |_a, b| b),
        Code::Movq_mmm64_mm | Code::Movntq_m64_mm => |cpu, op| {
            enter_mmx(cpu)?;
            store64(cpu, op, mm(cpu, op.b))?;
            use_mmx(cpu);
            Ok(())
        },
        Code::Movq2dq_xmm_mm => |cpu, op| {
            enter_mmx(cpu)?;
            set_xmm(cpu, op.a, mm(cpu, op.b) as u128);
            use_mmx(cpu);
            Ok(())
        },
        Code::Movdq2q_mm_xmm => |cpu, op| {
            enter_mmx(cpu)?;
            set_mm(cpu, op.a, xmm(cpu, op.b) as u64);
            Ok(())
        },
        _ => return None,
    })
}

/// Between vector and general registers.
fn general_register(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Movd_xmm_rm32 if memory => load_xmm!(load32, |_a, b| b as u128),
        Code::Movq_xmm_rm64 if memory => load_xmm!(load64, |_a, b| b as u128),
        Code::Movd_xmm_rm32 => |cpu, op| {
            enter_sse(cpu)?;
            set_xmm(cpu, op.a, general(cpu, op.b) as u32 as u128);
            Ok(())
        },
        Code::Movq_xmm_rm64 => |cpu, op| {
            enter_sse(cpu)?;
            set_xmm(cpu, op.a, general(cpu, op.b) as u128);
            Ok(())
        },
        Code::Movd_rm32_xmm if memory => store_xmm!(store32, |b| b as u32),
        Code::Movq_rm64_xmm if memory => store_xmm!(store64, |b| b as u64),
        Code::Movd_rm32_xmm => |cpu, op| {
            enter_sse(cpu)?;
            set_general(cpu, op.a, xmm(cpu, op.b) as u32 as u64);
            Ok(())
        },
        Code::Movq_rm64_xmm => |cpu, op| {
            enter_sse(cpu)?;
            set_general(cpu, op.a, xmm(cpu, op.b) as u64);
            Ok(())
        },
        _ => return general_mmx(code, memory),
    })
}

/// Between MMX and general registers.
fn general_mmx(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Movd_mm_rm32 if memory => mmx_small!(memory, load32, |_a, b| b),
        Code::Movq_mm_rm64 if memory => mmx!(memory, |_a, b| b),
        Code::Movd_mm_rm32 => |cpu, op| {
            enter_mmx(cpu)?;
            set_mm(cpu, op.a, general(cpu, op.b) as u32 as u64);
            Ok(())
        },
        Code::Movq_mm_rm64 => |cpu, op| {
            enter_mmx(cpu)?;
            set_mm(cpu, op.a, general(cpu, op.b));
            Ok(())
        },
        Code::Movd_rm32_mm if memory => |cpu, op| {
            enter_mmx(cpu)?;
            store32(cpu, op, mm(cpu, op.b) as u32)?;
            use_mmx(cpu);
            Ok(())
        },
        Code::Movq_rm64_mm if memory => |cpu, op| {
            enter_mmx(cpu)?;
            store64(cpu, op, mm(cpu, op.b))?;
            use_mmx(cpu);
            Ok(())
        },
        Code::Movd_rm32_mm => |cpu, op| {
            enter_mmx(cpu)?;
            set_general(cpu, op.a, mm(cpu, op.b) as u32 as u64);
            use_mmx(cpu);
            Ok(())
        },
        Code::Movq_rm64_mm => |cpu, op| {
            enter_mmx(cpu)?;
            set_general(cpu, op.a, mm(cpu, op.b));
            use_mmx(cpu);
            Ok(())
        },
        _ => return None,
    })
}
