//! Registers by name: their numbers and bits, and what segment registers and descriptor table registers hold.

/// Bits of a physical address.
pub(crate) const PHYSICAL_BITS: u32 = 46;

/// Bits of CR0.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation: x87 instructions raise #NM.
    pub const EM: u64 = 1 << 2;
    /// Task switched: x87 and SSE instructions raise #NM.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always set.
    pub const ET: u64 = 1 << 4;
    /// x87 errors raise #MF.
    pub const NE: u64 = 1 << 5;
    /// Supervisors respect read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Alignment is checked at CPL 3 where RFLAGS.AC is set.
    pub const AM: u64 = 1 << 18;
    /// Not write-through, which needs [`CD`].
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub mod cr4 {
    use crate::x86_64::features::Features;

    /// Debugging extensions: breakpoints on ports, and no DR4 and DR5.
    pub const DE: u64 = 1 << 3;
    /// Time stamp disable.
    pub const TSD: u64 = 1 << 2;
    /// Page size extensions.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// #XM for SSE exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// Performance counters for programs, of which there are none.
    pub const PCE: u64 = 1 << 8;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// RDFSBASE and its kin.
    pub const FSGSBASE: u64 = 1 << 16;
    /// XSAVE and its kin, XCR0, and with it AVX.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisors may not execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisors may not touch user pages but with RFLAGS.AC.
    pub const SMAP: u64 = 1 << 21;
    /// What every processor here knows. CPUID says the same of each.
    const ALWAYS: u64 =
        DE | PCE | UMIP | TSD | PSE | PAE | PGE | OSFXSR | OSXMMEXCPT | FSGSBASE | SMEP | SMAP;

    /// What a processor with `features` knows; other bits raise #GP.
    pub const fn known(features: Features) -> u64 {
        match features.has(Features::XSAVE) {
            true => ALWAYS | OSXSAVE,
            false => ALWAYS,
        }
    }
}

/// Bits of XCR0, of the header of an XSAVE area, and of the masks that XSAVE takes: state components.
pub mod xcr0 {
    /// The x87 unit, MMX included; always enabled.
    pub const X87: u64 = 1 << 0;
    /// MXCSR and the XMM registers.
    pub const SSE: u64 = 1 << 1;
    /// The upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
}

/// Bits of EFER.
pub mod efer {
    /// SYSCALL and SYSRET.
    pub const SCE: u64 = 1 << 0;
    /// Long mode is wanted.
    pub const LME: u64 = 1 << 8;
    /// Long mode is on.
    pub const LMA: u64 = 1 << 10;
    /// The no-execute bit counts.
    pub const NXE: u64 = 1 << 11;
    /// What this processor knows.
    pub const KNOWN: u64 = SCE | LME | LMA | NXE;
}

/// Numbers of segment registers, as instructions encode them.
pub mod seg {
    /// Extra.
    pub const ES: usize = 0;
    /// Code.
    pub const CS: usize = 1;
    /// Stack.
    pub const SS: usize = 2;
    /// Data.
    pub const DS: usize = 3;
    /// General.
    pub const FS: usize = 4;
    /// General.
    pub const GS: usize = 5;
}

/// Numbers of general registers.
pub mod reg {
    /// Accumulator.
    pub const RAX: usize = 0;
    /// Counter.
    pub const RCX: usize = 1;
    /// Data.
    pub const RDX: usize = 2;
    /// Base.
    pub const RBX: usize = 3;
    /// Stack pointer.
    pub const RSP: usize = 4;
    /// Frame pointer.
    pub const RBP: usize = 5;
    /// Source.
    pub const RSI: usize = 6;
    /// Destination.
    pub const RDI: usize = 7;
    /// SYSCALL leaves RFLAGS there.
    pub const R11: usize = 11;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// What MOV shows.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, inclusive.
    pub limit: u32,
    /// Access byte in bits 0..8 and AVL, L, D/B, G in bits 12..16: the second half of a descriptor.
    pub access: u16,
}

impl Segment {
    /// Long mode code.
    pub const L: u16 = 1 << 13;
    /// 32-bit code or stack.
    pub const D: u16 = 1 << 14;
    /// Present.
    pub const P: u16 = 1 << 7;

    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, inclusive.
    pub limit: u16,
}

/// Size of instructions, which with the physical address names a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CodeSize {
    /// Real mode, or a 16-bit segment.
    Bits16 = 0,
    /// A 32-bit segment.
    Bits32 = 1,
    /// Long mode.
    Bits64 = 2,
}

/// What the instruction before makes wait until the next one has run (Intel SDM vol. 3, §6.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// Interrupts: STI.
    Sti,
    /// Interrupts and debug exceptions: MOV SS and POP SS, which the load of the stack pointer follows.
    StackSegment,
}

impl Shadow {
    /// Whether debug exceptions wait.
    pub(crate) fn blocks_traps(self) -> bool {
        self == Shadow::StackSegment
    }
}
