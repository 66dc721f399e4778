//! The processor's registers.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::apic::Apic;
use crate::block::{Block, Cache};
use crate::bus::Bus;
use crate::clock::Time;
use crate::counters::{Counters, VainStores};
use crate::debug::Debug;
use crate::exception::Fault;
use crate::flags::{Flags, rflag};
use crate::msr::Msrs;
use crate::op::Op;
use crate::profile::Profile;
use crate::ram::Ram;
use crate::shared::{Mailbox, Platform};
use crate::simd::mxcsr::Mxcsr;
use crate::tlb::{Bank, Tlb};
use crate::x87::Fpu;

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
    /// Supervisors may not execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisors may not touch user pages but with RFLAGS.AC.
    pub const SMAP: u64 = 1 << 21;
    /// What this processor knows; other bits raise #GP. CPUID says the same of each.
    pub const KNOWN: u64 =
        DE | PCE | UMIP | TSD | PSE | PAE | PGE | OSFXSR | OSXMMEXCPT | FSGSBASE | SMEP | SMAP;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// A processor: registers, translations, decoded code and local APIC. One thread owns it.
#[repr(C)]
pub struct Cpu {
    /// General registers 0 to 15, then [`REG_ZERO`](crate::op::REG_ZERO) and [`REG_BLOCK`](crate::op::REG_BLOCK).
    pub gpr: [u64; 32],
    /// Status flags.
    pub flags: Flags,
    /// Instruction pointer; exact between blocks. Inside one it is `gpr[REG_BLOCK] + op.off`.
    pub rip: u64,
    /// Instructions retired since power-on; exact between blocks.
    pub(crate) retired: u64,
    /// Value of `retired` at which time has to be looked at.
    pub(crate) check_at: u64,
    /// Bases by segment number; entry 6 is zero.
    pub(crate) seg_base: [u64; 8],
    pub(crate) rip_mask: u64,
    pub(crate) stack_mask: u64,
    /// The block that runs, alive while it does; stores to its own bytes need care.
    pub(crate) running: *const Block,
    /// The operation at which the last block ended before its end.
    pub(crate) stopped: *const Op,
    pub(crate) code_size: CodeSize,
    pub(crate) cpl: u8,
    /// What waits for one instruction.
    pub(crate) shadow: Shadow,
    /// Stores to the running block's own bytes are allowed: it has one instruction.
    pub(crate) alone: bool,
    pub(crate) tlb: Tlb,
    pub(crate) ram: Arc<Ram>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) platform: Arc<Platform>,
    pub(crate) bus: Option<NonNull<dyn Bus>>,
    pub(crate) fault: Fault,
    /// RFLAGS but the status flags.
    pub(crate) rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub(crate) seg: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdt: Table,
    pub(crate) idt: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) debug: Debug,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// SSE control and status.
    pub mxcsr: Mxcsr,
    /// The x87 unit.
    pub x87: Fpu,
    pub(crate) msrs: Msrs,
    pub(crate) apic: Apic,
    pub(crate) time: Time,
    pub(crate) cache: Cache,
    pub(crate) vain_stores: VainStores,
    pub(crate) counters: Counters,
    pub(crate) profile: Option<Box<Profile>>,
    /// A device asked `run` to come back.
    pub(crate) stop: bool,
    /// Value of `retired` at which `run` comes back.
    pub(crate) limit: u64,
    /// Neither runs nor halts: waits for INIT and SIPI.
    pub(crate) parked: bool,
    /// HLT was executed.
    pub(crate) halted: bool,
    pub(crate) shutdown: bool,
    /// Names already reported to [`Bus::unimplemented`].
    pub(crate) reported: Vec<String>,
    pub(crate) random: u64,
    /// PAUSE instructions so far.
    pub(crate) spin: u32,
}

// SAFETY: `bus`, `running` and `stopped` count only while `run` is on the stack of the owning thread; all else is `Send`.
unsafe impl Send for Cpu {}

impl Cpu {
    /// An 8-bit register by byte offset.
    #[inline(always)]
    pub(crate) fn byte(&self, offset: u8) -> u8 {
        // SAFETY: the register file has 256 bytes, all initialised, and any u8 is inside.
        unsafe { *self.gpr.as_ptr().cast::<u8>().add(offset as usize) }
    }

    /// Sets an 8-bit register by byte offset.
    #[inline(always)]
    pub(crate) fn set_byte(&mut self, offset: u8, value: u8) {
        // SAFETY: as in `byte`.
        unsafe { *self.gpr.as_mut_ptr().cast::<u8>().add(offset as usize) = value }
    }

    /// Devices and diagnostics, while `run` is on the stack.
    pub(crate) fn with_bus<R>(&mut self, f: impl FnOnce(&mut dyn Bus) -> R) -> R {
        self.mailbox.publish(self.retired);
        match self.bus {
            // SAFETY: `run` sets it from a `&mut dyn Bus` that outlives the call, clears it before it returns, and
            // uses it nowhere else meanwhile.
            Some(mut bus) => f(unsafe { bus.as_mut() }),
            None => f(&mut crate::bus::NoBus),
        }
    }

    /// Reports what this processor does not have, once by name.
    #[cold]
    pub(crate) fn report(&mut self, what: &str) {
        // Enough for every mnemonic that a program is likely to try; a guest must not fill host memory.
        const MOST: usize = 256;
        if self.reported.len() < MOST && !self.reported.iter().any(|name| name == what) {
            self.reported.push(what.to_owned());
            let rip = self.rip;
            self.with_bus(|bus| bus.unimplemented(what, rip));
        }
    }

    /// RFLAGS with the status flags.
    pub fn rflags(&self) -> u64 {
        self.rflags | self.flags.bits() | rflag::FIXED
    }

    /// Sets RFLAGS.
    pub fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_bits(value);
        let ac = (self.rflags ^ value) & rflag::AC != 0;
        self.rflags = value & !rflag::STATUS | rflag::FIXED;
        if value & rflag::TF != 0 {
            self.request_check();
        }
        if ac {
            self.select_bank();
        }
    }

    /// Instructions retired since power-on.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Lets [`Cpu::run`] come back at the end of the block in which as many instructions have retired since power-on.
    pub fn set_limit(&mut self, retired: u64) {
        self.limit = retired;
        self.request_check();
    }

    /// A segment register by number: ES, CS, SS, DS, FS, GS.
    pub fn segment(&self, number: usize) -> Segment {
        self.seg[number % 6]
    }

    /// Sets a segment register with its hidden part. CS also sets the mode, SS the privilege level.
    pub fn set_segment(&mut self, number: usize, segment: Segment) {
        self.seg[number] = segment;
        self.seg_base[number] = segment.base;
        if number == seg::CS || number == seg::SS {
            self.update_mode();
        }
    }

    /// Sets the local descriptor table and task registers.
    pub fn set_system_segments(&mut self, ldtr: Segment, tr: Segment) {
        (self.ldtr, self.tr) = (ldtr, tr);
    }

    /// Sets the descriptor table registers.
    pub fn set_tables(&mut self, gdt: Table, idt: Table) {
        (self.gdt, self.idt) = (gdt, idt);
    }

    /// Sets control registers and EFER without checks, as a loader does before the first instruction.
    pub fn set_control(&mut self, cr0: u64, cr3: u64, cr4: u64, efer: u64) {
        (self.cr0, self.cr3, self.cr4, self.efer) = (cr0 | cr0::ET, cr3, cr4, efer);
        self.tlb.flush_all();
        self.update_mode();
    }

    /// A processor that waits for a startup IPI does so no longer.
    pub fn unpark(&mut self) {
        self.parked = false;
    }

    /// Recomputes what follows from CR0, EFER, CS and SS.
    pub(crate) fn update_mode(&mut self) {
        let cs = self.seg[seg::CS];
        let protected = self.cr0 & cr0::PE != 0;
        let long = self.efer & efer::LMA != 0;
        self.code_size = if long && cs.access & Segment::L != 0 {
            CodeSize::Bits64
        } else if cs.access & Segment::D != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        (self.rip_mask, self.stack_mask) = match self.code_size {
            CodeSize::Bits64 => (u64::MAX, u64::MAX),
            size => (
                if size == CodeSize::Bits32 {
                    0xffff_ffff
                } else {
                    0xffff
                },
                if self.seg[seg::SS].access & Segment::D != 0 {
                    0xffff_ffff
                } else {
                    0xffff
                },
            ),
        };
        self.cpl = if protected { (cs.selector & 3) as u8 } else { 0 };
        self.tlb
            .enter(self.cpl == 3, self.code_size as u64, self.seg_base[seg::CS]);
        self.select_bank();
    }

    /// Chooses the translations that fit the privilege level.
    #[inline]
    pub(crate) fn select_bank(&mut self) {
        self.tlb.select(self.bank(), self.checks_alignment());
    }

    /// Whether data must be aligned (Intel SDM vol. 3, §6.15, interrupt 17).
    #[inline]
    pub(crate) fn checks_alignment(&self) -> bool {
        self.cpl == 3 && self.rflags & rflag::AC != 0 && self.cr0 & cr0::AM != 0
    }

    pub(crate) fn bank(&self) -> Bank {
        match (self.cpl, self.rflags & rflag::AC != 0) {
            (3, _) => Bank::User,
            (_, false) => Bank::Supervisor,
            (_, true) => Bank::SupervisorAc,
        }
    }

    /// Whether instructions have 64-bit operands and addresses.
    #[inline(always)]
    pub(crate) fn is_long(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }
}
