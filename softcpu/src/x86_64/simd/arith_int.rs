//! Packed integer arithmetic and logic. The MMX forms of lane-wise operations are the same functions on
//! zero-extended registers; operations that cross lanes are in [`super::shuffle`] or take both widths.

use super::lanes::*;

macro_rules! lane_wise {
    ($($(#[$doc:meta])* $name:ident = $zip:ident(|$a:ident, $b:ident| $f:expr);)*) => {
        $($(#[$doc])* #[inline] pub fn $name(a: u128, b: u128) -> u128 { $zip(a, b, |$a, $b| $f) })*
    };
}

lane_wise! {
    /// PADDB
    paddb = zip8(|a, b| a.wrapping_add(b));
    /// PADDW
    paddw = zip16(|a, b| a.wrapping_add(b));
    /// PADDD
    paddd = zip32(|a, b| a.wrapping_add(b));
    /// PADDQ
    paddq = zip64(|a, b| a.wrapping_add(b));
    /// PSUBB
    psubb = zip8(|a, b| a.wrapping_sub(b));
    /// PSUBW
    psubw = zip16(|a, b| a.wrapping_sub(b));
    /// PSUBD
    psubd = zip32(|a, b| a.wrapping_sub(b));
    /// PSUBQ
    psubq = zip64(|a, b| a.wrapping_sub(b));
    /// PADDSB
    paddsb = zip8(|a, b| (a as i8).saturating_add(b as i8) as u8);
    /// PADDSW
    paddsw = zip16(|a, b| (a as i16).saturating_add(b as i16) as u16);
    /// PADDUSB
    paddusb = zip8(|a, b| a.saturating_add(b));
    /// PADDUSW
    paddusw = zip16(|a, b| a.saturating_add(b));
    /// PSUBSB
    psubsb = zip8(|a, b| (a as i8).saturating_sub(b as i8) as u8);
    /// PSUBSW
    psubsw = zip16(|a, b| (a as i16).saturating_sub(b as i16) as u16);
    /// PSUBUSB
    psubusb = zip8(|a, b| a.saturating_sub(b));
    /// PSUBUSW
    psubusw = zip16(|a, b| a.saturating_sub(b));
    /// PMULLW
    pmullw = zip16(|a, b| a.wrapping_mul(b));
    /// PMULLD
    pmulld = zip32(|a, b| a.wrapping_mul(b));
    /// PMULHW
    pmulhw = zip16(|a, b| ((a as i16 as i32 * b as i16 as i32) >> 16) as u16);
    /// PMULHUW
    pmulhuw = zip16(|a, b| ((a as u32 * b as u32) >> 16) as u16);
    /// PMULHRSW
    pmulhrsw = zip16(|a, b| ((((a as i16 as i32 * b as i16 as i32) >> 14) + 1) >> 1) as u16);
    /// PMULUDQ
    pmuludq = zip64(|a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff));
    /// PMULDQ
    pmuldq = zip64(|a, b| (a as i32 as i64 * b as i32 as i64) as u64);
    /// PAVGB
    pavgb = zip8(|a, b| ((a as u16 + b as u16 + 1) >> 1) as u8);
    /// PAVGW
    pavgw = zip16(|a, b| ((a as u32 + b as u32 + 1) >> 1) as u16);
    /// PMINUB
    pminub = zip8(|a, b| a.min(b));
    /// PMINSB
    pminsb = zip8(|a, b| (a as i8).min(b as i8) as u8);
    /// PMINUW
    pminuw = zip16(|a, b| a.min(b));
    /// PMINSW
    pminsw = zip16(|a, b| (a as i16).min(b as i16) as u16);
    /// PMINUD
    pminud = zip32(|a, b| a.min(b));
    /// PMINSD
    pminsd = zip32(|a, b| (a as i32).min(b as i32) as u32);
    /// PMAXUB
    pmaxub = zip8(|a, b| a.max(b));
    /// PMAXSB
    pmaxsb = zip8(|a, b| (a as i8).max(b as i8) as u8);
    /// PMAXUW
    pmaxuw = zip16(|a, b| a.max(b));
    /// PMAXSW
    pmaxsw = zip16(|a, b| (a as i16).max(b as i16) as u16);
    /// PMAXUD
    pmaxud = zip32(|a, b| a.max(b));
    /// PMAXSD
    pmaxsd = zip32(|a, b| (a as i32).max(b as i32) as u32);
    /// PSIGNB
    psignb = zip8(|a, b| sign(a as i8 as i32, b as i8 as i32) as u8);
    /// PSIGNW
    psignw = zip16(|a, b| sign(a as i16 as i32, b as i16 as i32) as u16);
    /// PSIGND
    psignd = zip32(|a, b| sign(a as i32, b as i32) as u32);
    /// PABSB (the first operand is only the destination)
    pabsb = zip8(|_a, b| (b as i8).unsigned_abs());
    /// PABSW
    pabsw = zip16(|_a, b| (b as i16).unsigned_abs());
    /// PABSD
    pabsd = zip32(|_a, b| (b as i32).unsigned_abs());
    /// PCMPEQB
    pcmpeqb = zip8(|a, b| if a == b { !0 } else { 0 });
    /// PCMPEQW
    pcmpeqw = zip16(|a, b| if a == b { !0 } else { 0 });
    /// PCMPEQD
    pcmpeqd = zip32(|a, b| if a == b { !0 } else { 0 });
    /// PCMPEQQ
    pcmpeqq = zip64(|a, b| if a == b { !0 } else { 0 });
    /// PCMPGTB
    pcmpgtb = zip8(|a, b| if a as i8 > b as i8 { !0 } else { 0 });
    /// PCMPGTW
    pcmpgtw = zip16(|a, b| if a as i16 > b as i16 { !0 } else { 0 });
    /// PCMPGTD
    pcmpgtd = zip32(|a, b| if a as i32 > b as i32 { !0 } else { 0 });
    /// PCMPGTQ
    pcmpgtq = zip64(|a, b| if a as i64 > b as i64 { !0 } else { 0 });
}

fn sign(a: i32, b: i32) -> i32 {
    match b.signum() {
        -1 => a.wrapping_neg(),
        0 => 0,
        _ => a,
    }
}

/// PAND, ANDPS, ANDPD
#[inline]
pub fn and(a: u128, b: u128) -> u128 {
    a & b
}

/// PANDN, ANDNPS, ANDNPD
#[inline]
pub fn andn(a: u128, b: u128) -> u128 {
    !a & b
}

/// POR, ORPS, ORPD
#[inline]
pub fn or(a: u128, b: u128) -> u128 {
    a | b
}

/// PXOR, XORPS, XORPD
#[inline]
pub fn xor(a: u128, b: u128) -> u128 {
    a ^ b
}

/// PMADDWD: adjacent products of signed words, added.
pub fn pmaddwd(a: u128, b: u128) -> u128 {
    zip32(a, b, |a, b| {
        let low = a as i16 as i32 * b as i16 as i32;
        let high = (a >> 16) as i16 as i32 * (b >> 16) as i16 as i32;
        low.wrapping_add(high) as u32
    })
}

/// PMADDUBSW: adjacent products of unsigned by signed bytes, added with saturation.
pub fn pmaddubsw(a: u128, b: u128) -> u128 {
    zip16(a, b, |a, b| {
        let low = a as u8 as i32 * b as u8 as i8 as i32;
        let high = (a >> 8) as i32 * (b >> 8) as i8 as i32;
        (low + high).clamp(i16::MIN as i32, i16::MAX as i32) as u16
    })
}

/// PSADBW: the sum of absolute differences of eight bytes, per 64-bit half.
pub fn psadbw(a: u128, b: u128) -> u128 {
    zip64(a, b, |a, b| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        a.iter().zip(b).map(|(a, b)| a.abs_diff(b) as u64).sum()
    })
}

/// MPSADBW: eight sums of absolute differences of a sliding group of four bytes.
pub fn mpsadbw(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split8(a), split8(b));
    let start = (control as usize >> 2 & 1) * 4;
    let block = (control as usize & 3) * 4;
    join16(std::array::from_fn(|i| {
        (0..4)
            .map(|k| a[start + i + k].abs_diff(b[block + k]) as u16)
            .sum()
    }))
}

/// PHMINPOSUW: the smallest unsigned word and its index.
pub fn phminposuw(_a: u128, b: u128) -> u128 {
    let words = split16(b);
    let (index, word) = words
        .iter()
        .enumerate()
        .min_by_key(|(_, word)| **word)
        .unwrap_or((0, &0));
    (index as u128) << 16 | *word as u128
}

/// The function of a horizontal operation on words.
fn horizontal16(a: u128, b: u128, f: impl Fn(u16, u16) -> u16) -> u128 {
    let (a, b) = (split16(a), split16(b));
    let pair = |v: &[u16; 8], i: usize| f(v[2 * i], v[2 * i + 1]);
    join16(std::array::from_fn(|i| {
        if i < 4 { pair(&a, i) } else { pair(&b, i - 4) }
    }))
}

/// The function of a horizontal operation on doublewords.
fn horizontal32(a: u128, b: u128, f: impl Fn(u32, u32) -> u32) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join32([f(a[0], a[1]), f(a[2], a[3]), f(b[0], b[1]), f(b[2], b[3])])
}

/// PHADDW
pub fn phaddw(a: u128, b: u128) -> u128 {
    horizontal16(a, b, u16::wrapping_add)
}

/// PHADDD
pub fn phaddd(a: u128, b: u128) -> u128 {
    horizontal32(a, b, u32::wrapping_add)
}

/// PHADDSW
pub fn phaddsw(a: u128, b: u128) -> u128 {
    horizontal16(a, b, |a, b| (a as i16).saturating_add(b as i16) as u16)
}

/// PHSUBW
pub fn phsubw(a: u128, b: u128) -> u128 {
    horizontal16(a, b, u16::wrapping_sub)
}

/// PHSUBD
pub fn phsubd(a: u128, b: u128) -> u128 {
    horizontal32(a, b, u32::wrapping_sub)
}

/// PHSUBSW
pub fn phsubsw(a: u128, b: u128) -> u128 {
    horizontal16(a, b, |a, b| (a as i16).saturating_sub(b as i16) as u16)
}
