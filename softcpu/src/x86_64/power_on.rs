//! Constructing a processor.
#![allow(unsafe_code)]

use std::sync::Arc;

use crate::core::block::Cache;
use crate::core::clock::{Clock, Time};
use crate::core::counters::{Counters, NonCodeStores};
use crate::core::ram::Ram;
use crate::core::tlb::Tlb;
use crate::x86_64::apic::Apic;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::debug::Debug;
use crate::x86_64::exception::Fault;
use crate::x86_64::flags::{Flags, rflag};
use crate::x86_64::msr::Msrs;
use crate::x86_64::platform::Platform;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::state::{CodeSize, Segment, Shadow, Table, xcr0};
use crate::x86_64::x87::Fpu;

impl Cpu {
    /// Processor `id` of a platform, as after reset. It waits for INIT and a startup IPI until
    /// [`Cpu::unpark`]; `None` where the platform has no such processor.
    pub fn new(ram: Arc<Ram>, platform: Arc<Platform>, id: u32) -> Option<Cpu> {
        let mailbox = platform.processors.mailbox(id)?.clone();
        let mut cpu = Cpu {
            gpr: [0; 32],
            flags: Flags::default(),
            rip: 0,
            retired: 0,
            check_at: 0,
            limit: u64::MAX,
            seg_base: [0; 8],
            rip_mask: 0,
            stack_mask: 0,
            running: std::ptr::null(),
            stopped: std::ptr::null(),
            code_size: CodeSize::Bits16,
            cpl: 0,
            shadow: Shadow::None,
            alone: false,
            tlb: Tlb::new(),
            ram,
            mailbox,
            platform,
            bus: None,
            fault: Fault::default(),
            rflags: rflag::FIXED,
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdt: Table::default(),
            idt: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            pdptes: None,
            cr4: 0,
            efer: 0,
            debug: Debug::new(),
            xmm: [0; 16],
            ymm_upper: [0; 16],
            xcr0: xcr0::X87,
            mxcsr: Mxcsr::default(),
            x87: Fpu::default(),
            msrs: Msrs::new(),
            apic: Apic::new(id),
            time: Time::default(),
            cache: Cache::new(),
            non_code_stores: NonCodeStores::default(),
            counters: Counters::default(),
            profile: None,
            stop: false,
            parked: true,
            halted: false,
            shutdown: false,
            reported: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            spin: 0,
            helpers: None,
            direct_at: u64::MAX,
        };
        cpu.reset();
        Some(cpu)
    }

    /// A random word: the host's, or a fixed sequence where everything has to repeat.
    pub(crate) fn random(&mut self) -> u64 {
        let mut word = 0u64;
        if self.platform.processors.clock == Clock::Host {
            // SAFETY: the buffer is eight bytes of a local variable.
            let got = unsafe { libc::getrandom((&raw mut word).cast(), 8, libc::GRND_NONBLOCK) };
            if got == 8 {
                return word;
            }
        }
        // xorshift64* (Vigna 2016).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
