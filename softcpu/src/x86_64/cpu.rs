//! The processor's state: registers, caches and pending events.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::core::block::{Block, Cache};
use crate::core::bus::Bus;
use crate::core::clock::Time;
use crate::core::counters::{Counters, NonCodeStores};
use crate::core::mailbox::Mailbox;
use crate::core::profile::Profile;
use crate::core::ram::Ram;
use crate::core::tlb::{Bank, Tlb};
use crate::x86_64::apic::Apic;
use crate::x86_64::debug::Debug;
use crate::x86_64::direct::helpers::Helpers;
use crate::x86_64::exception::Fault;
use crate::x86_64::flags::{Flags, rflag};
use crate::x86_64::msr::Msrs;
use crate::x86_64::op::{self, Operation};
use crate::x86_64::platform::Platform;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::state::{CodeSize, Segment, Shadow, Table, cr0, efer, seg};
use crate::x86_64::x87::Fpu;

/// An operation of this processor.
pub type Op = Operation<Cpu>;
/// A handler of this processor.
pub type Handler = op::Handler<Cpu>;
/// A chained handler of this processor.
pub type Chained = op::Chained<Cpu>;

/// A processor: registers, translations, decoded code and local APIC. One thread owns it.
#[repr(C)]
pub struct Cpu {
    /// General registers 0 to 15, then [`REG_ZERO`](crate::x86_64::op::REG_ZERO) and
    /// [`REG_BLOCK`](crate::x86_64::op::REG_BLOCK).
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
    pub(crate) running: *const Block<Op>,
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
    /// The four entries that PAE paging keeps in registers; `None` until they are needed.
    pub(crate) pdptes: Option<[u64; 4]>,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) debug: Debug,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The upper halves of YMM0 to YMM15, of which the XMM registers are the lower ones.
    pub ymm_upper: [u128; 16],
    /// XCR0: the state components that are enabled.
    pub(crate) xcr0: u64,
    /// SSE control and status.
    pub mxcsr: Mxcsr,
    /// The x87 unit.
    pub x87: Fpu,
    pub(crate) msrs: Msrs,
    pub(crate) apic: Apic,
    pub(crate) time: Time,
    pub(crate) cache: Cache<Op>,
    pub(crate) non_code_stores: NonCodeStores,
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
    /// Where programs run directly.
    pub(crate) helpers: Option<Box<Helpers>>,
    /// Value of `retired` at which the program runs directly.
    pub(crate) direct_at: u64,
}

// SAFETY: `bus`, `running` and `stopped` count only while `run` is on the stack of the owning thread; all
// else is `Send`.
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
            // SAFETY: `run` sets it from a `&mut dyn Bus` that outlives the call, clears it before it
            // returns, and uses it nowhere else meanwhile.
            Some(mut bus) => f(unsafe { bus.as_mut() }),
            None => f(&mut crate::core::bus::NoBus),
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

    /// How often the costly things happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Lets [`Cpu::run`] come back at the end of the block in which as many instructions have retired since
    /// power-on.
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
        self.pdptes = None;
        self.tlb.flush_all();
        self.update_mode();
    }

    /// Sets XCR0 without checks; see [`xcr0`](crate::x86_64::state::xcr0).
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
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
        self.plan_direct();
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
