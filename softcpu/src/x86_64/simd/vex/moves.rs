//! Moves between registers and memory, masked ones among them.

use iced_x86::{Code, Mnemonic};

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop, op_flag};
use crate::x86_64::simd::lanes::*;
use crate::x86_64::simd::operand::store_selected;
use crate::x86_64::simd::shuffle::{concat64, movhlps, punpcklqdq};

/// The handler of an instruction of this table. `stores`: the first operand is in memory.
pub(super) fn handler(mnemonic: Mnemonic, code: Code, shape: Shape, stores: bool) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu if stores => by_width!(shape; store_all; false),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => by_shape!(shape; load_all; false),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq if stores => {
            by_width!(shape; store_all; true)
        }
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdqa => by_shape!(shape; load_all; true),
        M::Vmovss if stores => |cpu, op| store_part(cpu, op, |b| b as u32, store32),
        M::Vmovss if shape.memory => |cpu, op| load_low(cpu, op, load32),
        M::Vmovss => |cpu, op| combine(cpu, op, |b, c| with_low32(b, c as u32)),
        M::Vmovsd if stores => |cpu, op| store_part(cpu, op, |b| b as u64, store64),
        M::Vmovsd if shape.memory => |cpu, op| load_low(cpu, op, load64),
        M::Vmovsd => |cpu, op| combine(cpu, op, |b, c| with_low64(b, c as u64)),
        M::Vmovlps | M::Vmovlpd if stores => |cpu, op| store_part(cpu, op, |b| b as u64, store64),
        M::Vmovlps | M::Vmovlpd => |cpu, op| load_half(cpu, op, with_low64),
        M::Vmovhps | M::Vmovhpd if stores => |cpu, op| store_part(cpu, op, |b| (b >> 64) as u64, store64),
        M::Vmovhps | M::Vmovhpd => |cpu, op| load_half(cpu, op, |b, loaded| concat64(b as u64, loaded)),
        M::Vmovhlps => |cpu, op| combine(cpu, op, movhlps),
        M::Vmovlhps => |cpu, op| combine(cpu, op, punpcklqdq),
        M::Vmaskmovps | M::Vpmaskmovd if stores => by_width!(shape; masked_store; 4),
        M::Vmaskmovps | M::Vpmaskmovd => by_width!(shape; masked_load; 4),
        M::Vmaskmovpd | M::Vpmaskmovq if stores => by_width!(shape; masked_store; 8),
        M::Vmaskmovpd | M::Vpmaskmovq => by_width!(shape; masked_load; 8),
        M::Vmaskmovdqu => |cpu, op| {
            enter(cpu)?;
            let (data, mask) = (xmm(cpu, op.b), xmm(cpu, op.c));
            store_selected(cpu, op, &data.to_le_bytes(), &mask.to_le_bytes())
        },
        _ => return general_register(code, shape.memory),
    })
}

/// A whole register from memory or another one.
#[inline(always)]
fn load_all<const N: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, aligned: bool) -> Flow {
    enter(cpu)?;
    if MEMORY && aligned {
        check_alignment(cpu, op, 16 * N as u64)?;
    }
    let lanes = source::<N, MEMORY>(cpu, op, op.b)?;
    set(cpu, op.a, lanes);
    Ok(())
}

#[inline(always)]
fn store_all<const N: usize>(cpu: &mut Cpu, op: &Op, aligned: bool) -> Flow {
    enter(cpu)?;
    if aligned {
        check_alignment(cpu, op, 16 * N as u64)?;
    }
    store(cpu, op, get::<N>(cpu, op.b))
}

/// `a = f(b, c)`, 128 bits, registers only.
#[inline(always)]
fn combine(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u128) -> u128) -> Flow {
    enter(cpu)?;
    let lane = f(xmm(cpu, op.b), xmm(cpu, op.c));
    set(cpu, op.a, [lane]);
    Ok(())
}

/// A register gets what `load` reads, and zeroes above.
#[inline(always)]
fn load_low<T: Into<u128>>(cpu: &mut Cpu, op: &Op, load: impl Fn(&mut Cpu, &Op) -> Result<T, Stop>) -> Flow {
    enter(cpu)?;
    let value = load(cpu, op)?.into();
    set(cpu, op.a, [value]);
    Ok(())
}

/// `a = f(b, memory)`.
#[inline(always)]
fn load_half(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u64) -> u128) -> Flow {
    enter(cpu)?;
    let loaded = load64(cpu, op)?;
    let lane = f(xmm(cpu, op.b), loaded);
    set(cpu, op.a, [lane]);
    Ok(())
}

/// Memory gets `f(b)`.
#[inline(always)]
fn store_part<T>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(u128) -> T,
    store: impl Fn(&mut Cpu, &Op, T) -> Flow,
) -> Flow {
    enter(cpu)?;
    let value = f(xmm(cpu, op.b));
    store(cpu, op, value)
}

/// Between vector and general registers, and the low halves of vector registers.
fn general_register(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::VEX_Vmovd_xmm_rm32 if memory => |cpu, op| load_low(cpu, op, load32),
        Code::VEX_Vmovd_xmm_rm32 => |cpu, op| {
            enter(cpu)?;
            set(cpu, op.a, [general(cpu, op.b) as u32 as u128]);
            Ok(())
        },
        Code::VEX_Vmovd_rm32_xmm if memory => |cpu, op| store_part(cpu, op, |b| b as u32, store32),
        Code::VEX_Vmovd_rm32_xmm => |cpu, op| {
            enter(cpu)?;
            set_general(cpu, op.a, xmm(cpu, op.b) as u32 as u64);
            Ok(())
        },
        Code::VEX_Vmovq_xmm_rm64 | Code::VEX_Vmovq_xmm_xmmm64 if memory => {
            |cpu, op| load_low(cpu, op, load64)
        }
        Code::VEX_Vmovq_rm64_xmm | Code::VEX_Vmovq_xmmm64_xmm if memory => {
            |cpu, op| store_part(cpu, op, |b| b as u64, store64)
        }
        Code::VEX_Vmovq_xmm_rm64 => |cpu, op| {
            enter(cpu)?;
            set(cpu, op.a, [general(cpu, op.b) as u128]);
            Ok(())
        },
        Code::VEX_Vmovq_rm64_xmm => |cpu, op| {
            enter(cpu)?;
            set_general(cpu, op.a, xmm(cpu, op.b) as u64);
            Ok(())
        },
        Code::VEX_Vmovq_xmm_xmmm64 | Code::VEX_Vmovq_xmmm64_xmm => |cpu, op| {
            enter(cpu)?;
            set(cpu, op.a, [xmm(cpu, op.b) as u64 as u128]);
            Ok(())
        },
        _ => return None,
    })
}

/// The addresses of the elements of `size` bytes whose mask has its top bit set, and their places in the
/// register: lane and bit. The others are not looked at, so that they cannot fault.
fn selected<const N: usize>(
    cpu: &Cpu,
    op: &Op,
    mask: [u128; N],
    size: usize,
) -> impl Iterator<Item = (u64, usize, usize)> + use<N> {
    let address = cpu.address(op);
    (0..16 * N / size)
        .map(move |i| (i * size / 16, 8 * (i * size % 16), i * size))
        .filter(move |(lane, bit, _)| mask[*lane] >> (bit + 8 * size - 1) & 1 != 0)
        .map(move |(lane, bit, offset)| (address.wrapping_add(offset as u64), lane, bit))
}

/// VMASKMOVPS and its kin as loads: the other elements are zeroed.
#[inline(always)]
fn masked_load<const N: usize>(cpu: &mut Cpu, op: &Op, size: usize) -> Flow {
    enter(cpu)?;
    let mut lanes = [0; N];
    for (address, lane, bit) in selected(cpu, op, get::<N>(cpu, op.b), size) {
        let element = if size == 4 {
            cpu.load::<u32>(address)? as u128
        } else {
            cpu.load::<u64>(address)? as u128
        };
        lanes[lane] |= element << bit;
    }
    set(cpu, op.a, lanes);
    Ok(())
}

/// The same as stores: nothing is written where one of them faults.
#[inline(always)]
fn masked_store<const N: usize>(cpu: &mut Cpu, op: &Op, size: usize) -> Flow {
    debug_assert!(op.flags & op_flag::MEM_FIRST != 0);
    enter(cpu)?;
    let (mask, data) = (get::<N>(cpu, op.b), get::<N>(cpu, op.c));
    for (address, ..) in selected(cpu, op, mask, size) {
        cpu.check_write(address, size)?;
    }
    for (address, lane, bit) in selected(cpu, op, mask, size) {
        let element = data[lane] >> bit;
        if size == 4 {
            cpu.store(address, element as u32)?;
        } else {
            cpu.store(address, element as u64)?;
        }
    }
    Ok(())
}
