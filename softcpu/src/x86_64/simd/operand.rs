//! Operands of vector and x87 instructions: registers, memory, and the faults on the way to them.

use super::string::Comparison;
use crate::x86_64::access::Scalar;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::vector;
use crate::x86_64::flags::{Flags, rflag};
use crate::x86_64::op::{Flow, Stop, op_flag};
use crate::x86_64::state::{cr0, cr4, reg};

/// SSE instructions are available: otherwise #UD or #NM (Intel SDM vol. 3, table 14-1).
#[inline(always)]
pub fn enter_sse(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & (cr0::EM | cr0::TS) == 0 && cpu.cr4 & cr4::OSFXSR != 0 {
        return Ok(());
    }
    sse_unavailable(cpu)
}

#[cold]
fn sse_unavailable(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0 {
        cpu.undefined()
    } else {
        cpu.raise(vector::NM)
    }
}

/// x87 instructions are available: otherwise #NM.
#[inline(always)]
pub fn enter_fpu(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & (cr0::EM | cr0::TS) == 0 {
        Ok(())
    } else {
        cpu.raise(vector::NM)
    }
}

/// WAIT raises #NM only where both MP and TS are set.
pub fn enter_wait(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        cpu.raise(vector::NM)
    } else {
        Ok(())
    }
}

/// MMX instructions are available, and no x87 exception waits.
#[inline(always)]
pub fn enter_mmx(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::EM != 0 {
        return cpu.undefined();
    }
    if cpu.cr0 & cr0::TS != 0 {
        return cpu.raise(vector::NM);
    }
    fpu_pending(cpu)
}

/// #MF where an unmasked x87 exception waits.
#[inline(always)]
pub fn fpu_pending(cpu: &mut Cpu) -> Flow {
    if cpu.x87.exception_pending() {
        cpu.raise(vector::MF)
    } else {
        Ok(())
    }
}

/// An unmasked SSE exception: #XM, or #UD where the system does not handle it.
#[cold]
pub fn simd_exception(cpu: &mut Cpu) -> Stop {
    let raised: Flow = if cpu.cr4 & cr4::OSXMMEXCPT != 0 {
        cpu.raise(vector::XM)
    } else {
        cpu.undefined()
    };
    raised.err().unwrap_or(Stop::Fault)
}

/// #GP(0) unless the memory operand is aligned.
#[inline(always)]
pub fn check_alignment(cpu: &mut Cpu, op: &Op, to: u64) -> Flow {
    if cpu.address(op) & (to - 1) == 0 {
        Ok(())
    } else {
        cpu.general_protection(0)
    }
}

/// XMM register `n`.
#[inline(always)]
pub fn xmm(cpu: &Cpu, n: u8) -> u128 {
    cpu.xmm[n as usize & 15]
}

/// Writes XMM register `n`.
#[inline(always)]
pub fn set_xmm(cpu: &mut Cpu, n: u8, value: u128) {
    cpu.xmm[n as usize & 15] = value;
}

/// MMX register `n`.
#[inline(always)]
pub fn mm(cpu: &Cpu, n: u8) -> u64 {
    cpu.x87.mmx(n as usize)
}

/// Writes MMX register `n`, and does what every MMX instruction does to the x87 unit.
#[inline(always)]
pub fn set_mm(cpu: &mut Cpu, n: u8, value: u64) {
    cpu.x87.enter_mmx();
    cpu.x87.set_mmx(n as usize, value);
}

/// What every MMX instruction does to the x87 unit.
#[inline(always)]
pub fn use_mmx(cpu: &mut Cpu) {
    cpu.x87.enter_mmx();
}

/// General register `n`, all of it.
#[inline(always)]
pub fn general(cpu: &Cpu, n: u8) -> u64 {
    cpu.gpr[n as usize & 31]
}

/// Writes general register `n`, all of it.
#[inline(always)]
pub fn set_general(cpu: &mut Cpu, n: u8, value: u64) {
    cpu.gpr[n as usize & 31] = value;
}

/// ZF, PF and CF as given; OF, SF and AF are cleared.
#[inline]
pub fn set_flags(cpu: &mut Cpu, zero: bool, parity: bool, carry: bool) {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    cpu.flags = Flags::from_bits(bit(zero, rflag::ZF) | bit(parity, rflag::PF) | bit(carry, rflag::CF));
}

/// The flags of a string comparison; PF and AF are cleared.
pub fn set_string_flags(cpu: &mut Cpu, comparison: &Comparison) {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    let Comparison {
        carry,
        zero,
        sign,
        overflow,
        ..
    } = *comparison;
    cpu.flags = Flags::from_bits(
        bit(zero, rflag::ZF) | bit(carry, rflag::CF) | bit(sign, rflag::SF) | bit(overflow, rflag::OF),
    );
}

macro_rules! memory {
    ($($load:ident $store:ident $t:ty;)*) => {$(
        #[doc = concat!("Reads a `", stringify!($t), "` memory operand.")]
        #[inline(always)]
        pub fn $load(cpu: &mut Cpu, op: &Op) -> Result<$t, Stop> {
            let address = cpu.address(op);
            cpu.load(address)
        }

        #[doc = concat!("Writes a `", stringify!($t), "` memory operand.")]
        #[inline(always)]
        pub fn $store(cpu: &mut Cpu, op: &Op, value: $t) -> Flow {
            let address = cpu.address(op);
            cpu.store(address, value)
        }
    )*};
}

memory! {
    load8 store8 u8;
    load16 store16 u16;
    load32 store32 u32;
    load64 store64 u64;
    load128 store128 u128;
}

/// Reads an aligned 128-bit memory operand.
#[inline(always)]
pub fn load128_aligned(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    check_alignment(cpu, op, 16)?;
    load128(cpu, op)
}

/// Writes an aligned 128-bit memory operand.
#[inline(always)]
pub fn store128_aligned(cpu: &mut Cpu, op: &Op, value: u128) -> Flow {
    check_alignment(cpu, op, 16)?;
    store128(cpu, op, value)
}

/// Reads an 80-bit memory operand.
pub fn load80(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let mut bytes = [0; 16];
    load_bytes(cpu, op, &mut bytes[..10])?;
    Ok(u128::from_le_bytes(bytes))
}

/// Writes an 80-bit memory operand.
pub fn store80(cpu: &mut Cpu, op: &Op, value: u128) -> Flow {
    store_bytes(cpu, op, &value.to_le_bytes()[..10])
}

/// Faults as a write of `size` bytes would.
pub fn probe_write(cpu: &mut Cpu, op: &Op, size: usize) -> Flow {
    let address = cpu.address(op);
    cpu.check_write(address, size)
}

/// Reads a memory operand of any size: single bytes where a part does not fill a quadword.
pub fn load_bytes(cpu: &mut Cpu, op: &Op, out: &mut [u8]) -> Flow {
    let address = cpu.address(op);
    let mut at = 0;
    while at < out.len() {
        let from = address.wrapping_add(at as u64);
        at += match out.len() - at {
            0..8 => take(cpu.load::<u8>(from)?, &mut out[at..]),
            _ => take(cpu.load::<u64>(from)?, &mut out[at..]),
        };
    }
    Ok(())
}

fn take<T: Scalar>(value: T, out: &mut [u8]) -> usize {
    out[..T::SIZE].copy_from_slice(&value.to_bytes()[..T::SIZE]);
    T::SIZE
}

/// Writes a memory operand of any size; nothing where a part of it faults.
pub fn store_bytes(cpu: &mut Cpu, op: &Op, data: &[u8]) -> Flow {
    let address = cpu.address(op);
    // The largest operand has 512 bytes, so that its two ends are in all of its pages.
    cpu.check_write(address, data.len())?;
    let (quads, rest) = data.as_chunks::<8>();
    for (n, quad) in quads.iter().enumerate() {
        cpu.store(address.wrapping_add(8 * n as u64), u64::from_le_bytes(*quad))?;
    }
    let end = address.wrapping_add(8 * quads.len() as u64);
    for (n, byte) in rest.iter().enumerate() {
        cpu.store(end.wrapping_add(n as u64), *byte)?;
    }
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: writes the bytes whose mask has its top bit set to where RDI points; nothing
/// where one of them faults.
pub fn store_selected(cpu: &mut Cpu, op: &Op, data: &[u8], mask: &[u8]) -> Flow {
    let narrow = op.flags & op_flag::ADDR32 != 0;
    let pointer = cpu.gpr[reg::RDI];
    let offset = if narrow { pointer & 0xffff_ffff } else { pointer };
    let address = offset.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]);
    let selected = |i: &usize| mask[*i] & 0x80 != 0;
    let chosen = || (0..data.len()).filter(selected);
    if let (Some(first), Some(last)) = (chosen().next(), chosen().next_back()) {
        cpu.check_write(address.wrapping_add(first as u64), last - first + 1)?;
    }
    for i in chosen() {
        cpu.store(address.wrapping_add(i as u64), data[i])?;
    }
    Ok(())
}
