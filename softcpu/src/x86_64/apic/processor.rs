//! The local APIC as part of its processor: registers in memory and as MSRs, the timer, interrupts that are
//! sent and received.

use super::registers::{base, register};
use super::{Apic, MASKED, VERSION};
use crate::core::mailbox::event::{INTERRUPT, KICK, WATCH};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::platform::{Message, event};
use crate::x86_64::state::seg;

impl Cpu {
    /// Requests what the mailbox holds. Returns whether `run` was asked to come back.
    pub(crate) fn take_events(&mut self) -> bool {
        if !self.mailbox.has_events() {
            return false;
        }
        let events = self.mailbox.take();
        if events & INTERRUPT != 0 {
            for (mine, new) in self.apic.requested.0.iter_mut().zip(self.mailbox.take_requests()) {
                *mine |= new;
            }
        }
        self.apic.nmi |= events & event::NMI != 0;
        if events & WATCH != 0 {
            self.watch_code();
        }
        if events & event::INIT != 0 {
            self.reset();
            // The first processor starts over from its reset vector; nothing is there to run.
            self.parked = true;
        }
        if events & event::STARTUP != 0 && self.parked {
            self.parked = false;
            self.set_real_segment(seg::CS, (self.mailbox.argument() as u8 as u16) << 8);
            self.rip = 0;
        }
        events & KICK != 0
    }

    /// Shows senders how to address this APIC.
    pub(crate) fn publish(&self) {
        let x2apic = self.apic.is_x2apic();
        let ldr = if x2apic {
            (self.apic.id >> 4) << 16 | 1 << (self.apic.id & 15)
        } else {
            self.apic.ldr
        };
        let flat = self.apic.dfr >> 28 == 15;
        self.platform.set_address(self.mailbox.id, ldr, flat, x2apic);
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
