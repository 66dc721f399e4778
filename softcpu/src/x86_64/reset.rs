//! INIT: what a processor is before its first instruction (Intel SDM vol. 3, §10.1.1).

use crate::x86_64::cpu::Cpu;
use crate::x86_64::debug::Debug;
use crate::x86_64::flags::rflag;
use crate::x86_64::state::{Segment, Shadow, Table, seg};

/// A segment of real mode: 64 KiB, present.
const fn real_mode(selector: u16, base: u64, access: u16) -> Segment {
    Segment {
        selector,
        base,
        limit: 0xffff,
        access,
    }
}

/// Access bytes: data and code that were accessed, a local descriptor table, a busy task.
const DATA: u16 = 0x93;
const CODE: u16 = 0x9b;
const LDT: u16 = 0x82;
const TASK: u16 = 0x8b;

/// Where the tables of descriptors and of interrupts lie.
const TABLE: Table = Table {
    base: 0,
    limit: 0xffff,
};
/// CR0 with caches off: CD, NW and ET.
const CR0: u64 = 0x6000_0010;

impl Cpu {
    /// Real mode at the reset vector, everything else at its defaults.
    pub(crate) fn reset(&mut self) {
        let Cpu {
            gpr,
            rip,
            ldtr,
            tr,
            cr2,
            debug,
            apic,
            halted,
            shadow,
            // Set below, by what keeps in step with them what is derived.
            flags: _,
            rflags: _,
            seg: _,
            seg_base: _,
            gdt: _,
            idt: _,
            cr0: _,
            cr3: _,
            pdptes: _,
            cr4: _,
            efer: _,
            tlb: _,
            rip_mask: _,
            stack_mask: _,
            code_size: _,
            cpl: _,
            // INIT leaves them alone.
            xmm: _,
            ymm_upper: _,
            xcr0: _,
            mxcsr: _,
            x87: _,
            msrs: _,
            time: _,
            // Whether it runs at all is for the sender to say.
            parked: _,
            shutdown: _,
            // Of the machine, and of how its code is run.
            retired: _,
            check_at: _,
            limit: _,
            running: _,
            stopped: _,
            alone: _,
            ram: _,
            mailbox: _,
            platform: _,
            bus: _,
            fault: _,
            cache: _,
            profile: _,
            stop: _,
            reported: _,
            random: _,
            spin: _,
            helpers: _,
            direct_at: _,
            non_code_stores: _,
            counters: _,
        } = self;
        gpr[..16].fill(0);
        gpr[2] = crate::x86_64::cpuid::SIGNATURE as u64;
        *rip = 0xfff0;
        *ldtr = real_mode(0, 0, LDT);
        *tr = real_mode(0, 0, TASK);
        *cr2 = 0;
        *debug = Debug::new();
        *halted = false;
        *shadow = Shadow::None;
        apic.reset();
        self.set_rflags(rflag::FIXED);
        for number in 0..6 {
            self.set_segment(number, real_mode(0, 0, DATA));
        }
        self.set_segment(seg::CS, real_mode(0xf000, 0xffff_0000, CODE));
        self.set_tables(TABLE, TABLE);
        self.set_control(CR0, 0, 0, 0);
        self.publish();
    }
}
