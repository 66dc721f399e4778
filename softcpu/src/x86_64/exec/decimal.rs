//! Adjustments after arithmetic on decimal digits, and BOUND: instructions that only 16- and 32-bit code has
//! (Intel SDM vol. 2A, AAA to AAS, DAA, DAS, BOUND).

use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::vector;
use crate::x86_64::flags::Flags;
use crate::x86_64::op::Flow;

const AL: u8 = 0;
const AH: u8 = 1;
const AX: u8 = 0;

/// True where the low digit is none, or an addition carried out of it.
fn low_digit_is_off(cpu: &Cpu) -> bool {
    cpu.byte(AL) & 0xf > 9 || cpu.flags.af()
}

/// AAA and AAS: one digit in AL, what it carries or borrows in AH.
fn adjust_unpacked(cpu: &mut Cpu, step: fn(u16) -> u16) -> Flow {
    let off = low_digit_is_off(cpu);
    if off {
        let ax = <u16 as Gpr>::get(cpu, AX);
        <u16 as Gpr>::set(cpu, AX, step(ax));
    }
    let digit = cpu.byte(AL) & 0xf;
    cpu.set_byte(AL, digit);
    cpu.flags = Flags::with::<u8>(digit.into(), off, false, off);
    Ok(())
}

pub(crate) fn aaa(cpu: &mut Cpu, _: &Op) -> Flow {
    adjust_unpacked(cpu, |ax| ax.wrapping_add(0x106))
}

pub(crate) fn aas(cpu: &mut Cpu, _: &Op) -> Flow {
    adjust_unpacked(cpu, |ax| ax.wrapping_sub(0x106))
}

/// DAA and DAS: two digits in AL.
fn adjust_packed(cpu: &mut Cpu, step: fn(u8, u8) -> (u8, bool)) -> Flow {
    let (before, carried) = (cpu.byte(AL), cpu.flags.cf());
    let low = low_digit_is_off(cpu);
    let high = before > 0x99 || carried;
    let (mut al, mut carry) = (before, high);
    if low {
        let (adjusted, out) = step(al, 6);
        al = adjusted;
        carry |= out;
    }
    if high {
        al = step(al, 0x60).0;
    }
    cpu.set_byte(AL, al);
    cpu.flags = Flags::with::<u8>(al.into(), carry, false, low);
    Ok(())
}

pub(crate) fn daa(cpu: &mut Cpu, _: &Op) -> Flow {
    adjust_packed(cpu, u8::overflowing_add)
}

pub(crate) fn das(cpu: &mut Cpu, _: &Op) -> Flow {
    adjust_packed(cpu, u8::overflowing_sub)
}

/// AAM: AL in two digits of the base in `imm`.
pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Flow {
    let (al, base) = (cpu.byte(AL), op.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return cpu.raise(vector::DE);
    };
    cpu.set_byte(AH, high);
    cpu.set_byte(AL, low);
    cpu.flags = Flags::with::<u8>(low.into(), false, false, false);
    Ok(())
}

/// AAD: two digits of the base in `imm` to one number.
pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Flow {
    let high = cpu.byte(AH).wrapping_mul(op.imm as u8);
    let al = cpu.byte(AL).wrapping_add(high);
    <u16 as Gpr>::set(cpu, AX, al.into());
    cpu.flags = Flags::with::<u8>(al.into(), false, false, false);
    Ok(())
}

/// BOUND: #BR where the register is not between the two words in memory.
pub(crate) fn bound<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let at = cpu.address(op);
    let signed = |value: W| value.sext() as i64;
    let least = signed(cpu.load(at)?);
    let most = signed(cpu.load(at.wrapping_add(W::BITS as u64 / 8))?);
    if (least..=most).contains(&signed(W::get(cpu, op.a))) {
        Ok(())
    } else {
        cpu.raise(vector::BR)
    }
}
