//! Control: words, environments, whole states.

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::Flow;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::simd::operand::{
    check_alignment, enter_fpu, enter_wait, fpu_pending, load_bytes, load16, set_xmm, store_bytes, store16,
    xmm,
};
use crate::x86_64::x87::{Fpu, Fxsave, Width};
use iced_x86::Code;

/// The handler of a code of this table.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => |cpu, _op| {
            enter_wait(cpu)?;
            fpu_pending(cpu)
        },
        Code::Fninit => |cpu, _op| {
            enter_fpu(cpu)?;
            cpu.x87.init();
            Ok(())
        },
        Code::Fnclex => |cpu, _op| {
            enter_fpu(cpu)?;
            cpu.x87.clear_exceptions();
            Ok(())
        },
        // No operation since the 387.
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => |cpu, _op| enter_fpu(cpu),
        Code::Fldcw_m2byte => |cpu, op| {
            enter_fpu(cpu)?;
            fpu_pending(cpu)?;
            let control = load16(cpu, op)?;
            cpu.x87.set_control(control);
            Ok(())
        },
        Code::Fnstcw_m2byte => |cpu, op| {
            enter_fpu(cpu)?;
            store16(cpu, op, cpu.x87.control())
        },
        Code::Fnstsw_m2byte => |cpu, op| {
            enter_fpu(cpu)?;
            store16(cpu, op, cpu.x87.status())
        },
        Code::Fnstsw_AX => |cpu, op| {
            enter_fpu(cpu)?;
            u16::set(cpu, op.a, cpu.x87.status());
            Ok(())
        },
        Code::Fnstenv_m14byte => |cpu, op| store_environment(cpu, op, Width::Bits16),
        Code::Fnstenv_m28byte => |cpu, op| store_environment(cpu, op, Width::Bits32),
        Code::Fldenv_m14byte => |cpu, op| load_environment(cpu, op, Width::Bits16),
        Code::Fldenv_m28byte => |cpu, op| load_environment(cpu, op, Width::Bits32),
        Code::Fnsave_m94byte => |cpu, op| save(cpu, op, Width::Bits16),
        Code::Fnsave_m108byte => |cpu, op| save(cpu, op, Width::Bits32),
        Code::Frstor_m94byte => |cpu, op| restore(cpu, op, Width::Bits16),
        Code::Frstor_m108byte => |cpu, op| restore(cpu, op, Width::Bits32),
        Code::Fxsave_m512byte => |cpu, op| fxsave(cpu, op, false),
        Code::Fxsave64_m512byte => |cpu, op| fxsave(cpu, op, true),
        Code::Fxrstor_m512byte => |cpu, op| fxrstor(cpu, op, false),
        Code::Fxrstor64_m512byte => |cpu, op| fxrstor(cpu, op, true),
        _ => return None,
    })
}

fn store_environment(cpu: &mut Cpu, op: &Op, width: Width) -> Flow {
    enter_fpu(cpu)?;
    let mut next = cpu.x87.clone();
    let image = next.store_environment(width);
    store_bytes(cpu, op, &image[..width.environment_size()])?;
    cpu.x87 = next;
    Ok(())
}

fn load_environment(cpu: &mut Cpu, op: &Op, width: Width) -> Flow {
    enter_fpu(cpu)?;
    fpu_pending(cpu)?;
    let mut image = [0; 28];
    load_bytes(cpu, op, &mut image[..width.environment_size()])?;
    cpu.x87.load_environment(&image, width);
    Ok(())
}

fn save(cpu: &mut Cpu, op: &Op, width: Width) -> Flow {
    enter_fpu(cpu)?;
    let mut next = cpu.x87.clone();
    let image = next.save(width);
    store_bytes(cpu, op, &image[..width.save_size()])?;
    cpu.x87 = next;
    Ok(())
}

fn restore(cpu: &mut Cpu, op: &Op, width: Width) -> Flow {
    enter_fpu(cpu)?;
    fpu_pending(cpu)?;
    let mut image = [0; 108];
    load_bytes(cpu, op, &mut image[..width.save_size()])?;
    cpu.x87.restore(&image, width);
    Ok(())
}

/// Where MXCSR, the x87 registers and the XMM registers are in an FXSAVE area.
const MXCSR_AT: usize = 24;
const MASK_AT: usize = 28;
const REGISTERS_AT: usize = 32;
const XMM_AT: usize = 160;
/// The part of the area that is defined; the rest is left alone.
const AREA: usize = 416;

/// XMM registers outside 64-bit mode are eight.
fn xmm_count(cpu: &Cpu) -> u8 {
    if cpu.is_long() { 16 } else { 8 }
}

/// The area must be aligned; unlike other aligned operands, a non-canonical address is found first.
fn check_area(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = cpu.address(op);
    if !crate::x86_64::exception::canonical(address) {
        cpu.load::<u8>(address)?;
    }
    check_alignment(cpu, op, 16)
}

fn fxsave(cpu: &mut Cpu, op: &Op, rex_w: bool) -> Flow {
    enter_fpu(cpu)?;
    check_area(cpu, op)?;
    let mut area = [0; AREA];
    let Fxsave { header, registers } = cpu.x87.to_fxsave(rex_w);
    area[..24].copy_from_slice(&header);
    area[MXCSR_AT..MASK_AT].copy_from_slice(&cpu.mxcsr.bits().to_le_bytes());
    area[MASK_AT..REGISTERS_AT].copy_from_slice(&Mxcsr::WRITABLE.to_le_bytes());
    for (slot, bits) in area[REGISTERS_AT..XMM_AT].chunks_exact_mut(16).zip(registers) {
        slot.copy_from_slice(&bits.to_le_bytes());
    }
    let count = xmm_count(cpu);
    for (slot, i) in area[XMM_AT..].chunks_exact_mut(16).zip(0..count) {
        slot.copy_from_slice(&xmm(cpu, i).to_le_bytes());
    }
    store_bytes(cpu, op, &area[..XMM_AT + 16 * count as usize])
}

fn fxrstor(cpu: &mut Cpu, op: &Op, rex_w: bool) -> Flow {
    enter_fpu(cpu)?;
    check_area(cpu, op)?;
    let mut area = [0; AREA];
    load_bytes(cpu, op, &mut area)?;
    let slot = |at: usize| u128::from_le_bytes(std::array::from_fn(|i| area[at + i]));
    let Some(control) = Mxcsr::from_bits((slot(16) >> 64) as u32) else {
        return cpu.general_protection(0);
    };
    let mut image = Fxsave {
        header: [0; 24],
        registers: [0; 8],
    };
    image.header.copy_from_slice(&area[..24]);
    for (i, register) in image.registers.iter_mut().enumerate() {
        *register = slot(REGISTERS_AT + 16 * i);
    }
    cpu.x87 = Fpu::from_fxsave(&image, rex_w);
    cpu.mxcsr = control;
    for i in 0..xmm_count(cpu) {
        set_xmm(cpu, i, slot(XMM_AT + 16 * i as usize));
    }
    Ok(())
}
