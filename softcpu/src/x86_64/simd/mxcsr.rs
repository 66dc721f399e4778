//! MXCSR: rounding, denormals, masks and sticky flags of SSE arithmetic (Intel SDM vol. 1, 10.2.3).

use crate::x86_64::float::{Environment, Rounding, flag};

/// An exception whose mask bit is clear: the instruction faults with #XM and writes nothing but flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmasked;

/// The control and status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mxcsr(u32);

impl Default for Mxcsr {
    fn default() -> Self {
        Mxcsr(Mxcsr::RESET)
    }
}

impl Mxcsr {
    /// The value after reset: every exception masked, round to nearest.
    pub const RESET: u32 = 0x1f80;
    /// The bits that may be set (MXCSR_MASK in the FXSAVE image); others raise #GP.
    pub const WRITABLE: u32 = 0xffff;

    const DENORMALS_ARE_ZEROS: u32 = 1 << 6;
    const PRECISION_MASK: u32 = 1 << 12;
    const ROUNDING: u32 = 3 << 13;
    const FLUSH_TO_ZERO: u32 = 1 << 15;

    /// The register's bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From its bits; nothing where a reserved bit is set.
    pub const fn from_bits(bits: u32) -> Option<Mxcsr> {
        if bits & !Mxcsr::WRITABLE == 0 {
            Some(Mxcsr(bits))
        } else {
            None
        }
    }

    /// Rounding control.
    pub const fn rounding(self) -> Rounding {
        Rounding::from_bits(self.0 >> 13)
    }

    /// Denormal operands are read as zeros.
    pub const fn denormals_are_zeros(self) -> bool {
        self.0 & Mxcsr::DENORMALS_ARE_ZEROS != 0
    }

    /// The masks of the six exceptions.
    pub const fn masked(self) -> u8 {
        (self.0 >> 7) as u8 & flag::ALL
    }

    /// The environment of one operation on one element.
    pub const fn environment(self) -> Environment {
        Environment {
            rounding: self.rounding(),
            masked: self.masked(),
            flush_to_zero: self.0 & Mxcsr::FLUSH_TO_ZERO != 0,
            wrap: 0,
            flags: 0,
            rounded_up: false,
        }
    }

    /// Rounding is to nearest, and an inexact result would change nothing: the exception is masked and its
    /// flag set already. An operation on normal numbers that gives a normal number can then be left to
    /// the host. Programs get here with their first inexact result.
    #[inline(always)]
    pub const fn inexact_is_settled(self) -> bool {
        let settled = Mxcsr::PRECISION_MASK | flag::INEXACT as u32;
        self.0 & (Mxcsr::ROUNDING | settled) == settled
    }

    /// Records the flags of an instruction: those found from the operands of all elements first, since an
    /// unmasked one among them stops the instruction before any result is formed.
    #[inline]
    pub fn raise(&mut self, flags: u8) -> Result<(), Unmasked> {
        if flags == 0 {
            return Ok(());
        }
        let unmasked = flags & !self.masked();
        let reported = if unmasked & flag::BEFORE_RESULT != 0 {
            flags & flag::BEFORE_RESULT
        } else {
            flags
        };
        self.0 |= reported as u32;
        if unmasked == 0 { Ok(()) } else { Err(Unmasked) }
    }
}
