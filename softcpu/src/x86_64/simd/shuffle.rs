//! Packing, unpacking, shuffling, blending, inserting and extracting.

use super::lanes::*;

/// Two 64-bit operands as the halves of one register, so that MMX forms can use the 128-bit functions.
pub const fn concat64(low: u64, high: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

fn pack16(a: u128, b: u128, f: impl Fn(i16) -> u8) -> u128 {
    let (a, b) = (split16(a), split16(b));
    join8(std::array::from_fn(|i| {
        f(if i < 8 { a[i] } else { b[i - 8] } as i16)
    }))
}

fn pack32(a: u128, b: u128, f: impl Fn(i32) -> u16) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join16(std::array::from_fn(|i| {
        f(if i < 4 { a[i] } else { b[i - 4] } as i32)
    }))
}

/// PACKSSWB
pub fn packsswb(a: u128, b: u128) -> u128 {
    pack16(a, b, |v| v.clamp(i8::MIN as i16, i8::MAX as i16) as u8)
}

/// PACKUSWB
pub fn packuswb(a: u128, b: u128) -> u128 {
    pack16(a, b, |v| v.clamp(0, u8::MAX as i16) as u8)
}

/// PACKSSDW
pub fn packssdw(a: u128, b: u128) -> u128 {
    pack32(a, b, |v| v.clamp(i16::MIN as i32, i16::MAX as i32) as u16)
}

/// PACKUSDW
pub fn packusdw(a: u128, b: u128) -> u128 {
    pack32(a, b, |v| v.clamp(0, u16::MAX as i32) as u16)
}

macro_rules! unpacks {
    ($($(#[$doc:meta])* $name:ident = $split:ident, $join:ident, $from:literal;)*) => {
        $($(#[$doc])* pub fn $name(a: u128, b: u128) -> u128 {
            let (a, b) = ($split(a), $split(b));
            $join(std::array::from_fn(|i| if i % 2 == 0 { a[$from + i / 2] } else { b[$from + i / 2] }))
        })*
    };
}

unpacks! {
    /// PUNPCKLBW
    punpcklbw = split8, join8, 0;
    /// PUNPCKLWD
    punpcklwd = split16, join16, 0;
    /// PUNPCKLDQ, UNPCKLPS
    punpckldq = split32, join32, 0;
    /// PUNPCKLQDQ, UNPCKLPD, MOVLHPS
    punpcklqdq = split64, join64, 0;
    /// PUNPCKHBW
    punpckhbw = split8, join8, 8;
    /// PUNPCKHWD
    punpckhwd = split16, join16, 4;
    /// PUNPCKHDQ, UNPCKHPS
    punpckhdq = split32, join32, 2;
    /// PUNPCKHQDQ, UNPCKHPD
    punpckhqdq = split64, join64, 1;
}

/// The index a control byte gives to lane `i` of four.
fn select4(control: u8, i: usize) -> usize {
    control as usize >> (2 * i) & 3
}

/// PSHUFD
pub fn pshufd(b: u128, control: u8) -> u128 {
    let b = split32(b);
    join32(std::array::from_fn(|i| b[select4(control, i)]))
}

/// PSHUFLW, and PSHUFW on a zero-extended MMX register
pub fn pshuflw(b: u128, control: u8) -> u128 {
    let b = split16(b);
    join16(std::array::from_fn(|i| {
        if i < 4 { b[select4(control, i)] } else { b[i] }
    }))
}

/// PSHUFHW
pub fn pshufhw(b: u128, control: u8) -> u128 {
    let b = split16(b);
    join16(std::array::from_fn(|i| {
        if i < 4 {
            b[i]
        } else {
            b[4 + select4(control, i - 4)]
        }
    }))
}

/// PSHUFB
pub fn pshufb(a: u128, b: u128) -> u128 {
    super::masks::shuffle8(a, b)
}

/// PSHUFB on MMX registers, whose indices have three bits.
pub fn pshufb64(a: u64, b: u64) -> u64 {
    pshufb(a as u128, (b & 0x8787_8787_8787_8787) as u128) as u64
}

/// SHUFPS
pub fn shufps(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join32(std::array::from_fn(|i| {
        if i < 2 {
            a[select4(control, i)]
        } else {
            b[select4(control, i)]
        }
    }))
}

/// SHUFPD
pub fn shufpd(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split64(a), split64(b));
    join64([a[control as usize & 1], b[control as usize >> 1 & 1]])
}

/// PALIGNR
pub fn palignr(a: u128, b: u128, count: u8) -> u128 {
    let bits = count as u32 * 8;
    match count {
        0 => b,
        1..=15 => b >> bits | a << (128 - bits),
        16..=31 => a >> (bits - 128),
        _ => 0,
    }
}

/// PALIGNR on MMX registers
pub fn palignr64(a: u64, b: u64, count: u8) -> u64 {
    match count {
        0..=15 => (concat64(b, a) >> (count as u32 * 8)) as u64,
        _ => 0,
    }
}

/// PBLENDW
pub fn pblendw(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split16(a), split16(b));
    join16(std::array::from_fn(|i| {
        if control >> i & 1 != 0 { b[i] } else { a[i] }
    }))
}

/// BLENDPS
pub fn blendps(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join32(std::array::from_fn(|i| {
        if control >> i & 1 != 0 { b[i] } else { a[i] }
    }))
}

/// BLENDPD
pub fn blendpd(a: u128, b: u128, control: u8) -> u128 {
    let (a, b) = (split64(a), split64(b));
    join64(std::array::from_fn(|i| {
        if control >> i & 1 != 0 { b[i] } else { a[i] }
    }))
}

/// PBLENDVB
pub fn pblendvb(a: u128, b: u128, mask: u128) -> u128 {
    let mask = map8(mask, |m| (m as i8 >> 7) as u8);
    a & !mask | b & mask
}

/// BLENDVPS
pub fn blendvps(a: u128, b: u128, mask: u128) -> u128 {
    let mask = map32(mask, |m| (m as i32 >> 31) as u32);
    a & !mask | b & mask
}

/// BLENDVPD
pub fn blendvpd(a: u128, b: u128, mask: u128) -> u128 {
    let mask = map64(mask, |m| (m as i64 >> 63) as u64);
    a & !mask | b & mask
}

/// INSERTPS with the source element already chosen (the memory form has only one).
pub fn insertps(a: u128, element: u32, control: u8) -> u128 {
    let mut lanes = split32(a);
    lanes[control as usize >> 4 & 3] = element;
    join32(std::array::from_fn(|i| {
        if control >> i & 1 != 0 { 0 } else { lanes[i] }
    }))
}

/// `v` with the element of `bits` bits at `index` replaced: PINSRB, PINSRW, PINSRD, PINSRQ.
pub const fn insert(v: u128, value: u64, index: u32, bits: u32) -> u128 {
    let mask = (1u128 << bits) - 1;
    let shift = index * bits % 128;
    v & !(mask << shift) | (value as u128 & mask) << shift
}

/// The element of `bits` bits at `index`: PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS.
pub const fn extract(v: u128, index: u32, bits: u32) -> u64 {
    (v >> (index * bits % 128) & ((1u128 << bits) - 1)) as u64
}

macro_rules! extensions {
    ($($(#[$doc:meta])* $name:ident = $split:ident $join:ident |$v:ident| $f:expr;)*) => {
        $($(#[$doc])* pub fn $name(b: u128) -> u128 {
            let b = $split(b);
            $join(std::array::from_fn(|i| { let $v = b[i]; $f }))
        })*
    };
}

extensions! {
    /// PMOVSXBW
    pmovsxbw = split8 join16 |v| v as i8 as u16;
    /// PMOVSXBD
    pmovsxbd = split8 join32 |v| v as i8 as u32;
    /// PMOVSXBQ
    pmovsxbq = split8 join64 |v| v as i8 as u64;
    /// PMOVSXWD
    pmovsxwd = split16 join32 |v| v as i16 as u32;
    /// PMOVSXWQ
    pmovsxwq = split16 join64 |v| v as i16 as u64;
    /// PMOVSXDQ
    pmovsxdq = split32 join64 |v| v as i32 as u64;
    /// PMOVZXBW
    pmovzxbw = split8 join16 |v| v as u16;
    /// PMOVZXBD
    pmovzxbd = split8 join32 |v| v as u32;
    /// PMOVZXBQ
    pmovzxbq = split8 join64 |v| v as u64;
    /// PMOVZXWD
    pmovzxwd = split16 join32 |v| v as u32;
    /// PMOVZXWQ
    pmovzxwq = split16 join64 |v| v as u64;
    /// PMOVZXDQ
    pmovzxdq = split32 join64 |v| v as u64;
}

/// MOVDDUP
pub fn movddup(b: u128) -> u128 {
    concat64(b as u64, b as u64)
}

/// MOVSLDUP
pub fn movsldup(b: u128) -> u128 {
    map64(b, |v| v & 0xffff_ffff | v << 32)
}

/// MOVSHDUP
pub fn movshdup(b: u128) -> u128 {
    map64(b, |v| v >> 32 | v & !0xffff_ffff)
}

/// MOVHLPS
pub fn movhlps(a: u128, b: u128) -> u128 {
    with_low64(a, (b >> 64) as u64)
}

/// PMOVMSKB
pub fn pmovmskb(v: u128) -> u32 {
    // Per half: gather the eight sign bits into the top byte by one multiplication.
    let gather = |half: u64| ((half & 0x8080_8080_8080_8080) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    (gather(v as u64) | gather((v >> 64) as u64) << 8) as u32
}

/// MOVMSKPS
pub fn movmskps(v: u128) -> u32 {
    split32(v)
        .iter()
        .enumerate()
        .fold(0, |mask, (i, lane)| mask | lane >> 31 << i)
}

/// MOVMSKPD
pub fn movmskpd(v: u128) -> u32 {
    (v >> 63 & 1 | v >> 126 & 2) as u32
}

/// PTEST: ZF and CF.
pub fn ptest(a: u128, b: u128) -> (bool, bool) {
    (a & b == 0, !a & b == 0)
}
