//! The local APIC: xAPIC registers in memory, the same as x2APIC MSRs, the timer, and what interrupts a
//! processor (Intel SDM vol. 3, chapter 11).

mod registers;

use std::sync::atomic::Ordering;

use registers::{base, register};

use crate::core::ram::PAGE_MASK;
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::platform::{Message, event};
use crate::x86_64::state::{Cpu, seg};

/// Version 0x14, highest LVT entry 5.
const VERSION: u32 = 0x0005_0014;
const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;

/// A set of 256 vectors.
#[derive(Clone, Copy, Debug, Default)]
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
#[derive(Debug)]
pub(crate) struct Apic {
    pub base: u64,
    id: u32,
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

    /// IRET lets the next NMI come in. Answers whether one waits.
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

impl Cpu {
    /// Requests what the mailbox holds. Answers whether `run` was asked to come back.
    pub(crate) fn take_events(&mut self) -> bool {
        if !self.mailbox.has_events() {
            return false;
        }
        let events = self.mailbox.take();
        if events & event::INTERRUPT != 0 {
            for (mine, new) in self.apic.requested.0.iter_mut().zip(self.mailbox.take_requests()) {
                *mine |= new;
            }
        }
        self.apic.nmi |= events & event::NMI != 0;
        if events & event::WATCH != 0 {
            self.watch_code();
        }
        if events & event::INIT != 0 {
            self.reset();
            // The first processor starts over from its reset vector; nothing is there to run.
            self.parked = true;
        }
        if events & event::STARTUP != 0 && self.parked {
            self.parked = false;
            self.set_real_segment(seg::CS, (self.mailbox.startup_vector() as u16) << 8);
            self.rip = 0;
        }
        events & event::KICK != 0
    }

    /// Shows senders how to address this APIC.
    pub(crate) fn publish(&self) {
        let x2apic = self.apic.is_x2apic();
        let ldr = if x2apic {
            (self.apic.id >> 4) << 16 | 1 << (self.apic.id & 15)
        } else {
            self.apic.ldr
        };
        self.mailbox.ldr.store(ldr, Ordering::Relaxed);
        self.mailbox
            .flat
            .store(self.apic.dfr >> 28 == 15, Ordering::Relaxed);
        self.mailbox.x2apic.store(x2apic, Ordering::Relaxed);
    }

    /// Sets the APIC base MSR.
    pub(crate) fn set_apic_base(&mut self, value: u64) -> Flow {
        let known = base::BSP | base::ENABLE | base::X2APIC | base::ADDRESSES;
        if value & !known != 0 || !base::may_change(self.apic.base, value) {
            return self.general_protection(0);
        }
        self.apic.base = value;
        if !self.apic.is_enabled() {
            self.apic.disable();
        }
        self.publish();
        Ok(())
    }

    /// RDMSR of register `number`, in x2APIC mode.
    pub(crate) fn read_x2apic(&mut self, number: u32, ahead: u64) -> Result<u64, Stop> {
        if !register::is_readable(number) {
            return self.general_protection(0);
        }
        Ok(self.read_apic(number, ahead))
    }

    /// WRMSR of register `number`, in x2APIC mode.
    pub(crate) fn write_x2apic(&mut self, number: u32, value: u64, ahead: u64) -> Flow {
        if register::writable_bits(number).is_none_or(|bits| value & !bits != 0) {
            return self.general_protection(0);
        }
        self.write_apic(number, value, ahead);
        Ok(())
    }

    /// Requests the timer's interrupt when it is due.
    pub(crate) fn update_timer(&mut self) {
        let Some(deadline) = self.apic.deadline else {
            return;
        };
        let now = self.now(0);
        if now < deadline {
            return;
        }
        let period = self.apic.period();
        self.apic.deadline = (self.apic.timer_mode() == 1 && period > 0)
            .then(|| (deadline + period).max((now + 1).saturating_sub(period)));
        self.apic.tsc_deadline = 0;
        let timer = self.apic.timer();
        if timer & MASKED == 0 {
            self.apic.requested.set(timer as u8);
        }
    }

    /// The TSC deadline MSR.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.apic.tsc_deadline
    }

    pub(crate) fn set_tsc_deadline(&mut self, value: u64) {
        if self.apic.timer_mode() != 2 {
            return;
        }
        self.apic.tsc_deadline = value;
        self.apic.deadline = (value != 0).then(|| value.wrapping_sub(self.time.offset));
        self.request_check();
    }

    /// Looks for interrupts before the next block when one may come in.
    #[inline]
    pub(crate) fn request_check_if_enabled(&mut self) {
        if self.rflags & rflag::IF != 0 && self.apic.has_requests() {
            self.request_check();
        }
    }

    /// Reads a register by number; `ahead` instructions after the last boundary.
    pub(crate) fn read_apic(&mut self, number: u32, ahead: u64) -> u64 {
        use register::*;
        let x2apic = self.apic.is_x2apic();
        let now = self.now(ahead);
        let apic = &self.apic;
        let value = match number {
            ID => {
                if x2apic {
                    apic.id
                } else {
                    apic.id << 24
                }
            }
            VERSION => self::VERSION,
            TPR => apic.tpr,
            PPR => apic.processor_priority(),
            LDR if x2apic => (apic.id >> 4) << 16 | 1 << (apic.id & 15),
            LDR => apic.ldr,
            DFR => apic.dfr,
            SVR => apic.svr,
            ISR..=0x17 => apic.in_service.word(number - ISR),
            TMR..=0x1f => 0,
            IRR..=0x27 => apic.requested.word(number - IRR),
            ESR => apic.error,
            ICR if x2apic => return apic.icr,
            ICR => apic.icr as u32,
            ICR_HIGH => (apic.icr >> 32) as u32,
            CMCI | TIMER..=ERROR => apic.lvt[Apic::lvt_index(number)],
            INITIAL => apic.initial,
            CURRENT => match apic.deadline {
                Some(deadline) if apic.timer_mode() != 2 && apic.initial != 0 => {
                    let divisor = apic.period() / apic.initial as u64;
                    (deadline.saturating_sub(now) / divisor.max(1)) as u32
                }
                _ => 0,
            },
            DIVIDE => apic.divide,
            _ => 0,
        };
        value as u64
    }

    /// Writes a register by number.
    pub(crate) fn write_apic(&mut self, number: u32, value: u64, ahead: u64) {
        use register::*;
        let word = value as u32;
        let x2apic = self.apic.is_x2apic();
        match number {
            TPR => {
                self.apic.tpr = word & 0xff;
                self.request_check();
            }
            EOI => self.end_of_interrupt(),
            LDR if !x2apic => {
                self.apic.ldr = word & 0xff00_0000;
                self.publish();
            }
            DFR if !x2apic => {
                self.apic.dfr = word | 0x0fff_ffff;
                self.publish();
            }
            SVR => {
                self.apic.svr = word & 0x1ff;
                self.request_check();
            }
            ESR => self.apic.error = 0,
            ICR => {
                self.apic.icr = if x2apic {
                    value
                } else {
                    self.apic.icr & !0xffff_ffff | (word & !(1 << 12)) as u64
                };
                self.send_ipi();
            }
            ICR_HIGH if !x2apic => self.apic.icr = self.apic.icr as u32 as u64 | (word as u64) << 32,
            SELF_IPI if x2apic => {
                self.apic.requested.set(word as u8);
                self.request_check();
            }
            CMCI | TIMER..=ERROR => {
                self.apic.lvt[Apic::lvt_index(number)] = word & 0x7_17ff;
                if number == TIMER && self.apic.timer_mode() == 2 && self.apic.tsc_deadline == 0 {
                    self.apic.deadline = None;
                }
            }
            INITIAL => {
                self.apic.initial = word;
                self.start_timer(ahead);
            }
            DIVIDE => self.apic.divide = word & 0xb,
            _ => {}
        }
    }

    fn start_timer(&mut self, ahead: u64) {
        if self.apic.timer_mode() != 2 {
            let period = self.apic.period();
            self.apic.deadline = (period != 0).then(|| self.now(ahead) + period);
            self.request_check();
        }
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = self.apic.in_service.highest() {
            self.apic.in_service.clear(vector);
            self.platform.end_of_interrupt(vector);
        }
        if self.apic.has_requests() {
            self.request_check();
        }
    }

    fn send_ipi(&mut self) {
        let icr = self.apic.icr;
        let (mode, vector) = ((icr >> 8 & 7) as u8, icr as u8);
        // INIT with level de-assert does nothing on any processor of this century.
        if mode == 5 && icr & 1 << 14 == 0 {
            return;
        }
        let me = self.apic.id;
        match icr >> 18 & 3 {
            0 => {
                let destination = if self.apic.is_x2apic() {
                    (icr >> 32) as u32
                } else {
                    (icr >> 56) as u32
                };
                let logical = icr & 1 << 11 != 0;
                self.platform.deliver(Message {
                    destination,
                    logical,
                    mode,
                    vector,
                });
            }
            1 => {
                self.apic.requested.set(vector);
                self.request_check();
            }
            2 => self.platform.broadcast(None, mode, vector),
            _ => self.platform.broadcast(Some(me), mode, vector),
        }
    }
}

/// A load from the register page.
pub(crate) fn mmio_read(cpu: &mut Cpu, addr: u64, data: &mut [u8]) {
    let value = cpu.read_apic((addr >> 4 & 0xff) as u32, 0) as u32;
    let bytes = value.to_le_bytes();
    for (n, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get((addr & 15) as usize + n).copied().unwrap_or(0);
    }
}

/// A store to the register page; only aligned 32-bit ones count.
pub(crate) fn mmio_write(cpu: &mut Cpu, addr: u64, data: &[u8]) {
    if let (0, [a, b, c, d, ..]) = (addr & 15, data) {
        cpu.write_apic(
            (addr >> 4 & 0xff) as u32,
            u32::from_le_bytes([*a, *b, *c, *d]) as u64,
            0,
        );
    }
}
