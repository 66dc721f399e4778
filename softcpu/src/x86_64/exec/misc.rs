//! Undefined instructions, software interrupts, CPUID, HLT, time stamps and random numbers.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::cpuid;
use crate::x86_64::exception::{Source, vector};
use crate::x86_64::flags::{Flags, Width, rflag};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{cr4, reg};

/// Ends the block after this instruction.
#[inline(always)]
pub(crate) fn advance(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = cpu.next_ip(op);
    Err(Stop::Branch)
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.undefined()
}

/// #GP for an instruction of more than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.general_protection(0)
}

/// INT n and INT3 (`imm` is the vector), INTO.
pub(crate) fn int(cpu: &mut Cpu, op: &Op) -> Flow {
    software(cpu, op, op.imm as u8)
}

pub(crate) fn int3(cpu: &mut Cpu, op: &Op) -> Flow {
    software(cpu, op, vector::BP)
}

pub(crate) fn into(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.flags.of() {
        software(cpu, op, vector::OF)
    } else {
        advance(cpu, op)
    }
}

/// A trap: the handler returns to the next instruction. Where it cannot be entered, this one faults.
fn software(cpu: &mut Cpu, op: &Op, vector: u8) -> Flow {
    cpu.rip = cpu.next_ip(op);
    let result = cpu.deliver(vector, None, Source::Software);
    entered(cpu, op, result)
}

/// INT1, a debug exception whatever the gate's privilege level.
pub(crate) fn int1(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = cpu.next_ip(op);
    let result = cpu.raise_int1();
    entered(cpu, op, result)
}

fn entered(cpu: &mut Cpu, op: &Op, result: Flow) -> Flow {
    if result.is_err() {
        cpu.rip = cpu.ip(op);
    } else {
        cpu.debug.enter();
    }
    result.and(Err(Stop::Branch))
}

pub(crate) fn hlt(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    cpu.halted = true;
    cpu.request_check();
    advance(cpu, op)
}

pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op) -> Flow {
    let leaf = cpuid::leaf(cpu, cpu.gpr[reg::RAX] as u32, cpu.gpr[reg::RCX] as u32);
    for (register, value) in [reg::RAX, reg::RBX, reg::RCX, reg::RDX].into_iter().zip(leaf) {
        cpu.gpr[register] = value as u64;
    }
    Ok(())
}

/// VMCALL and VMMCALL: CPUID's hypervisor leaves are KVM's, and a guest may ask it (Linux,
/// Documentation/virt/kvm/x86/hypercalls.rst). No call is known; programs may not ask at all.
pub(crate) fn hypercall(cpu: &mut Cpu, _: &Op) -> Flow {
    const NOT_PERMITTED: i64 = -1;
    const UNKNOWN: i64 = -1000;
    let result = if cpu.cpl == 0 { UNKNOWN } else { NOT_PERMITTED } as u64;
    cpu.gpr[reg::RAX] = if cpu.is_long() {
        result
    } else {
        result as u32 as u64
    };
    Ok(())
}

fn time_allowed(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        cpu.general_protection(0)
    } else {
        Ok(())
    }
}

pub(crate) fn rdtsc(cpu: &mut Cpu, op: &Op) -> Flow {
    time_allowed(cpu)?;
    let now = cpu.tsc(op.idx as u64);
    cpu.gpr[reg::RAX] = now as u32 as u64;
    cpu.gpr[reg::RDX] = now >> 32;
    Ok(())
}

pub(crate) fn rdtscp(cpu: &mut Cpu, op: &Op) -> Flow {
    rdtsc(cpu, op)?;
    cpu.gpr[reg::RCX] = cpu.msrs.tsc_aux as u32 as u64;
    Ok(())
}

/// PAUSE: the other processors may be waiting for this host core.
pub(crate) fn pause(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.platform.processors.is_shared() {
        cpu.spin = cpu.spin.wrapping_add(1);
        if cpu.spin.is_multiple_of(64) {
            std::thread::yield_now();
        }
    }
    advance(cpu, op)
}

/// RDRAND and RDSEED. Repeatable when time is.
pub(crate) fn random<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.random();
    W::set(cpu, op.a, <W as Width>::from(value));
    cpu.flags = Flags::from_bits(rflag::CF);
    Ok(())
}

/// MFENCE: the one fence that in-order execution does not already give.
pub(crate) fn mfence(_: &mut Cpu, _: &Op) -> Flow {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}
