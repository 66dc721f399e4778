//! Transfers between segments and privilege levels: far jumps, calls and returns, IRET.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::{canonical, vector};
use crate::x86_64::flags::{Width, rflag};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Segment, efer, reg, seg};

impl Cpu {
    /// Checks a code segment for a far jump, call or return to privilege `cpl`.
    fn code_segment(&mut self, selector: u16, cpl: u8, returning: bool) -> Result<Segment, Stop> {
        let segment = self.descriptor(selector, vector::GP, 0)?;
        let code = (selector & !3) as u32;
        let conforming = segment.access & 4 != 0;
        let privilege = if returning || !conforming {
            segment.dpl() == cpl || conforming && segment.dpl() <= cpl
        } else {
            segment.dpl() <= cpl
        };
        let both = segment.access & Segment::L != 0
            && segment.access & Segment::D != 0
            && self.efer & efer::LMA != 0;
        if segment.access & 0x18 != 0x18 || !privilege || both {
            return self.general_protection(code);
        }
        if segment.access & Segment::P == 0 {
            return self.raise_code(vector::NP, code);
        }
        Ok(Segment {
            selector: selector & !3 | cpl as u16,
            ..segment
        })
    }

    /// Far jump to `selector:offset`.
    fn jump_far(&mut self, selector: u16, offset: u64) -> Flow {
        if self.is_real() {
            self.set_real_segment(seg::CS, selector);
        } else {
            let segment = self.code_segment(selector, self.cpl, false)?;
            let to_long = segment.access & Segment::L != 0 && self.efer & efer::LMA != 0;
            if to_long && !canonical(offset) {
                return self.general_protection(0);
            }
            self.set_segment(seg::CS, segment);
        }
        self.rip = offset & self.rip_mask;
        Err(Stop::Branch)
    }
}

fn far_pointer<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    if !op.has_memory() {
        return Ok(((op.imm >> 32) as u16, op.imm as u32 as u64));
    }
    let addr = cpu.address(op);
    let offset = cpu.load::<W>(addr)?.zext();
    Ok((cpu.load(addr.wrapping_add(W::SIZE as u64))?, offset))
}

/// JMP far.
pub(crate) fn jmp<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (selector, offset) = far_pointer::<W>(cpu, op)?;
    cpu.jump_far(selector, offset)
}

/// CALL far, to a code segment.
pub(crate) fn call<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (selector, offset) = far_pointer::<W>(cpu, op)?;
    let (sp, next) = (cpu.gpr[reg::RSP], cpu.next_ip(op));
    let cs = cpu.seg[seg::CS].selector as u64;
    cpu.push(<W as Width>::from(cs))?;
    let result = cpu
        .push(<W as Width>::from(next))
        .and_then(|()| cpu.jump_far(selector, offset));
    if result == Err(Stop::Fault) || result == Err(Stop::Replay) {
        cpu.gpr[reg::RSP] = sp;
    }
    result
}

/// The rest of RETF and IRET: to another privilege level the stack pointer and SS follow.
fn return_to<W: Gpr>(
    cpu: &mut Cpu,
    selector: u16,
    offset: u64,
    at: u64,
    extra: u64,
    flags: Option<u64>,
) -> Flow {
    let rpl = (selector & 3) as u8;
    if rpl < cpu.cpl {
        return cpu.general_protection((selector & !3) as u32);
    }
    let cs = cpu.code_segment(selector, rpl, true)?;
    let to_long = cs.access & Segment::L != 0 && cpu.efer & efer::LMA != 0;
    if to_long && !canonical(offset) {
        return cpu.general_protection(0);
    }
    // IRET in 64-bit code always pops SS:RSP.
    let pops_stack = rpl != cpu.cpl || (flags.is_some() && cpu.is_long());
    let stack = match pops_stack {
        true => {
            let sp = cpu.load::<W>(cpu.stack_address(at + extra))?.zext();
            let ss = cpu.stack_address(at + extra + W::SIZE as u64);
            let ss = cpu.load::<W>(ss)?.zext() as u16;
            Some((sp, stack_segment(cpu, ss, rpl, to_long)?))
        }
        false => None,
    };
    // From here on nothing fails.
    let old_cpl = cpu.cpl;
    if let Some(flags) = flags {
        pop_flags::<W>(cpu, flags);
    }
    match stack {
        Some((sp, ss)) => {
            cpu.seg[seg::SS] = ss;
            cpu.seg_base[seg::SS] = ss.base;
            cpu.set_segment(seg::CS, cs);
            cpu.gpr[reg::RSP] = if W::BITS == 64 { sp } else { sp & cpu.stack_mask };
            if flags.is_none() {
                cpu.drop_stack(extra);
            }
        }
        None => {
            cpu.set_stack(at + extra);
            cpu.set_segment(seg::CS, cs);
        }
    }
    if rpl != old_cpl {
        hide_data_segments(cpu, rpl);
    }
    cpu.rip = offset & cpu.rip_mask;
    Err(Stop::Branch)
}

/// Checks the stack segment for a return to privilege `rpl`. In 64-bit code of the system it may be null.
fn stack_segment(cpu: &mut Cpu, ss: u16, rpl: u8, to_long: bool) -> Result<Segment, Stop> {
    if ss & !3 == 0 && to_long && rpl != 3 {
        return Ok(Segment {
            selector: ss,
            base: 0,
            limit: 0,
            access: Segment::P | 0x13 | (rpl as u16) << 5,
        });
    }
    let segment = cpu.descriptor(ss, vector::GP, 0)?;
    if (ss & 3) as u8 != rpl || segment.dpl() != rpl || segment.access & 0x1a != 0x12 {
        return cpu.general_protection((ss & !3) as u32);
    }
    if segment.access & Segment::P == 0 {
        return cpu.raise_code(vector::SS, (ss & !3) as u32);
    }
    Ok(segment)
}

/// IRET's RFLAGS: what the privilege that is left, and the operand's size, let it change.
fn pop_flags<W: Gpr>(cpu: &mut Cpu, flags: u64) {
    let mut writable = rflag::STATUS | rflag::TF | rflag::DF | rflag::NT;
    if W::BITS > 16 {
        writable |= rflag::RF | rflag::AC | rflag::ID;
    }
    if cpu.cpl == 0 {
        writable |= rflag::IOPL;
    }
    if cpu.cpl as u64 <= cpu.rflags >> 12 & 3 {
        writable |= rflag::IF;
    }
    if !cpu.debug.watches_code() {
        // Nothing asks for it, and nothing would clear it.
        writable &= !rflag::RF;
    }
    let old = cpu.rflags() & !rflag::RF;
    cpu.set_rflags(old & !writable | flags & writable);
}

/// Data segments that code of privilege `rpl` may not see become null.
fn hide_data_segments(cpu: &mut Cpu, rpl: u8) {
    for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let segment = cpu.seg[number];
        let conforming = segment.access & 0x1c == 0x1c;
        if segment.selector & !3 != 0 && !conforming && segment.dpl() < rpl {
            let null = Segment {
                base: segment.base,
                ..Segment::default()
            };
            cpu.set_segment(number, null);
        }
    }
}

/// RETF; `imm` bytes are dropped on both stacks.
pub(crate) fn retf<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (sp, size) = (cpu.gpr[reg::RSP], W::SIZE as u64);
    let offset = cpu.load::<W>(cpu.stack_address(sp))?.zext();
    let selector = cpu.load::<W>(cpu.stack_address(sp.wrapping_add(size)))?.zext() as u16;
    let at = sp.wrapping_add(2 * size);
    if cpu.is_real() {
        cpu.set_stack(at.wrapping_add(op.imm & 0xffff));
        cpu.set_real_segment(seg::CS, selector);
        cpu.rip = offset & cpu.rip_mask;
        return Err(Stop::Branch);
    }
    return_to::<W>(cpu, selector, offset, at, op.imm & 0xffff, None)
}

/// Refuses the returns of protected mode that are not here: to a task, and to virtual-8086 mode.
fn refuse_return(cpu: &mut Cpu, flags: u64) -> Flow {
    if cpu.rflags & rflag::NT != 0 {
        // The segment names the task that was left; usually it is none.
        let link = cpu.load_system(cpu.tr.base)? as u32 & 0xfffc;
        if link != 0 {
            cpu.report("a task switch");
        }
        return cpu.raise_code(vector::TS, link);
    }
    if cpu.cpl == 0 && flags & rflag::VM != 0 {
        cpu.report("virtual-8086 mode");
        return cpu.general_protection(0);
    }
    Ok(())
}

/// IRET.
pub(crate) fn iret<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let (sp, size) = (cpu.gpr[reg::RSP], W::SIZE as u64);
    let offset = cpu.load::<W>(cpu.stack_address(sp))?.zext();
    let selector = cpu.load::<W>(cpu.stack_address(sp.wrapping_add(size)))?.zext() as u16;
    let flags = cpu
        .load::<W>(cpu.stack_address(sp.wrapping_add(2 * size)))?
        .zext();
    let at = sp.wrapping_add(3 * size);
    if cpu.efer & efer::LMA != 0 && cpu.rflags & rflag::NT != 0 {
        // A return from a nested task, of which long mode has none.
        return cpu.general_protection(0);
    }
    if !cpu.is_real() && cpu.efer & efer::LMA == 0 {
        refuse_return(cpu, flags)?;
    }
    if cpu.is_real() {
        cpu.set_stack(at);
        cpu.set_real_segment(seg::CS, selector);
        let old = cpu.rflags();
        cpu.set_rflags(old & !0xffff | flags & 0xffff);
        cpu.rip = offset & cpu.rip_mask;
    } else {
        let result = return_to::<W>(cpu, selector, offset, at, 0, Some(flags));
        if result != Err(Stop::Branch) {
            return result;
        }
    }
    if cpu.apic.end_of_nmi() {
        cpu.request_check();
    }
    cpu.request_check_if_enabled();
    Err(Stop::Branch)
}
