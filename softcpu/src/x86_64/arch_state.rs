//! What a snapshot saves of a processor: everything that its guest can see, and nothing else. No caches, no
//! pointers, nothing of the host.

use crate::core::clock::Time;
use crate::core::mailbox::Pending;
use crate::x86_64::apic::Apic;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::debug::Debug;
use crate::x86_64::exception::canonical;
use crate::x86_64::features::Features;
use crate::x86_64::flags::rflag;
use crate::x86_64::msr::Msrs;
use crate::x86_64::platform::event;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::state::{PHYSICAL_BITS, Segment, Shadow, Table, cr0, cr4, efer};
use crate::x86_64::x87::Fpu;
use crate::x86_64::xstate::is_valid_xcr0;

/// The state of a processor between two calls of [`Cpu::run`]. Made by [`Cpu::save`].
///
/// RAM and devices are the machine's, and so is its time where that is the host's: see
/// [`Platform::elapsed`](crate::Platform::elapsed). It can be written and read with any format of `serde`'s;
/// what was read is checked by [`Cpu::restore`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ArchState {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    segments: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    debug: Debug,
    xmm: [u128; 16],
    ymm_upper: [u128; 16],
    xcr0: u64,
    mxcsr: Mxcsr,
    x87: Fpu,
    msrs: Msrs,
    apic: Apic,
    /// What others have for it and it has not taken yet.
    pending: Pending,
    shadow: Shadow,
    time: Time,
    retired: u64,
    parked: bool,
    halted: bool,
    shutdown: bool,
    /// The state of the generator of random numbers, where everything has to repeat.
    random: u64,
}

/// A state that is to be restored to another processor than it was saved of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state is of processor {saved}, and this is processor {this}")]
pub struct OtherProcessor {
    /// Whose state it is.
    pub saved: u32,
    /// Who was to have it.
    pub this: u32,
}

/// Why a state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It is another processor's.
    #[error(transparent)]
    OtherProcessor(#[from] OtherProcessor),
    /// No processor can be in it.
    #[error("no processor has such {0}")]
    Invalid(&'static str),
}

impl ArchState {
    /// Whether a processor can be in this state, as far as anything depends on it: what the rest of the crate
    /// takes for granted is looked at, and what would only be a strange guest is not.
    fn check(&self, features: Features) -> Result<(), RestoreError> {
        let ArchState {
            gpr: _,
            rip,
            rflags,
            segments,
            ldtr: _,
            tr: _,
            gdt: _,
            idt: _,
            cr0,
            cr2: _,
            cr3,
            cr4,
            efer,
            debug,
            xmm: _,
            ymm_upper: _,
            xcr0,
            mxcsr,
            x87: _,
            msrs,
            apic,
            pending,
            shadow: _,
            time,
            retired,
            parked: _,
            halted: _,
            shutdown: _,
            random,
        } = self;
        let long = efer & efer::LMA != 0;
        let rflags_known = rflag::STATUS
            | rflag::FIXED
            | rflag::TF
            | rflag::IF
            | rflag::DF
            | rflag::IOPL
            | rflag::NT
            | rflag::RF
            | rflag::AC
            | rflag::ID;
        let checks = [
            ("RFLAGS", rflags & !rflags_known == 0),
            (
                "CR0",
                cr0 >> 32 == 0 && (cr0 & cr0::PG == 0 || cr0 & cr0::PE != 0),
            ),
            ("CR3", cr3 >> PHYSICAL_BITS == 0),
            ("CR4", cr4 & !cr4::known(features) == 0),
            ("XCR0", is_valid_xcr0(*xcr0, features)),
            (
                "EFER",
                efer & !efer::KNOWN == 0
                    && long == (cr0 & cr0::PG != 0 && efer & efer::LME != 0)
                    && (!long || cr4 & cr4::PAE != 0),
            ),
            (
                "instruction pointer",
                if long { canonical(*rip) } else { rip >> 32 == 0 },
            ),
            (
                "segment bases",
                segments.iter().all(|segment| canonical(segment.base)),
            ),
            ("debug registers", debug.is_valid()),
            ("MXCSR", Mxcsr::from_bits(mxcsr.bits()).is_some()),
            ("model-specific registers", msrs.is_valid()),
            ("local APIC", apic.is_valid()),
            ("events", pending.is_valid(event::ALL)),
            ("time", time.is_valid() && *retired < Time::MOST),
            ("random numbers", *random != 0),
        ];
        match checks.into_iter().find(|(_, fine)| !fine) {
            None => Ok(()),
            Some((what, _)) => Err(RestoreError::Invalid(what)),
        }
    }
}

impl Cpu {
    /// What a snapshot needs of this processor. The processor does not run meanwhile, and nobody sends it
    /// anything.
    pub fn save(&self) -> ArchState {
        let Cpu {
            gpr,
            rip,
            seg,
            ldtr,
            tr,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            debug,
            xmm,
            ymm_upper,
            xcr0,
            mxcsr,
            x87,
            msrs,
            apic,
            mailbox,
            shadow,
            time,
            retired,
            parked,
            halted,
            shutdown,
            random,
            // Both are in RFLAGS.
            flags: _,
            rflags: _,
            // They follow from the rest.
            seg_base: _,
            rip_mask: _,
            stack_mask: _,
            code_size: _,
            cpl: _,
            // Caches, and what decides on them. The registers of PAE paging are read from RAM again, where
            // no kernel leaves anything else than they were loaded with.
            pdptes: _,
            tlb: _,
            cache: _,
            non_code_stores: _,
            // Only while `run` is on the stack.
            running: _,
            stopped: _,
            alone: _,
            bus: _,
            fault: _,
            check_at: _,
            // Of the machine and its diagnostics.
            ram: _,
            platform: _,
            limit: _,
            stop: _,
            counters: _,
            profile: _,
            reported: _,
            spin: _,
            helpers: _,
            direct_at: _,
        } = self;
        let mut general = [0; 16];
        general.copy_from_slice(&gpr[..16]);
        ArchState {
            gpr: general,
            rip: *rip,
            rflags: self.rflags(),
            segments: *seg,
            ldtr: *ldtr,
            tr: *tr,
            gdt: *gdt,
            idt: *idt,
            cr0: *cr0,
            cr2: *cr2,
            cr3: *cr3,
            cr4: *cr4,
            efer: *efer,
            debug: debug.clone(),
            xmm: *xmm,
            ymm_upper: *ymm_upper,
            xcr0: *xcr0,
            mxcsr: *mxcsr,
            x87: x87.clone(),
            msrs: msrs.clone(),
            apic: apic.clone(),
            pending: mailbox.pending(),
            shadow: *shadow,
            time: *time,
            retired: *retired,
            parked: *parked,
            halted: *halted,
            shutdown: *shutdown,
            random: *random,
        }
    }

    /// Goes on from a saved state. What is cached is forgotten.
    ///
    /// # Errors
    /// Where the state is another processor's, by its number, or none that a processor can be in; nothing is
    /// changed then.
    pub fn restore(&mut self, state: &ArchState) -> Result<(), RestoreError> {
        if state.apic.id != self.mailbox.id {
            return Err(RestoreError::OtherProcessor(OtherProcessor {
                saved: state.apic.id,
                this: self.mailbox.id,
            }));
        }
        state.check(self.platform.features)?;
        let ArchState {
            gpr,
            rip,
            rflags,
            segments,
            ldtr,
            tr,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            debug,
            xmm,
            ymm_upper,
            xcr0,
            mxcsr,
            x87,
            msrs,
            apic,
            pending,
            shadow,
            time,
            retired,
            parked,
            halted,
            shutdown,
            random,
        } = state;
        self.gpr[..16].copy_from_slice(gpr);
        self.rip = *rip;
        self.set_rflags(*rflags);
        self.set_system_segments(*ldtr, *tr);
        self.set_tables(*gdt, *idt);
        self.cr2 = *cr2;
        self.debug = debug.clone();
        self.xmm = *xmm;
        self.ymm_upper = *ymm_upper;
        self.xcr0 = *xcr0;
        self.mxcsr = *mxcsr;
        self.x87 = x87.clone();
        self.msrs = msrs.clone();
        self.apic = apic.clone();
        self.mailbox.set_pending(pending);
        self.shadow = *shadow;
        self.time = *time;
        self.retired = *retired;
        (self.parked, self.halted, self.shutdown) = (*parked, *halted, *shutdown);
        self.random = *random;
        for (number, segment) in segments.iter().enumerate() {
            self.set_segment(number, *segment);
        }
        // Forgets all translations and, with the mode, what blocks were found by; blocks are compared with
        // RAM when they are found by their physical address.
        self.set_control(*cr0, *cr3, *cr4, *efer);
        self.sort_breakpoints();
        self.publish();
        self.mailbox.publish(self.retired);
        self.request_check();
        Ok(())
    }
}
