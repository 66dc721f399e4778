//! How exceptions and interrupts reach their handlers in protected mode outside of long mode: gates of 8
//! bytes, frames of 2 or 4 bytes a word, stacks from the task state segment (Intel SDM vol. 3, §6.12.1).
//!
//! There is no task switch: a task gate shuts the processor down. Linux has one, for double faults, whose
//! handler is the end of the kernel.

use super::{Source, vector};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Segment, reg, seg};

/// Types of gates; those of 32 bits have [`WIDE`] set.
const TASK_GATE: u64 = 0x5;
const INTERRUPT_GATE: u64 = 0x6;
const TRAP_GATE: u64 = 0x7;
const WIDE: u64 = 0x8;
/// In the type of a task state segment: it is one of 32 bits.
const WIDE_TASK: u16 = 0x8;

/// A stack that a frame is pushed onto.
struct Frame {
    ss: Segment,
    sp: u64,
    /// Bits of the stack pointer that count.
    mask: u64,
    wide: bool,
}

impl Frame {
    fn new(ss: Segment, sp: u64, wide: bool) -> Frame {
        let mask = if ss.access & Segment::D != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        Frame { ss, sp, mask, wide }
    }

    fn push(&mut self, cpu: &mut Cpu, value: u64) -> Flow {
        let size = if self.wide { 4 } else { 2 };
        let sp = self.sp.wrapping_sub(size) & self.mask;
        let bytes = (value as u32).to_le_bytes();
        cpu.store_system_bytes(self.ss.base.wrapping_add(sp), &bytes[..size as usize])?;
        self.sp = self.sp & !self.mask | sp;
        Ok(())
    }
}

impl Cpu {
    /// Enters the handler of `vector`. Changes nothing where that fails.
    pub(super) fn deliver_protected(&mut self, vector: u8, code: Option<u32>, source: Source) -> Flow {
        let external = (source != Source::Software) as u32;
        let bad = (vector as u32 * 8) | 2 | external;
        if vector as u32 * 8 + 7 > self.idt.limit as u32 {
            return self.general_protection(bad);
        }
        let gate = self.load_system(self.idt.base.wrapping_add(vector as u64 * 8))?;
        let kind = gate >> 40 & 0x1f;
        let dpl = (gate >> 45 & 3) as u8;
        let narrow = kind & !WIDE;
        let known = narrow == INTERRUPT_GATE || narrow == TRAP_GATE || kind == TASK_GATE;
        if !known || (source == Source::Software && dpl < self.cpl) {
            return self.general_protection(bad);
        }
        if gate >> 47 & 1 == 0 {
            return self.raise_code(vector::NP, bad);
        }
        if kind == TASK_GATE {
            self.report("a task switch");
            self.shut_down();
            return Ok(());
        }
        let wide = kind & WIDE != 0;
        let above = if wide { gate >> 32 & 0xffff_0000 } else { 0 };
        let target = gate & 0xffff | above;
        let selector = (gate >> 16) as u16;

        let cs = self.descriptor(selector, vector::GP, external)?;
        let named = (selector & !3) as u32 | external;
        if cs.access & 0x18 != 0x18 || cs.dpl() > self.cpl {
            return self.general_protection(named);
        }
        if cs.access & Segment::P == 0 {
            return self.raise_code(vector::NP, named);
        }
        let conforming = cs.access & 4 != 0;
        let cpl = if conforming { self.cpl } else { cs.dpl() };
        let (old_ss, old_sp) = (self.seg[seg::SS], self.gpr[reg::RSP]);
        let changed = cpl != self.cpl;
        let mut frame = if changed {
            let (ss, sp) = self.stack_of_task(cpl, external)?;
            Frame::new(ss, sp, wide)
        } else {
            Frame::new(old_ss, old_sp, wide)
        };
        let mut saved = self.rflags();
        if source == Source::Exception {
            saved |= rflag::RF;
        }
        if changed {
            frame.push(self, old_ss.selector.into())?;
            frame.push(self, old_sp)?;
        }
        for word in [saved, self.seg[seg::CS].selector.into(), self.rip] {
            frame.push(self, word)?;
        }
        if let Some(code) = code {
            frame.push(self, code.into())?;
        }

        self.gpr[reg::RSP] = frame.sp;
        self.rip = target;
        self.rflags &= !(rflag::TF | rflag::NT | rflag::RF | rflag::VM);
        if narrow == INTERRUPT_GATE {
            self.rflags &= !rflag::IF;
        }
        self.seg[seg::SS] = frame.ss;
        self.seg_base[seg::SS] = frame.ss.base;
        self.set_segment(
            seg::CS,
            Segment {
                selector: selector & !3 | cpl as u16,
                ..cs
            },
        );
        self.halted = false;
        Ok(())
    }

    /// The stack that the task state segment has for privilege level `cpl`.
    fn stack_of_task(&mut self, cpl: u8, external: u32) -> Result<(Segment, u64), Stop> {
        let wide = self.tr.access & WIDE_TASK != 0;
        let (offset, size) = if wide {
            (4 + 8 * cpl as u32, 6)
        } else {
            (2 + 4 * cpl as u32, 4)
        };
        if offset + size - 1 > self.tr.limit {
            return self.raise_code(vector::TS, (self.tr.selector & !3) as u32 | external);
        }
        let word = self.load_system(self.tr.base.wrapping_add(offset.into()))?;
        let (sp, selector) = if wide {
            (word & 0xffff_ffff, (word >> 32) as u16)
        } else {
            (word & 0xffff, (word >> 16) as u16)
        };
        let ss = self.descriptor(selector, vector::TS, external)?;
        let named = (selector & !3) as u32 | external;
        let is_writable_data = ss.access & 0x1a == 0x12;
        if !is_writable_data || ss.dpl() != cpl || (selector & 3) as u8 != cpl {
            return self.raise_code(vector::TS, named);
        }
        if ss.access & Segment::P == 0 {
            return self.raise_code(vector::SS, named);
        }
        Ok((ss, sp))
    }
}
