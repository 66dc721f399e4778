//! System calls without a gate: SYSCALL and SYSRET, which 64-bit programs use, and SYSENTER and SYSEXIT,
//! which 32-bit programs use (Intel SDM vol. 3, §5.8.7 and §5.8.8).

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::canonical;
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Segment, efer, reg, seg};

/// Access rights that these instructions give: present, writable or readable, accessed, 4 GiB.
const FLAT_DATA: u16 = 0xc093;
const FLAT_CODE32: u16 = 0xc09b;
const FLAT_CODE64: u16 = 0xa09b;
const DPL3: u16 = 3 << 5;

const fn flat(selector: u16, access: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    }
}

impl Cpu {
    /// Loads CS and SS with flat segments, SS first because CS sets the mode.
    fn set_flat_segments(&mut self, cs: Segment, ss: Segment) {
        self.seg[seg::SS] = ss;
        self.seg_base[seg::SS] = 0;
        self.set_segment(seg::CS, cs);
    }
}

/// SYSCALL.
pub(crate) fn syscall(cpu: &mut Cpu, op: &Op) -> Flow {
    // Intel's processors know it in 64-bit code only.
    if cpu.efer & efer::SCE == 0 || !cpu.is_long() {
        return cpu.undefined();
    }
    cpu.gpr[reg::RCX] = cpu.next_ip(op);
    cpu.gpr[reg::R11] = cpu.rflags() & !rflag::RF;
    let flags = cpu.rflags() & !(cpu.msrs.fmask | rflag::RF);
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.set_rflags(flags);
    cpu.set_flat_segments(
        flat(selector, FLAT_CODE64),
        flat(selector.wrapping_add(8), FLAT_DATA),
    );
    cpu.rip = cpu.msrs.lstar;
    if flags & rflag::TF == 0 {
        cpu.debug.enter();
    }
    Err(Stop::Branch)
}

/// SYSRET, to 64-bit code or to compatibility mode as `W` says.
pub(crate) fn sysret<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.efer & efer::SCE == 0 || !cpu.is_long() {
        return cpu.undefined();
    }
    cpu.privileged()?;
    let to = cpu.gpr[reg::RCX];
    let selector = (cpu.msrs.star >> 48) as u16 | 3;
    let cs = if W::BITS == 64 {
        if !canonical(to) {
            return cpu.general_protection(0);
        }
        flat(selector.wrapping_add(16) | 3, FLAT_CODE64 | DPL3)
    } else {
        flat(selector, FLAT_CODE32 | DPL3)
    };
    let flags = cpu.gpr[reg::R11] & !(rflag::RF | rflag::VM) & 0x3f_7fd7 | rflag::FIXED;
    cpu.set_rflags(flags);
    cpu.set_flat_segments(cs, flat(selector.wrapping_add(8) | 3, FLAT_DATA | DPL3));
    cpu.rip = to & cpu.rip_mask;
    cpu.request_check_if_enabled();
    Err(Stop::Branch)
}

/// The selector in IA32_SYSENTER_CS, which must not be null; real mode has none of this.
fn sysenter_selector(cpu: &mut Cpu) -> Result<u16, Stop> {
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    if selector == 0 || cpu.is_real() {
        return cpu.general_protection(0);
    }
    Ok(selector)
}

/// SYSENTER. Unlike SYSCALL it remembers nothing: the program says where it wants to return to.
pub(crate) fn sysenter(cpu: &mut Cpu, _: &Op) -> Flow {
    let selector = sysenter_selector(cpu)?;
    let long = cpu.efer & efer::LMA != 0;
    let (code, mask) = if long {
        (FLAT_CODE64, u64::MAX)
    } else {
        (FLAT_CODE32, 0xffff_ffff)
    };
    cpu.set_rflags(cpu.rflags() & !(rflag::IF | rflag::VM | rflag::RF));
    cpu.set_flat_segments(flat(selector, code), flat(selector.wrapping_add(8), FLAT_DATA));
    cpu.gpr[reg::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    Err(Stop::Branch)
}

/// SYSEXIT to RDX with the stack in RCX; to 64-bit or to 32-bit code as `W` says.
pub(crate) fn sysexit<W: Gpr>(cpu: &mut Cpu, _: &Op) -> Flow {
    let selector = sysenter_selector(cpu)?;
    cpu.privileged()?;
    let (to, stack) = (cpu.gpr[reg::RDX], cpu.gpr[reg::RCX]);
    let (offset, code) = if W::BITS == 64 {
        if !canonical(to) || !canonical(stack) {
            return cpu.general_protection(0);
        }
        (32, FLAT_CODE64)
    } else {
        (16, FLAT_CODE32)
    };
    let cs = flat(selector.wrapping_add(offset) | 3, code | DPL3);
    let ss = flat(selector.wrapping_add(offset + 8) | 3, FLAT_DATA | DPL3);
    cpu.set_flat_segments(cs, ss);
    cpu.gpr[reg::RSP] = if W::BITS == 64 { stack } else { stack as u32 as u64 };
    cpu.rip = to & cpu.rip_mask;
    Err(Stop::Branch)
}
