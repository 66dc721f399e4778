//! The six status flags, kept as two words from which each can be read without knowing what set them.
//!
//! `result` is the last result, sign-extended to 64 bits: it gives ZF, SF and PF. `carries` is the vector of
//! carries out of every bit of the last addition or subtraction, moved up so that the carry out of the
//! operand is bit 63 and the carry into its sign bit is bit 62: CF is bit 63 and OF the difference of the
//! two. Bit 3 stays in place: AF. Bits 4 and 8..16 are corrections that are zero after arithmetic; they let
//! POPF set combinations that no result has: bit 4 inverts SF, bits 8..16 are added to the low byte of the
//! result before its parity is taken.

/// Bits of RFLAGS (Intel SDM vol. 1, 3.4.3).
pub mod rflag {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always set.
    pub const FIXED: u64 = 1 << 1;
    /// Parity of the low byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts are accepted.
    pub const IF: u64 = 1 << 9;
    /// String instructions go down.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Suppresses instruction breakpoints once.
    pub const RF: u64 = 1 << 16;
    /// Virtual 8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check; with SMAP, permission to touch user pages.
    pub const AC: u64 = 1 << 18;
    /// A program that can change it knows that there is CPUID.
    pub const ID: u64 = 1 << 21;
    /// The status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The status flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Last result, sign-extended.
    pub result: u64,
    /// Carries; see the module's description.
    pub carries: u64,
}

const CARRY: u32 = 63;
const INTO_SIGN: u32 = 62;
const AUX: u64 = 1 << 3;
const SIGN_FIX: u64 = 1 << 4;
const KEEP64: u64 = 3 << INTO_SIGN | AUX;

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub trait Width: Copy + Eq + 'static {
    /// Bits of the operand.
    const BITS: u32;
    /// From the low bits.
    fn from(value: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
}

macro_rules! width {
    ($($u:ty, $i:ty);*) => {$(
        impl Width for $u {
            const BITS: u32 = <$u>::BITS;
            #[inline(always)]
            fn from(value: u64) -> Self {
                value as $u
            }
            #[inline(always)]
            fn zext(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $i as i64 as u64
            }
        }
    )*};
}
width!(u8, i8; u16, i16; u32, i32; u64, i64);

/// Moves a carry vector of `W::BITS` bits into place.
#[inline(always)]
const fn place(bits: u32, vector: u64) -> u64 {
    if bits == 64 {
        vector & KEEP64
    } else {
        vector << (64 - bits) | vector & AUX
    }
}

impl Flags {
    /// After `r = a + b` (with or without carry in).
    #[inline(always)]
    pub fn add<W: Width>(a: u64, b: u64, r: u64) -> Flags {
        Flags {
            result: W::from(r).sext(),
            carries: place(W::BITS, (a & b) | ((a | b) & !r)),
        }
    }

    /// After `r = a - b` (with or without borrow in).
    #[inline(always)]
    pub fn sub<W: Width>(a: u64, b: u64, r: u64) -> Flags {
        Flags {
            result: W::from(r).sext(),
            carries: place(W::BITS, (!a & b) | ((!a | b) & r)),
        }
    }

    /// After a logical operation: CF, OF and AF are clear.
    #[inline(always)]
    pub fn logic<W: Width>(r: u64) -> Flags {
        Flags {
            result: W::from(r).sext(),
            carries: 0,
        }
    }

    /// SF, ZF and PF from a result; the others given.
    #[inline(always)]
    pub fn with<W: Width>(r: u64, cf: bool, of: bool, af: bool) -> Flags {
        Flags {
            result: W::from(r).sext(),
            carries: carries(cf, of) | (af as u64) << 3,
        }
    }

    /// The same flags but CF and OF.
    #[inline(always)]
    pub fn with_carry_overflow(self, cf: bool, of: bool) -> Flags {
        Flags {
            carries: self.carries & !(3 << INTO_SIGN) | carries(cf, of),
            ..self
        }
    }

    /// The same flags but CF.
    #[inline(always)]
    pub fn with_carry(self, cf: bool) -> Flags {
        self.with_carry_overflow(cf, self.of())
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(self) -> bool {
        (self.carries as i64) < 0
    }

    /// Overflow.
    #[inline(always)]
    pub fn of(self) -> bool {
        ((self.carries ^ self.carries << 1) as i64) < 0
    }

    /// Auxiliary carry.
    #[inline(always)]
    pub fn af(self) -> bool {
        self.carries & AUX != 0
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(self) -> bool {
        (self.result >> 63 ^ (self.carries & SIGN_FIX) >> 4) != 0
    }

    /// Parity of the low byte is even.
    #[inline(always)]
    pub fn pf(self) -> bool {
        ((self.result ^ self.carries >> 8) as u8).count_ones() & 1 == 0
    }

    /// As bits of RFLAGS.
    pub fn bits(self) -> u64 {
        use rflag::*;
        [
            (self.cf(), CF),
            (self.pf(), PF),
            (self.af(), AF),
            (self.zf(), ZF),
            (self.sf(), SF),
            (self.of(), OF),
        ]
        .into_iter()
        .fold(0, |all, (set, bit)| if set { all | bit } else { all })
    }

    /// From bits of RFLAGS.
    pub fn from_bits(bits: u64) -> Flags {
        use rflag::*;
        let has = |bit| bits & bit != 0;
        let result = !has(ZF) as u64;
        let parity_fix = (has(PF) == (result == 1)) as u64;
        Flags {
            result,
            carries: carries(has(CF), has(OF))
                | (has(AF) as u64) << 3
                | (has(SF) as u64) << 4
                | parity_fix << 8,
        }
    }

    /// The condition `CC` of Jcc, SETcc and CMOVcc: the low four bits of their opcodes.
    #[inline(always)]
    pub fn condition<const CC: u8>(self) -> bool {
        let base = match CC >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => (self.sf() != self.of()) | self.zf(),
        };
        base ^ (CC & 1 != 0)
    }
}

/// CF and OF in place.
#[inline(always)]
const fn carries(cf: bool, of: bool) -> u64 {
    (cf as u64) << CARRY | ((cf ^ of) as u64) << INTO_SIGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_round_trips() {
        for n in 0..64 {
            let bits = [0, 2, 4, 6, 7, 11]
                .iter()
                .enumerate()
                .fold(0, |all, (i, bit)| all | (n >> i & 1) << bit);
            assert_eq!(Flags::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn bytes_add_and_subtract_as_defined() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let (r, carry) = a.overflowing_add(b);
                let overflow = (a as i8).overflowing_add(b as i8).1;
                let f = Flags::add::<u8>(a.into(), b.into(), r.into());
                assert_eq!(
                    (f.cf(), f.of(), f.zf(), f.sf()),
                    (carry, overflow, r == 0, r > 127)
                );
                assert_eq!(f.af(), (a & 15) + (b & 15) > 15);
                assert_eq!(f.pf(), r.count_ones() % 2 == 0);
                let (r, borrow) = a.overflowing_sub(b);
                let overflow = (a as i8).overflowing_sub(b as i8).1;
                let f = Flags::sub::<u8>(a.into(), b.into(), r.into());
                assert_eq!(
                    (f.cf(), f.of(), f.zf(), f.sf()),
                    (borrow, overflow, r == 0, r > 127)
                );
                assert_eq!(f.af(), (a & 15) < (b & 15));
            }
        }
    }

    #[test]
    fn carry_can_be_kept_apart() {
        let f = Flags::add::<u32>(0x7fff_ffff, 1, 0x8000_0000).with_carry(true);
        assert!(f.cf() && f.of() && f.sf() && f.af() && !f.zf());
    }
}
