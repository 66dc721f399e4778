//! Exceptions and interrupts: how they are raised and how they reach their handlers
//! (Intel SDM vol. 3, chapter 6).

mod deliver;
mod protected;
mod raise;

/// Exception vectors.
pub mod vector {
    /// Division error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// Out of bounds.
    pub const BR: u8 = 5;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid task state segment.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// SIMD error.
    pub const XM: u8 = 19;
}

/// A raised exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// Its error code, where it has one.
    pub code: Option<u32>,
    /// The address of a page fault.
    pub cr2: u64,
}

/// What asks for delivery; decides on privilege checks and on double faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A fault that the processor found: its instruction runs again, past its own breakpoint.
    Exception,
    /// INT n, INT3, INTO: the gate's privilege level counts.
    Software,
    /// A debug exception, but for general detect's: a trap, or the fault before an instruction with a
    /// breakpoint.
    Debug,
    /// An interrupt or NMI from outside.
    External,
}

/// Whether the upper bits are copies of bit 47.
#[inline(always)]
pub(crate) const fn canonical(addr: u64) -> bool {
    ((addr << 16) as i64 >> 16) as u64 == addr
}
