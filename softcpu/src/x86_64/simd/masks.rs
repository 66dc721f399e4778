//! Comparisons of all elements of two registers, as one bit for each; and the shuffle of bytes. The compiler
//! does not find the host's instructions for these by itself.
#![cfg_attr(target_arch = "x86_64", allow(unsafe_code))]

use super::lanes::{join8, split8, split16};

/// `f` of each pair of elements, the first one in bit 0.
fn bits<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> bool) -> u32 {
    (0..N).fold(0, |mask, i| mask | (f(a[i], b[i]) as u32) << i)
}

/// In plain Rust: what other hosts run, and what the host's instructions are tested against.
pub mod portable {
    use super::*;

    /// One bit for each byte that is the same in both.
    pub fn equal8(a: u128, b: u128) -> u32 {
        bits(split8(a), split8(b), |a, b| a == b)
    }

    /// One bit for each word that is the same in both.
    pub fn equal16(a: u128, b: u128) -> u32 {
        bits(split16(a), split16(b), |a, b| a == b)
    }

    /// One bit for each byte of `a` that is at most that of `b`, unsigned.
    pub fn at_most8(a: u128, b: u128) -> u32 {
        bits(split8(a), split8(b), |a, b| a <= b)
    }

    /// One bit for each word of `a` that is at most that of `b`, unsigned.
    pub fn at_most16(a: u128, b: u128) -> u32 {
        bits(split16(a), split16(b), |a, b| a <= b)
    }

    /// The bytes of `a` that the low four bits of each byte of `b` say, or 0 where its top bit is set.
    pub fn shuffle8(a: u128, b: u128) -> u128 {
        let source = split8(a);
        join8(split8(b).map(|index| {
            if index & 0x80 != 0 {
                0
            } else {
                source[index as usize & 15]
            }
        }))
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub use portable::*;

#[cfg(target_arch = "x86_64")]
pub use host::*;

#[cfg(target_arch = "x86_64")]
mod host {
    use std::arch::x86_64::*;

    fn vector(v: u128) -> __m128i {
        // SAFETY: both are 16 bytes of which every value is one.
        unsafe { std::mem::transmute(v) }
    }

    fn register(v: __m128i) -> u128 {
        // SAFETY: as in `vector`.
        unsafe { std::mem::transmute(v) }
    }

    /// One bit for each byte, which is all ones or 0.
    fn mask8(v: __m128i) -> u32 {
        // SAFETY: every x86-64 host has SSE2.
        (unsafe { _mm_movemask_epi8(v) }) as u32
    }

    /// One bit for each word, which is all ones or 0.
    fn mask16(v: __m128i) -> u32 {
        // SAFETY: every x86-64 host has SSE2.
        (unsafe { _mm_movemask_epi8(_mm_packs_epi16(v, _mm_setzero_si128())) }) as u32
    }

    /// One bit for each byte that is the same in both.
    pub fn equal8(a: u128, b: u128) -> u32 {
        // SAFETY: every x86-64 host has SSE2.
        mask8(unsafe { _mm_cmpeq_epi8(vector(a), vector(b)) })
    }

    /// One bit for each word that is the same in both.
    pub fn equal16(a: u128, b: u128) -> u32 {
        // SAFETY: every x86-64 host has SSE2.
        mask16(unsafe { _mm_cmpeq_epi16(vector(a), vector(b)) })
    }

    /// One bit for each byte of `a` that is at most that of `b`, unsigned.
    pub fn at_most8(a: u128, b: u128) -> u32 {
        let (a, b) = (vector(a), vector(b));
        // SAFETY: every x86-64 host has SSE2.
        mask8(unsafe { _mm_cmpeq_epi8(_mm_min_epu8(a, b), a) })
    }

    /// One bit for each word of `a` that is at most that of `b`, unsigned.
    pub fn at_most16(a: u128, b: u128) -> u32 {
        // What is left of `a` after a saturating subtraction is 0.
        // SAFETY: every x86-64 host has SSE2.
        mask16(unsafe { _mm_cmpeq_epi16(_mm_subs_epu16(vector(a), vector(b)), _mm_setzero_si128()) })
    }

    /// The bytes of `a` that the low four bits of each byte of `b` say, or 0 where its top bit is set.
    #[inline]
    pub fn shuffle8(a: u128, b: u128) -> u128 {
        if std::is_x86_feature_detected!("ssse3") {
            // SAFETY: the host has it.
            return unsafe { shuffle8_ssse3(a, b) };
        }
        super::portable::shuffle8(a, b)
    }

    /// # Safety
    /// The host has SSSE3.
    #[target_feature(enable = "ssse3")]
    unsafe fn shuffle8_ssse3(a: u128, b: u128) -> u128 {
        register(_mm_shuffle_epi8(vector(a), vector(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn portable_and_host_versions_agree(a: u128, b: u128, same: u128) {
            // Some elements equal.
            let c = a & same | b & !same;
            for (a, b) in [(a, b), (a, c), (c, b), (a, a)] {
                prop_assert_eq!(equal8(a, b), portable::equal8(a, b));
                prop_assert_eq!(equal16(a, b), portable::equal16(a, b));
                prop_assert_eq!(at_most8(a, b), portable::at_most8(a, b));
                prop_assert_eq!(at_most16(a, b), portable::at_most16(a, b));
                prop_assert_eq!(shuffle8(a, b), portable::shuffle8(a, b));
            }
        }
    }
}
