//! Segment registers, descriptors, and the bases of FS and GS.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::{canonical, vector};
use crate::x86_64::flags::{Flags, Width, rflag};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Segment, Shadow, Table, cr4, efer, seg};

/// Unpacks a descriptor of 8 bytes.
pub(crate) fn unpack(selector: u16, raw: u64) -> Segment {
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let access = (raw >> 40 & 0xf0ff) as u16;
    Segment {
        selector,
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if access & 0x8000 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        access,
    }
}

impl Cpu {
    /// Reads the 8 bytes of a selector's descriptor; beyond its table's limit is `fault` with the selector.
    pub(crate) fn raw_descriptor(
        &mut self,
        selector: u16,
        fault: u8,
        external: u32,
    ) -> Result<(u64, u64), Stop> {
        let table = if selector & 4 == 0 {
            self.gdt
        } else {
            Table {
                base: self.ldtr.base,
                limit: self.ldtr.limit.min(0xffff) as u16,
            }
        };
        let offset = (selector & !7) as u64;
        let missing = selector & 4 != 0 && self.ldtr.access & Segment::P == 0;
        if offset + 7 > table.limit as u64 || missing {
            return self.raise_code(fault, (selector & !3) as u32 | external);
        }
        let at = table.base.wrapping_add(offset);
        Ok((self.load_system(at)?, at))
    }

    /// The descriptor of a selector that must not be null.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8, external: u32) -> Result<Segment, Stop> {
        if selector & !3 == 0 {
            return self.raise_code(fault, external);
        }
        let (raw, _) = self.raw_descriptor(selector, fault, external)?;
        Ok(unpack(selector, raw))
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do (Intel SDM vol. 2, MOV).
    pub(crate) fn load_segment(&mut self, number: usize, selector: u16) -> Flow {
        if self.is_real() {
            self.set_real_segment(number, selector);
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        let code = (selector & !3) as u32;
        if selector & !3 == 0 {
            if number == seg::SS && !(self.is_long() && self.cpl != 3 && rpl == self.cpl) {
                return self.general_protection(0);
            }
            // Null: unusable. The base stays as it is on some processors; zero is what others give.
            let access = if number == seg::SS {
                Segment::P | 0x13 | (self.cpl as u16) << 5
            } else {
                0
            };
            self.set_segment(
                number,
                Segment {
                    selector,
                    base: 0,
                    limit: 0,
                    access,
                },
            );
            return Ok(());
        }
        let segment = self.descriptor(selector, vector::GP, 0)?;
        let (dpl, kind) = (segment.dpl(), segment.access & 0x1f);
        let (is_code, writable) = (kind & 8 != 0, kind & 2 != 0);
        if kind & 0x10 == 0 {
            return self.general_protection(code);
        }
        if number == seg::SS {
            if is_code || !writable || rpl != self.cpl || dpl != self.cpl {
                return self.general_protection(code);
            }
        } else {
            let conforming = is_code && kind & 4 != 0;
            if (is_code && !writable) || (!conforming && (dpl < rpl || dpl < self.cpl)) {
                return self.general_protection(code);
            }
        }
        if segment.access & Segment::P == 0 {
            let fault = if number == seg::SS { vector::SS } else { vector::NP };
            return self.raise_code(fault, code);
        }
        self.set_segment(number, segment);
        Ok(())
    }
}

/// MOV to a segment register; ends its block.
pub(crate) fn mov_to(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector: u16 = cpu.source(op)?;
    let number = (op.a % 6) as usize;
    cpu.load_segment(number, selector)?;
    if number == seg::SS {
        cpu.shadow = Shadow::StackSegment;
        cpu.request_check();
    }
    super::misc::advance(cpu, op)
}

/// MOV from a segment register to a register of width `W`.
pub(crate) fn mov_from<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.seg[(op.b % 6) as usize].selector as u64;
    W::set(cpu, op.a, <W as Width>::from(selector));
    Ok(())
}

/// MOV from a segment register to memory.
pub(crate) fn mov_from_m(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.seg[(op.b % 6) as usize].selector;
    cpu.store(cpu.address(op), selector)
}

/// POP of a segment register; ends its block.
pub(crate) fn pop<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.load::<W>(cpu.stack_top())?.zext() as u16;
    let number = (op.a % 6) as usize;
    cpu.load_segment(number, selector)?;
    cpu.drop_stack(W::SIZE as u64);
    if number == seg::SS {
        cpu.shadow = Shadow::StackSegment;
        cpu.request_check();
    }
    super::misc::advance(cpu, op)
}

/// LDS, LES, LFS, LGS, LSS: register `a` from the offset, segment `NUMBER` from what follows.
pub(crate) fn load_far<W: Gpr, const NUMBER: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    let addr = cpu.address(op);
    let offset: W = cpu.load(addr)?;
    let selector: u16 = cpu.load(addr.wrapping_add(W::SIZE as u64))?;
    cpu.load_segment(NUMBER, selector)?;
    W::set(cpu, op.a, offset);
    super::misc::advance(cpu, op)
}

/// SWAPGS.
pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.privileged()?;
    std::mem::swap(&mut cpu.msrs.kernel_gs_base, &mut cpu.seg_base[seg::GS]);
    cpu.seg[seg::GS].base = cpu.seg_base[seg::GS];
    Ok(())
}

fn fsgsbase(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        cpu.undefined()
    } else {
        Ok(())
    }
}

/// RDFSBASE and RDGSBASE.
pub(crate) fn read_base<W: Gpr, const NUMBER: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    fsgsbase(cpu)?;
    W::set(cpu, op.a, <W as Width>::from(cpu.seg_base[NUMBER]));
    Ok(())
}

/// WRFSBASE and WRGSBASE.
pub(crate) fn write_base<W: Gpr, const NUMBER: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    fsgsbase(cpu)?;
    let base = W::get(cpu, op.a).zext();
    if !canonical(base) {
        return cpu.general_protection(0);
    }
    cpu.seg_base[NUMBER] = base;
    cpu.seg[NUMBER].base = base;
    Ok(())
}

fn system_segment(cpu: &mut Cpu, op: &Op, kind: u16) -> Result<(Segment, u64), Stop> {
    cpu.privileged()?;
    let selector: u16 = if op.has_memory() {
        cpu.load(cpu.address(op))?
    } else {
        u16::get(cpu, op.a)
    };
    if selector & !3 == 0 && kind == 2 {
        return Ok((
            Segment {
                selector,
                ..Segment::default()
            },
            0,
        ));
    }
    let code = (selector & !3) as u32;
    if selector & !3 == 0 || selector & 4 != 0 {
        return cpu.general_protection(code);
    }
    let (raw, at) = cpu.raw_descriptor(selector, vector::GP, 0)?;
    let mut segment = unpack(selector, raw);
    if segment.access & 0x1f != kind {
        return cpu.general_protection(code);
    }
    if segment.access & Segment::P == 0 {
        return cpu.raise_code(vector::NP, code);
    }
    if cpu.efer & efer::LMA != 0 {
        let high = cpu.load_system(at.wrapping_add(8))?;
        segment.base |= high << 32;
        // Where a descriptor of 8 bytes has its type, there is none.
        if !canonical(segment.base) || high >> 40 & 0x1f != 0 {
            return cpu.general_protection(code);
        }
    }
    Ok((segment, at))
}

/// LLDT.
pub(crate) fn lldt(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.ldtr = system_segment(cpu, op, 2)?.0;
    Ok(())
}

/// LTR marks the descriptor busy.
pub(crate) fn ltr(cpu: &mut Cpu, op: &Op) -> Flow {
    /// The byte of a descriptor with its type.
    const ACCESS: u64 = 5;
    /// In the type: the task is not available.
    const BUSY: u8 = 1 << 1;
    let (mut segment, at) = system_segment(cpu, op, 9)?;
    cpu.set_system_bits(at.wrapping_add(ACCESS), BUSY)?;
    segment.access |= 2;
    cpu.tr = segment;
    Ok(())
}

/// SLDT and STR to a register of width `W`.
pub(crate) fn store_selector<W: Gpr, const TASK: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    super::system::may_look(cpu)?;
    let selector = if TASK { cpu.tr.selector } else { cpu.ldtr.selector };
    if op.has_memory() {
        return cpu.store(cpu.address(op), selector);
    }
    W::set(cpu, op.a, <W as Width>::from(selector as u64));
    Ok(())
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    let old = cpu.flags.bits() & !rflag::ZF;
    cpu.flags = Flags::from_bits(old | if zf { rflag::ZF } else { 0 });
}

/// The descriptor that LAR, LSL, VERR and VERW look at; a fault on the way means "not visible".
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<(Segment, u64)>, Stop> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    match cpu.raw_descriptor(selector, vector::GP, 0) {
        Ok((raw, _)) => {
            let segment = unpack(selector, raw);
            let conforming = segment.access & 0x1c == 0x1c;
            let reachable = conforming || segment.dpl() >= cpu.cpl.max((selector & 3) as u8);
            Ok(reachable.then_some((segment, raw)))
        }
        Err(_) if cpu.fault.vector == vector::GP => Ok(None),
        Err(stop) => Err(stop),
    }
}

/// LAR.
pub(crate) fn lar<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.source::<u16>(op)?;
    let found = visible(cpu, selector)?
        .filter(|(segment, _)| segment.access & 0x10 != 0 || matches!(segment.access & 0xf, 2 | 9 | 11 | 12));
    if let Some((_, raw)) = found {
        W::set(cpu, op.a, <W as Width>::from(raw >> 32 & 0x00ff_ff00));
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// LSL.
pub(crate) fn lsl<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.source::<u16>(op)?;
    let found = visible(cpu, selector)?
        .filter(|(segment, _)| segment.access & 0x10 != 0 || matches!(segment.access & 0xf, 2 | 9 | 11));
    if let Some((segment, _)) = found {
        W::set(cpu, op.a, <W as Width>::from(segment.limit as u64));
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// VERR and VERW.
pub(crate) fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector: u16 = if op.has_memory() {
        cpu.load(cpu.address(op))?
    } else {
        u16::get(cpu, op.a)
    };
    let allowed = visible(cpu, selector)?.is_some_and(|(segment, _)| {
        let (is_code, second) = (segment.access & 8 != 0, segment.access & 2 != 0);
        segment.access & 0x10 != 0
            && if WRITE {
                !is_code && second
            } else {
                !is_code || second
            }
    });
    set_zf(cpu, allowed);
    Ok(())
}

/// ARPL: raises the requested privilege level of the first selector to that of the second.
pub(crate) fn arpl(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.is_real() {
        return cpu.undefined();
    }
    let other = u16::get(cpu, op.b) & 3;
    let selector: u16 = if op.has_memory() {
        cpu.load(cpu.address(op))?
    } else {
        u16::get(cpu, op.a)
    };
    let raises = selector & 3 < other;
    if raises {
        let raised = selector & !3 | other;
        if op.has_memory() {
            cpu.store(cpu.address(op), raised)?;
        } else {
            u16::set(cpu, op.a, raised);
        }
    }
    set_zf(cpu, raises);
    Ok(())
}
