//! Conversions.
use iced_x86::Code;

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::convert::*;

/// The handler of a code of this table; `memory` says that an operand is in memory.
pub(super) fn handler(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Cvtps2pd_xmm_xmmm64 => float!(memory, load64, |m, _a, b| cvtps2pd(m, b)),
        Code::Cvtpd2ps_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtpd2ps(m, b)),
        Code::Cvtss2sd_xmm_xmmm32 => float!(memory, load32, cvtss2sd),
        Code::Cvtsd2ss_xmm_xmmm64 => float!(memory, load64, cvtsd2ss),
        Code::Cvtdq2ps_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtdq2ps(m, b)),
        Code::Cvtdq2pd_xmm_xmmm64 => xmm_small!(memory, load64, |_a, b| cvtdq2pd(b)),
        Code::Cvtps2dq_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtps2dq(m, b, false)),
        Code::Cvtpd2dq_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtpd2dq(m, b, false)),
        Code::Cvtps2pi_mm_xmmm64 => to_mmx!(memory, load64, |m, b| cvtps2pi(m, b as u64, false)),
        Code::Cvtpd2pi_mm_xmmm128 => to_mmx!(memory, load128_aligned, |m, b| cvtpd2dq(m, b, false)
            .map(|v| v as u64)),
        Code::Cvtss2si_r32_xmmm32 => to_general!(memory, load32, |m, b| to_integer(m, b as u32, 32, false)
            .map(|v| v as u32 as u64)),
        Code::Cvtss2si_r64_xmmm32 => to_general!(memory, load32, |m, b| to_integer(m, b as u32, 64, false)
            .map(|v| v as u64)),
        Code::Cvtsd2si_r32_xmmm64 => to_general!(memory, load64, |m, b| to_integer(m, b as u64, 32, false)
            .map(|v| v as u32 as u64)),
        Code::Cvtsd2si_r64_xmmm64 => to_general!(memory, load64, |m, b| to_integer(m, b as u64, 64, false)
            .map(|v| v as u64)),
        Code::Cvttps2dq_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtps2dq(m, b, true)),
        Code::Cvttpd2dq_xmm_xmmm128 => float!(memory, load128_aligned, |m, _a, b| cvtpd2dq(m, b, true)),
        Code::Cvttps2pi_mm_xmmm64 => to_mmx!(memory, load64, |m, b| cvtps2pi(m, b as u64, true)),
        Code::Cvttpd2pi_mm_xmmm128 => to_mmx!(memory, load128_aligned, |m, b| cvtpd2dq(m, b, true)
            .map(|v| v as u64)),
        Code::Cvttss2si_r32_xmmm32 => to_general!(memory, load32, |m, b| to_integer(m, b as u32, 32, true)
            .map(|v| v as u32 as u64)),
        Code::Cvttss2si_r64_xmmm32 => to_general!(memory, load32, |m, b| to_integer(m, b as u32, 64, true)
            .map(|v| v as u64)),
        Code::Cvttsd2si_r32_xmmm64 => to_general!(memory, load64, |m, b| to_integer(m, b as u64, 32, true)
            .map(|v| v as u32 as u64)),
        Code::Cvttsd2si_r64_xmmm64 => to_general!(memory, load64, |m, b| to_integer(m, b as u64, 64, true)
            .map(|v| v as u64)),
        Code::Cvtpi2ps_xmm_mmm64 => from_mmx!(memory, cvtpi2ps),
        Code::Cvtpi2pd_xmm_mmm64 => from_mmx_or_memory!(memory, |b| cvtdq2pd(b as u128)),
        Code::Cvtsi2ss_xmm_rm32 => from_general!(memory, load32, |m, a, b| cvtsi2ss(m, a, b as i32 as i64)),
        Code::Cvtsi2ss_xmm_rm64 => from_general!(memory, load64, |m, a, b| cvtsi2ss(m, a, b as i64)),
        Code::Cvtsi2sd_xmm_rm32 => from_general!(memory, load32, |m, a, b| cvtsi2sd(m, a, b as i32 as i64)),
        Code::Cvtsi2sd_xmm_rm64 => from_general!(memory, load64, |m, a, b| cvtsi2sd(m, a, b as i64)),
        _ => return None,
    })
}
