//! The local APIC: xAPIC registers in memory, the same as x2APIC MSRs, the timer, and what interrupts a
//! processor (Intel SDM vol. 3, chapter 11).

pub(crate) mod processor;

mod registers;

use registers::{base, register};

use crate::core::clock::Time;
use crate::core::page::PAGE_MASK;

/// Version 0x14, highest LVT entry 5.
const VERSION: u32 = 0x0005_0014;
const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;

/// A set of 256 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[vector as usize / 64] |= 1 << (vector % 64);
    }
    fn clear(&mut self, vector: u8) {
        self.0[vector as usize / 64] &= !(1 << (vector % 64));
    }
    fn highest(&self) -> Option<u8> {
        (0..4)
            .rev()
            .find(|n| self.0[*n] != 0)
            .map(|n| (n * 64 + 63 - self.0[n].leading_zeros() as usize) as u8)
    }
    /// One of the eight 32-bit registers that show it.
    fn word(&self, n: u32) -> u32 {
        (self.0[n as usize / 2 % 4] >> (n % 2 * 32)) as u32
    }
}

/// State of the local APIC.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Apic {
    pub base: u64,
    pub id: u32,
    requested: Vectors,
    in_service: Vectors,
    tpr: u32,
    ldr: u32,
    dfr: u32,
    svr: u32,
    error: u32,
    icr: u64,
    /// CMCI, then timer to error.
    lvt: [u32; 7],
    divide: u32,
    initial: u32,
    /// When the timer is due, in nanoseconds of the machine's clock.
    deadline: Option<u64>,
    /// Value of the TSC deadline MSR.
    tsc_deadline: u64,
    nmi: bool,
    in_nmi: bool,
}

impl Apic {
    pub fn new(id: u32) -> Apic {
        Apic {
            base: base::ADDRESS | base::ENABLE | if id == 0 { base::BSP } else { 0 },
            id,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            error: 0,
            icr: 0,
            lvt: [MASKED; 7],
            divide: 0,
            initial: 0,
            deadline: None,
            tsc_deadline: 0,
            nmi: false,
            in_nmi: false,
        }
    }

    /// Whether all of it can have come about by a guest's accesses. Times are compared and added without
    /// overflow below [`Time::MOST`](crate::core::clock::Time::MOST).
    pub fn is_valid(&self) -> bool {
        let Apic {
            base,
            id: _,
            requested: _,
            in_service: _,
            tpr,
            ldr,
            dfr,
            svr,
            error: _,
            icr: _,
            lvt,
            divide,
            initial: _,
            deadline,
            tsc_deadline: _,
            nmi: _,
            in_nmi: _,
        } = self;
        base & !(base::BSP | base::ENABLE | base::X2APIC | base::ADDRESSES) == 0
            && base & (base::ENABLE | base::X2APIC) != base::X2APIC
            && tpr >> 8 == 0
            && ldr & 0x00ff_ffff == 0
            && dfr & 0x0fff_ffff == 0x0fff_ffff
            && svr & !0x1ff == 0
            && lvt.iter().all(|entry| entry & !0x7_17ff == 0)
            && divide & !0xb == 0
            // A guest may ask for an end of time that never comes.
            && deadline.is_none_or(|at| at < Time::MOST || self.timer_mode() == 2)
    }

    /// INIT: the base and the id stay.
    pub fn reset(&mut self) {
        *self = Apic {
            base: self.base,
            ..Apic::new(self.id)
        };
    }

    /// Turned off by its base: all but what is the processor's own is as after reset.
    fn disable(&mut self) {
        *self = Apic {
            base: self.base,
            nmi: self.nmi,
            in_nmi: self.in_nmi,
            ..Apic::new(self.id)
        };
    }

    /// Whether it is there at all, for CPUID.
    pub fn is_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// Whether the register page answers at this physical address.
    pub fn decodes(&self, phys: u64) -> bool {
        phys & PAGE_MASK == self.base & base::ADDRESSES
            && self.base & (base::ENABLE | base::X2APIC) == base::ENABLE
    }

    pub fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Whether any vector is requested, deliverable or not.
    pub fn has_requests(&self) -> bool {
        self.requested.0 != [0; 4] || self.nmi
    }

    /// When the timer is due.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Priority class in CR8.
    pub fn cr8(&self) -> u64 {
        (self.tpr >> 4 & 15) as u64
    }

    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u32) << 4;
    }

    /// Takes an NMI that may come in.
    pub fn take_nmi(&mut self) -> bool {
        let now = self.nmi && !self.in_nmi;
        if now {
            self.nmi = false;
            self.in_nmi = true;
        }
        now
    }

    /// IRET lets the next NMI come in. Returns whether one waits.
    pub fn end_of_nmi(&mut self) -> bool {
        self.in_nmi = false;
        self.nmi
    }

    fn processor_priority(&self) -> u32 {
        let service = self.in_service.highest().unwrap_or(0) as u32;
        if self.tpr >> 4 >= service >> 4 {
            self.tpr
        } else {
            service & 0xf0
        }
    }

    /// Whether an interrupt or NMI may come in, where RFLAGS lets it.
    pub fn has_interrupt(&self) -> bool {
        let ready =
            |vector: u8| self.svr & ENABLED != 0 && (vector >> 4) as u32 > self.processor_priority() >> 4;
        self.nmi && !self.in_nmi || self.requested.highest().is_some_and(ready)
    }

    /// Takes the interrupt that comes next, if its priority lets it.
    pub fn take_interrupt(&mut self) -> Option<u8> {
        let vector = self.requested.highest()?;
        if !self.is_enabled()
            || self.svr & ENABLED == 0
            || (vector >> 4) as u32 <= self.processor_priority() >> 4
        {
            return None;
        }
        self.requested.clear(vector);
        self.in_service.set(vector);
        Some(vector)
    }

    fn lvt_index(register: u32) -> usize {
        if register == register::CMCI {
            0
        } else {
            (register - register::TIMER + 1) as usize
        }
    }

    fn timer(&self) -> u32 {
        self.lvt[1]
    }

    /// Timer mode: 0 one-shot, 1 periodic, 2 TSC deadline.
    fn timer_mode(&self) -> u32 {
        self.timer() >> 17 & 3
    }

    /// Nanoseconds of a full count.
    fn period(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        let divisor = if code == 7 { 1 } else { 2u64 << code };
        self.initial as u64 * divisor
    }
}
