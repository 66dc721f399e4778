//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (Intel SDM vol. 2, 4.1) and CRC32.

use super::lanes::{join8, join16, split8, split16};

/// What a string comparison delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// IntRes2: one bit per element of the second operand.
    pub bits: u32,
    /// Elements in a register: 8 or 16.
    pub elements: u32,
    /// CF: some bit is set.
    pub carry: bool,
    /// ZF: the second operand ends within the register.
    pub zero: bool,
    /// SF: the first operand ends within the register.
    pub sign: bool,
    /// OF: bit 0.
    pub overflow: bool,
}

impl Comparison {
    /// The index that PCMPxSTRI leaves in ECX.
    pub fn index(&self, control: u8) -> u32 {
        match (self.bits, control & 0x40) {
            (0, _) => self.elements,
            (bits, 0) => bits.trailing_zeros(),
            (bits, _) => 31 - bits.leading_zeros(),
        }
    }

    /// The mask that PCMPxSTRM leaves in XMM0.
    pub fn mask(&self, control: u8) -> u128 {
        if control & 0x40 == 0 {
            return self.bits as u128;
        }
        let all = |i: usize| self.bits >> i & 1 != 0;
        match self.elements {
            16 => join8(std::array::from_fn(|i| if all(i) { !0 } else { 0 })),
            _ => join16(std::array::from_fn(|i| if all(i) { !0 } else { 0 })),
        }
    }
}

/// The elements of an operand as signed or unsigned numbers.
fn elements(v: u128, control: u8) -> ([i32; 16], u32) {
    let mut out = [0; 16];
    match control & 3 {
        0 => out.iter_mut().zip(split8(v)).for_each(|(o, b)| *o = b as i32),
        1 => out.iter_mut().zip(split16(v)).for_each(|(o, w)| *o = w as i32),
        2 => out
            .iter_mut()
            .zip(split8(v))
            .for_each(|(o, b)| *o = b as i8 as i32),
        _ => out
            .iter_mut()
            .zip(split16(v))
            .for_each(|(o, w)| *o = w as i16 as i32),
    }
    (out, if control & 1 == 0 { 16 } else { 8 })
}

/// The length of a string that ends at its first zero element.
pub fn implicit_length(v: u128, control: u8) -> u32 {
    let (values, count) = elements(v, control);
    values[..count as usize]
        .iter()
        .position(|e| *e == 0)
        .map_or(count, |i| i as u32)
}

/// The length that a register gives: its absolute value, at most the number of elements.
pub fn explicit_length(register: i64, control: u8) -> u32 {
    let count = if control & 1 == 0 { 16 } else { 8 };
    register.unsigned_abs().min(count) as u32
}

/// Compares strings `a` and `b` of the given lengths, in elements.
pub fn compare(a: u128, b: u128, length_a: u32, length_b: u32, control: u8) -> Comparison {
    let (x, count) = elements(a, control);
    let (y, _) = elements(b, control);
    let (length_x, length_y, n) = (length_a as usize, length_b as usize, count as usize);
    let result = match control >> 2 & 3 {
        0 => bits(n, |j| j < length_y && x[..length_x].contains(&y[j])),
        1 => bits(n, |j| {
            j < length_y
                && (0..length_x / 2 * 2)
                    .step_by(2)
                    .any(|i| x[i] <= y[j] && y[j] <= x[i + 1])
        }),
        2 => bits(n, |i| match (i < length_x, i < length_y) {
            (true, true) => x[i] == y[i],
            (false, false) => true,
            _ => false,
        }),
        // Equal ordered: the part of `a` that fits must match; beyond `b` only an ended `a` does.
        _ => bits(n, |j| {
            (0..n - j).all(|i| i >= length_x || i + j < length_y && x[i] == y[i + j])
        }),
    };
    let all = (1 << count) - 1;
    let valid = (1 << length_b) - 1;
    let result = match control >> 4 & 3 {
        1 => !result & all,
        3 => result ^ valid,
        _ => result,
    };
    Comparison {
        bits: result,
        elements: count,
        carry: result != 0,
        zero: length_b < count,
        sign: length_a < count,
        overflow: result & 1 != 0,
    }
}

fn bits(n: usize, f: impl Fn(usize) -> bool) -> u32 {
    (0..n).fold(0, |mask, i| mask | (f(i) as u32) << i)
}

/// The CRC-32C of each byte value: the reflected polynomial 0x82f63b78.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC32 over the low `bytes` bytes of `data`, without any inversion.
pub fn crc32(crc: u32, data: u64, bytes: usize) -> u32 {
    data.to_le_bytes()[..bytes]
        .iter()
        .fold(crc, |crc, b| CRC32C[(crc as u8 ^ b) as usize] ^ crc >> 8)
}
