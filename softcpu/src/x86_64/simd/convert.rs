//! Conversions between formats. A function takes the old destination where part of it survives.

use super::element::Element;
use super::float::{Outcome, instruction};
use super::lanes::*;
use super::mxcsr::Mxcsr;

/// CVTPS2PD
pub fn cvtps2pd(mxcsr: &mut Mxcsr, b: u128) -> Outcome {
    let b = split32(b);
    instruction(mxcsr, |s| join64([s.convert(b[0]), s.convert(b[1])]))
}

/// CVTPD2PS
pub fn cvtpd2ps(mxcsr: &mut Mxcsr, b: u128) -> Outcome {
    let b = split64(b);
    instruction(mxcsr, |s| join32([s.convert(b[0]), s.convert(b[1]), 0, 0]))
}

/// CVTSS2SD
pub fn cvtss2sd(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| with_low64(a, s.convert(b as u32)))
}

/// CVTSD2SS
pub fn cvtsd2ss(mxcsr: &mut Mxcsr, a: u128, b: u128) -> Outcome {
    instruction(mxcsr, |s| with_low32(a, s.convert(b as u64)))
}

/// CVTDQ2PS
pub fn cvtdq2ps(mxcsr: &mut Mxcsr, b: u128) -> Outcome {
    instruction(mxcsr, |s| map32(b, |v| s.from_integer(v as i32 as i64)))
}

/// CVTDQ2PD, CVTPI2PD: always exact.
pub fn cvtdq2pd(b: u128) -> u128 {
    let b = split32(b);
    join64([b[0], b[1]].map(|v| f64::from(v as i32).to_bits()))
}

/// CVTPI2PS: the low two elements; raises no exception but inexact.
pub fn cvtpi2ps(mxcsr: &mut Mxcsr, a: u128, b: u64) -> Outcome {
    instruction(mxcsr, |s| {
        let low: u32 = s.from_integer(b as i32 as i64);
        let high: u32 = s.from_integer((b >> 32) as i32 as i64);
        with_low64(a, (high as u64) << 32 | low as u64)
    })
}

/// CVTPS2DQ, CVTTPS2DQ; their low half is CVTPS2PI, CVTTPS2PI on two elements.
pub fn cvtps2dq(mxcsr: &mut Mxcsr, b: u128, truncate: bool) -> Outcome {
    instruction(mxcsr, |s| map32(b, |v| s.to_integer(v, 32, truncate) as u32))
}

/// CVTPS2PI, CVTTPS2PI
pub fn cvtps2pi(mxcsr: &mut Mxcsr, b: u64, truncate: bool) -> Outcome<u64> {
    // The upper elements are zeros, which raise nothing.
    cvtps2dq(mxcsr, b as u128, truncate).map(|v| v as u64)
}

/// CVTPD2DQ, CVTTPD2DQ, CVTPD2PI, CVTTPD2PI
pub fn cvtpd2dq(mxcsr: &mut Mxcsr, b: u128, truncate: bool) -> Outcome {
    let b = split64(b);
    instruction(mxcsr, |s| {
        let [low, high] = b.map(|v| s.to_integer(v, 32, truncate) as u32);
        join32([low, high, 0, 0])
    })
}

/// CVTSI2SS
pub fn cvtsi2ss(mxcsr: &mut Mxcsr, a: u128, value: i64) -> Outcome {
    instruction(mxcsr, |s| with_low32(a, s.from_integer(value)))
}

/// CVTSI2SD
#[inline]
pub fn cvtsi2sd(mxcsr: &mut Mxcsr, a: u128, value: i64) -> Outcome {
    // Every integer of 53 bits is a double.
    if value.unsigned_abs() <= 1 << 53 {
        return Ok(with_low64(a, (value as f64).to_bits()));
    }
    instruction(mxcsr, |s| with_low64(a, s.from_integer(value)))
}

/// CVTSS2SI, CVTTSS2SI, CVTSD2SI, CVTTSD2SI to an integer of `bits` bits.
pub fn to_integer<E: Element>(mxcsr: &mut Mxcsr, b: E, bits: u32, truncate: bool) -> Outcome<i64> {
    instruction(mxcsr, |s| s.to_integer(b, bits, truncate))
}
