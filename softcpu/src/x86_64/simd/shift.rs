//! Packed shifts. The count is the whole low quadword of the count operand; a count at or beyond the lane's
//! width gives zeros, or copies of the sign for arithmetic shifts.

use super::lanes::*;

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident = $map:ident(|$v:ident, $n:ident: $max:literal| $f:expr);)*) => {
        $($(#[$doc])* #[inline] pub fn $name(a: u128, count: u64) -> u128 {
            if count > $max {
                return 0;
            }
            let $n = count as u32;
            $map(a, |$v| $f)
        })*
    };
}

shifts! {
    /// PSLLW
    psllw = map16(|v, n: 15| v << n);
    /// PSLLD
    pslld = map32(|v, n: 31| v << n);
    /// PSLLQ
    psllq = map64(|v, n: 63| v << n);
    /// PSRLW
    psrlw = map16(|v, n: 15| v >> n);
    /// PSRLD
    psrld = map32(|v, n: 31| v >> n);
    /// PSRLQ
    psrlq = map64(|v, n: 63| v >> n);
    /// PSLLDQ: the whole register by bytes
    pslldq = whole(|v, n: 15| v << (8 * n));
    /// PSRLDQ: the whole register by bytes
    psrldq = whole(|v, n: 15| v >> (8 * n));
}

#[inline(always)]
fn whole(v: u128, f: impl FnOnce(u128) -> u128) -> u128 {
    f(v)
}

/// PSRAW
#[inline]
pub fn psraw(a: u128, count: u64) -> u128 {
    let count = count.min(15) as u32;
    map16(a, |v| (v as i16 >> count) as u16)
}

/// PSRAD
#[inline]
pub fn psrad(a: u128, count: u64) -> u128 {
    let count = count.min(31) as u32;
    map32(a, |v| (v as i32 >> count) as u32)
}
