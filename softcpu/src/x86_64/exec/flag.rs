//! Instructions on single flags.

use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, rflag};
use crate::x86_64::op::Flow;
use crate::x86_64::state::Shadow;

pub(crate) fn clc(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.flags = cpu.flags.with_carry(false);
    Ok(())
}

pub(crate) fn stc(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.flags = cpu.flags.with_carry(true);
    Ok(())
}

/// SALC, which no manual of Intel's names and all their processors have outside of 64-bit code: AL from CF.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Flow {
    let value = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set_byte(0, value);
    Ok(())
}

pub(crate) fn cmc(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.flags = cpu.flags.with_carry(!cpu.flags.cf());
    Ok(())
}

pub(crate) fn cld(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.rflags &= !rflag::DF;
    Ok(())
}

pub(crate) fn std(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.rflags |= rflag::DF;
    Ok(())
}

pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> Flow {
    let bits = cpu.flags.bits() | rflag::FIXED;
    cpu.set_byte(1, bits as u8);
    Ok(())
}

pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> Flow {
    let bits = cpu.flags.bits() & !0xff | cpu.byte(1) as u64;
    cpu.flags = Flags::from_bits(bits);
    Ok(())
}

/// Interrupts may be disabled at CPL 0, or with an I/O privilege level that allows it.
fn may_change_if(cpu: &mut Cpu) -> Flow {
    if cpu.cpl as u64 <= cpu.rflags >> 12 & 3 {
        Ok(())
    } else {
        cpu.general_protection(0)
    }
}

/// CLI starts its block, so that `sti; nop; cli` has a place where interrupts come in.
pub(crate) fn cli(cpu: &mut Cpu, _: &Op) -> Flow {
    may_change_if(cpu)?;
    cpu.rflags &= !rflag::IF;
    Ok(())
}

/// STI ends its block.
pub(crate) fn sti(cpu: &mut Cpu, op: &Op) -> Flow {
    may_change_if(cpu)?;
    if cpu.rflags & rflag::IF == 0 {
        cpu.rflags |= rflag::IF;
        cpu.shadow = Shadow::Sti;
        cpu.request_check_if_enabled();
    }
    super::misc::advance(cpu, op)
}

/// CLAC and STAC.
pub(crate) fn set_ac<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cpl != 0 {
        return cpu.undefined();
    }
    cpu.rflags = if ON {
        cpu.rflags | rflag::AC
    } else {
        cpu.rflags & !rflag::AC
    };
    cpu.select_bank();
    Ok(())
}
