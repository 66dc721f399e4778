//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (Intel SDM vol. 2, 4.1) and CRC32.

use super::lanes::{join8, join16};
use super::masks::{at_most8, at_most16, equal8, equal16};

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

/// What the elements of both operands are.
#[derive(Clone, Copy)]
struct Format {
    words: bool,
    signed: bool,
}

impl Format {
    fn of(control: u8) -> Format {
        Format {
            words: control & 1 != 0,
            signed: control & 2 != 0,
        }
    }

    fn count(self) -> u32 {
        if self.words { 8 } else { 16 }
    }

    /// Element `i` of an operand in all places of a register.
    fn splat(self, v: u128, i: u32) -> u128 {
        if self.words {
            (v >> (16 * i)) as u16 as u128 * 0x0001_0001_0001_0001_0001_0001_0001_0001
        } else {
            (v >> (8 * i)) as u8 as u128 * 0x0101_0101_0101_0101_0101_0101_0101_0101
        }
    }

    /// One bit for each element that is the same in both.
    fn equal(self, a: u128, b: u128) -> u32 {
        if self.words { equal16(a, b) } else { equal8(a, b) }
    }

    /// One bit for each element of `a` that is at most that of `b`.
    fn at_most(self, a: u128, b: u128) -> u32 {
        // Signed numbers are in the order of unsigned ones once their top bits are turned.
        match (self.words, self.signed) {
            (false, false) => at_most8(a, b),
            (false, true) => at_most8(a ^ TOP8, b ^ TOP8),
            (true, false) => at_most16(a, b),
            (true, true) => at_most16(a ^ TOP16, b ^ TOP16),
        }
    }
}

/// The top bits of all bytes.
const TOP8: u128 = 0x8080_8080_8080_8080_8080_8080_8080_8080;
/// The top bits of all words.
const TOP16: u128 = 0x8000_8000_8000_8000_8000_8000_8000_8000;

/// The length of a string that ends at its first zero element.
pub fn implicit_length(v: u128, control: u8) -> u32 {
    let format = Format::of(control);
    format.equal(v, 0).trailing_zeros().min(format.count())
}

/// The length that a register gives: its absolute value, at most the number of elements.
pub fn explicit_length(register: i64, control: u8) -> u32 {
    register.unsigned_abs().min(Format::of(control).count().into()) as u32
}

/// Compares strings `a` and `b` of the given lengths, in elements.
pub fn compare(a: u128, b: u128, length_a: u32, length_b: u32, control: u8) -> Comparison {
    let format = Format::of(control);
    let count = format.count();
    let all = (1 << count) - 1;
    let (valid_a, valid_b) = ((1 << length_a) - 1, (1 << length_b) - 1);
    let result = match control >> 2 & 3 {
        0 => (0..length_a).fold(0, |mask, i| mask | format.equal(b, format.splat(a, i))) & valid_b,
        1 => {
            (0..length_a / 2).fold(0, |mask, pair| {
                let above = format.at_most(format.splat(a, 2 * pair), b);
                mask | above & format.at_most(b, format.splat(a, 2 * pair + 1))
            }) & valid_b
        }
        // Elements beyond both ends are equal, beyond one they are not.
        2 => format.equal(a, b) & valid_a & valid_b | all & !(valid_a | valid_b),
        // The part of `a` that fits must match; beyond `b` only an ended `a` does.
        _ => (0..length_a).fold(all, |mask, i| {
            let beyond = all & !(all >> i);
            mask & ((format.equal(b, format.splat(a, i)) & valid_b) >> i | beyond)
        }),
    };
    let result = match control >> 4 & 3 {
        1 => !result & all,
        3 => result ^ valid_b,
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
