//! Floating point arithmetic and comparison.
use iced_x86::Code;

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::element::Op;
use crate::x86_64::simd::float::*;

/// The handler of a code of this table; `memory` says that an operand is in memory.
pub(super) fn handler(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Addps_xmm_xmmm128 => float!(memory, load128_aligned, addps),
        Code::Addpd_xmm_xmmm128 => float!(memory, load128_aligned, addpd),
        Code::Addss_xmm_xmmm32 => float!(memory, load32, addss),
        Code::Addsd_xmm_xmmm64 => float!(memory, load64, addsd),
        Code::Subps_xmm_xmmm128 => float!(memory, load128_aligned, subps),
        Code::Subpd_xmm_xmmm128 => float!(memory, load128_aligned, subpd),
        Code::Subss_xmm_xmmm32 => float!(memory, load32, subss),
        Code::Subsd_xmm_xmmm64 => float!(memory, load64, subsd),
        Code::Mulps_xmm_xmmm128 => float!(memory, load128_aligned, mulps),
        Code::Mulpd_xmm_xmmm128 => float!(memory, load128_aligned, mulpd),
        Code::Mulss_xmm_xmmm32 => float!(memory, load32, mulss),
        Code::Mulsd_xmm_xmmm64 => float!(memory, load64, mulsd),
        Code::Divps_xmm_xmmm128 => float!(memory, load128_aligned, divps),
        Code::Divpd_xmm_xmmm128 => float!(memory, load128_aligned, divpd),
        Code::Divss_xmm_xmmm32 => float!(memory, load32, divss),
        Code::Divsd_xmm_xmmm64 => float!(memory, load64, divsd),
        Code::Minps_xmm_xmmm128 => float!(memory, load128_aligned, minps),
        Code::Minpd_xmm_xmmm128 => float!(memory, load128_aligned, minpd),
        Code::Minss_xmm_xmmm32 => float!(memory, load32, minss),
        Code::Minsd_xmm_xmmm64 => float!(memory, load64, minsd),
        Code::Maxps_xmm_xmmm128 => float!(memory, load128_aligned, maxps),
        Code::Maxpd_xmm_xmmm128 => float!(memory, load128_aligned, maxpd),
        Code::Maxss_xmm_xmmm32 => float!(memory, load32, maxss),
        Code::Maxsd_xmm_xmmm64 => float!(memory, load64, maxsd),
        Code::Sqrtps_xmm_xmmm128 => float!(memory, load128_aligned, sqrtps),
        Code::Sqrtpd_xmm_xmmm128 => float!(memory, load128_aligned, sqrtpd),
        Code::Sqrtss_xmm_xmmm32 => float!(memory, load32, sqrtss),
        Code::Sqrtsd_xmm_xmmm64 => float!(memory, load64, sqrtsd),
        Code::Cmpps_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, cmpps),
        Code::Cmppd_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, cmppd),
        Code::Cmpss_xmm_xmmm32_imm8 => float_control!(memory, load32, cmpss),
        Code::Cmpsd_xmm_xmmm64_imm8 => float_control!(memory, load64, cmpsd),
        Code::Roundps_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, roundps),
        Code::Roundpd_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, roundpd),
        Code::Roundss_xmm_xmmm32_imm8 => float_control!(memory, load32, roundss),
        Code::Roundsd_xmm_xmmm64_imm8 => float_control!(memory, load64, roundsd),
        Code::Dpps_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, dpps),
        Code::Dppd_xmm_xmmm128_imm8 => float_control!(memory, load128_aligned, dppd),
        Code::Addsubps_xmm_xmmm128 => float!(memory, load128_aligned, addsubps),
        Code::Addsubpd_xmm_xmmm128 => float!(memory, load128_aligned, addsubpd),
        Code::Haddps_xmm_xmmm128 => {
            float!(memory, load128_aligned, |m, a, b| horizontal_ps(m, Op::Add, a, b))
        }
        Code::Haddpd_xmm_xmmm128 => {
            float!(memory, load128_aligned, |m, a, b| horizontal_pd(m, Op::Add, a, b))
        }
        Code::Hsubps_xmm_xmmm128 => {
            float!(memory, load128_aligned, |m, a, b| horizontal_ps(m, Op::Sub, a, b))
        }
        Code::Hsubpd_xmm_xmmm128 => {
            float!(memory, load128_aligned, |m, a, b| horizontal_pd(m, Op::Sub, a, b))
        }
        Code::Rcpps_xmm_xmmm128 => xmm!(memory, rcpps),
        Code::Rcpss_xmm_xmmm32 => xmm_small!(memory, load32, rcpss),
        Code::Rsqrtps_xmm_xmmm128 => xmm!(memory, rsqrtps),
        Code::Rsqrtss_xmm_xmmm32 => xmm_small!(memory, load32, rsqrtss),
        Code::Comiss_xmm_xmmm32 => compare!(memory, load32, u32, false),
        Code::Comisd_xmm_xmmm64 => compare!(memory, load64, u64, false),
        Code::Ucomiss_xmm_xmmm32 => compare!(memory, load32, u32, true),
        Code::Ucomisd_xmm_xmmm64 => compare!(memory, load64, u64, true),
        _ => return None,
    })
}
