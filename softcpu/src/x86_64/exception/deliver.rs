//! How exceptions and interrupts reach their handlers.

use super::{Fault, Source, canonical, vector};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Segment, cr0, efer, reg, seg};

impl Cpu {
    /// Delivers the exception in `self.fault`, which the instruction at `self.rip` raised. A second one on
    /// the way becomes a double fault where the two together say so, a third one shuts the processor down.
    pub(crate) fn deliver_fault(&mut self) {
        let mut first: Option<u8> = None;
        loop {
            let mut fault = self.fault;
            if let Some(first) = first {
                if first == vector::DF {
                    self.shut_down();
                    return;
                }
                if doubles(first, fault.vector) {
                    fault = Fault {
                        vector: vector::DF,
                        code: Some(0),
                        cr2: self.cr2,
                    };
                }
            }
            if fault.vector == vector::PF {
                self.cr2 = fault.cr2;
            }
            first = Some(fault.vector);
            if self.deliver(fault.vector, fault.code, Source::Exception).is_ok() {
                return;
            }
        }
    }

    /// Delivers an interrupt from outside; faults on the way are delivered in turn.
    pub(crate) fn deliver_external(&mut self, vector: u8) {
        if self.deliver(vector, None, Source::External).is_err() {
            self.deliver_fault();
        }
    }

    /// Enters the handler of `vector`. Changes nothing where that fails.
    pub(crate) fn deliver(&mut self, vector: u8, code: Option<u32>, source: Source) -> Flow {
        if self.efer & efer::LMA != 0 {
            self.deliver_long(vector, code, source)
        } else if self.cr0 & cr0::PE == 0 {
            self.deliver_real(vector)
        } else {
            self.deliver_protected(vector, code, source)
        }
    }

    fn deliver_long(&mut self, vector: u8, code: Option<u32>, source: Source) -> Flow {
        let external = (source != Source::Software) as u32;
        let bad = (vector as u32 * 8) | 2 | external;
        if vector as u32 * 16 + 15 > self.idt.limit as u32 {
            return self.general_protection(bad);
        }
        let at = self.idt.base.wrapping_add(vector as u64 * 16);
        let (low, high) = (self.load_system(at)?, self.load_system(at.wrapping_add(8))?);
        let kind = low >> 40 & 0x1f;
        let dpl = (low >> 45 & 3) as u8;
        if (kind != 0xe && kind != 0xf) || (source == Source::Software && dpl < self.cpl) {
            return self.general_protection(bad);
        }
        if low >> 47 & 1 == 0 {
            return self.raise_code(vector::NP, bad);
        }
        let target = (low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32;
        let selector = (low >> 16) as u16;
        let ist = (low >> 32 & 7) as u32;

        let cs = self.descriptor(selector, vector::GP, external)?;
        // A code segment, not more privileged than needed, and of long mode.
        if cs.access & 0x18 != 0x18 || cs.dpl() > self.cpl || cs.access & Segment::L == 0 {
            return self.general_protection((selector & !3) as u32 | external);
        }
        if cs.access & Segment::P == 0 {
            return self.raise_code(vector::NP, (selector & !3) as u32 | external);
        }
        if !canonical(target) {
            return self.general_protection(external);
        }
        let conforming = cs.access & 4 != 0;
        let cpl = if conforming { self.cpl } else { cs.dpl() };
        let stack = if ist != 0 {
            self.task_word(28 + 8 * ist)?
        } else if cpl != self.cpl {
            self.task_word(4 + 8 * cpl as u32)?
        } else {
            self.gpr[reg::RSP]
        };
        let mut sp = stack & !15;
        let mut saved = self.rflags();
        if source == Source::Exception {
            saved |= rflag::RF;
        }
        let frame = [
            self.seg[seg::SS].selector as u64,
            self.gpr[reg::RSP],
            saved,
            self.seg[seg::CS].selector as u64,
            self.rip,
        ];
        for word in frame.into_iter().chain(code.map(u64::from)) {
            sp = sp.wrapping_sub(8);
            self.store_system(sp, word)?;
        }

        let changed = cpl != self.cpl;
        self.gpr[reg::RSP] = sp;
        self.rip = target;
        self.rflags &= !(rflag::TF | rflag::NT | rflag::RF | rflag::VM);
        if kind == 0xe {
            self.rflags &= !rflag::IF;
        }
        self.seg[seg::CS] = Segment {
            selector: selector & !3 | cpl as u16,
            ..cs
        };
        self.seg_base[seg::CS] = 0;
        if changed {
            self.seg[seg::SS] = Segment {
                selector: cpl as u16,
                base: 0,
                limit: 0,
                access: Segment::P | 0x13 | (cpl as u16) << 5,
            };
            self.seg_base[seg::SS] = 0;
        }
        self.update_mode();
        self.halted = false;
        Ok(())
    }

    /// Stops for good. The loop has to see it before it tries the same instruction again.
    pub(super) fn shut_down(&mut self) {
        self.shutdown = true;
        self.request_check();
    }

    fn deliver_real(&mut self, vector: u8) -> Flow {
        if vector as u16 * 4 + 3 > self.idt.limit {
            self.shut_down();
            return Ok(());
        }
        let entry = self.load_system(self.idt.base + vector as u64 * 4)? as u32;
        for word in [self.rflags() as u16, self.seg[seg::CS].selector, self.rip as u16] {
            let sp = self.gpr[reg::RSP].wrapping_sub(2) & 0xffff;
            self.write_linear(self.seg_base[seg::SS] + sp, &word.to_le_bytes(), self.bank())?;
            self.gpr[reg::RSP] = self.gpr[reg::RSP] & !0xffff | sp;
        }
        self.rflags &= !(rflag::IF | rflag::TF | rflag::AC);
        self.set_real_segment(seg::CS, (entry >> 16) as u16);
        self.rip = entry as u16 as u64;
        self.halted = false;
        Ok(())
    }

    /// A 64-bit word of the task state segment.
    fn task_word(&mut self, offset: u32) -> Result<u64, Stop> {
        if offset + 7 > self.tr.limit {
            return self.raise_code(vector::TS, (self.tr.selector & !3) as u32);
        }
        let word = self.load_system(self.tr.base.wrapping_add(offset as u64))?;
        if !canonical(word) {
            return self.raise_code(vector::SS, 0);
        }
        Ok(word)
    }

    /// Loads a segment register as real mode does.
    pub(crate) fn set_real_segment(&mut self, number: usize, selector: u16) {
        let base = (selector as u64) << 4;
        let keep = self.seg[number];
        let access = if number == seg::CS { 0x9b } else { keep.access };
        self.set_segment(
            number,
            Segment {
                selector,
                base,
                access,
                ..keep
            },
        );
    }

    /// Whether this is real mode.
    pub(crate) fn is_real(&self) -> bool {
        self.cr0 & cr0::PE == 0
    }
}

/// Whether `second`, raised while `first` was delivered, makes a double fault (Intel SDM vol. 3, table 6-5).
fn doubles(first: u8, second: u8) -> bool {
    let contributory = |v| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    match first {
        vector::PF => contributory(second) || second == vector::PF,
        first if contributory(first) => contributory(second),
        _ => false,
    }
}
