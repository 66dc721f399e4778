//! Gathers: each element of the destination from an address of its own.
//!
//! The mask is both what to gather and how far the instruction has come: an element's mask is cleared when it
//! has been loaded, so that an instruction that runs again after a fault goes on where it stopped. What is above
//! the elements is zeroed at the end.

use iced_x86::Code;

use super::forms::{Shape, by_width};
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop, op_flag};

/// Bits of an element and of an index.
#[derive(Clone, Copy)]
struct Sizes {
    element: u32,
    index: u32,
}

/// The handler of an instruction of this table.
pub(super) fn handler(code: Code, shape: Shape) -> Option<Handler> {
    use Code::*;
    Some(match code {
        VEX_Vpgatherdd_xmm_vm32x_xmm
        | VEX_Vgatherdps_xmm_vm32x_xmm
        | VEX_Vpgatherdd_ymm_vm32y_ymm
        | VEX_Vgatherdps_ymm_vm32y_ymm => by_width!(shape; gather; 32, 32),
        VEX_Vpgatherdq_xmm_vm32x_xmm
        | VEX_Vgatherdpd_xmm_vm32x_xmm
        | VEX_Vpgatherdq_ymm_vm32x_ymm
        | VEX_Vgatherdpd_ymm_vm32x_ymm => by_width!(shape; gather; 64, 32),
        VEX_Vpgatherqd_xmm_vm64x_xmm | VEX_Vgatherqps_xmm_vm64x_xmm => |cpu, op| gather::<1>(cpu, op, 32, 64),
        VEX_Vpgatherqd_xmm_vm64y_xmm | VEX_Vgatherqps_xmm_vm64y_xmm => |cpu, op| gather::<2>(cpu, op, 32, 64),
        VEX_Vpgatherqq_xmm_vm64x_xmm
        | VEX_Vgatherqpd_xmm_vm64x_xmm
        | VEX_Vpgatherqq_ymm_vm64y_ymm
        | VEX_Vgatherqpd_ymm_vm64y_ymm => by_width!(shape; gather; 64, 64),
        _ => return None,
    })
}

/// `a` gets elements, `op.index` is the register of indices, `c` the mask. `N` lanes are those of the larger of
/// elements and indices.
#[inline(always)]
fn gather<const N: usize>(cpu: &mut Cpu, op: &Op, element: u32, index: u32) -> Flow {
    enter(cpu)?;
    let sizes = Sizes { element, index };
    let count = 128 * N as u32 / element.max(index);
    let indices: [u128; 2] = get(cpu, op.index);
    for i in 0..count {
        let (lane, shift) = place(i, element);
        let all = ((1 << element) - 1) << shift;
        if *lane_of(cpu, op.c, lane) >> (shift + element - 1) & 1 != 0 {
            let value = load_element(cpu, op, sizes, &indices, i)?;
            let data = lane_of(cpu, op.a, lane);
            *data = *data & !all | value << shift;
        }
        *lane_of(cpu, op.c, lane) &= !all;
    }
    let data: [u128; 2] = get(cpu, op.a);
    match count * element {
        64 => set(cpu, op.a, [data[0] & u64::MAX as u128]),
        128 => set(cpu, op.a, [data[0]]),
        _ => {}
    }
    set(cpu, op.c, [0]);
    Ok(())
}

#[inline(always)]
fn lane_of(cpu: &mut Cpu, n: u8, lane: usize) -> &mut u128 {
    let registers = if lane == 0 {
        &mut cpu.xmm
    } else {
        &mut cpu.ymm_upper
    };
    &mut registers[n as usize & 15]
}

/// The address of element `i`, and what is there.
#[inline(always)]
fn load_element(cpu: &mut Cpu, op: &Op, sizes: Sizes, indices: &[u128; 2], i: u32) -> Result<u128, Stop> {
    let (lane, shift) = place(i, sizes.index);
    let bits = indices[lane] >> shift;
    let index = if sizes.index == 32 {
        bits as i32 as i64 as u64
    } else {
        bits as u64
    };
    let offset = cpu.gpr[(op.base & 31) as usize]
        .wrapping_add(index << (op.scale & 3))
        .wrapping_add(op.disp as i64 as u64);
    let narrow = op.flags & op_flag::ADDR32 != 0;
    let offset = if narrow { offset as u32 as u64 } else { offset };
    let address = offset.wrapping_add(cpu.seg_base[(op.seg & 7) as usize]);
    if sizes.element == 32 {
        cpu.load::<u32>(address).map(u128::from)
    } else {
        cpu.load::<u64>(address).map(u128::from)
    }
}

/// Lane and bit of element `i`.
#[inline(always)]
fn place(i: u32, bits: u32) -> (usize, u32) {
    ((i * bits / 128) as usize, i * bits % 128)
}
