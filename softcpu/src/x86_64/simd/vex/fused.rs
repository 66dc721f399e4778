//! Fused multiplication and addition: one rounding for both.

use iced_x86::Mnemonic;

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::Flow;
use crate::x86_64::simd::element::Session;
use crate::x86_64::simd::float::instruction;

/// The order of operands: which of destination, second and third operand are multiplied. The first factor is
/// also the first whose NaN is kept, then the second one, then the addend.
#[derive(Clone, Copy)]
enum Order {
    /// Destination and third.
    O132,
    /// Second and destination.
    O213,
    /// Second and third.
    O231,
}

/// What is negated; where even and odd elements differ, the even ones come first.
#[derive(Clone, Copy)]
struct Signs {
    product: bool,
    addend: [bool; 2],
}

const ADD: Signs = Signs {
    product: false,
    addend: [false; 2],
};
const SUB: Signs = Signs {
    product: false,
    addend: [true; 2],
};
const NEGATIVE_ADD: Signs = Signs {
    product: true,
    addend: [false; 2],
};
const NEGATIVE_SUB: Signs = Signs {
    product: true,
    addend: [true; 2],
};
const ADD_SUB: Signs = Signs {
    product: false,
    addend: [true, false],
};
const SUB_ADD: Signs = Signs {
    product: false,
    addend: [false, true],
};

macro_rules! table {
    ($mnemonic:expr, $shape:expr;
     $($signs:ident { $($order:ident $ps:ident $pd:ident $($ss:ident $sd:ident)?;)* })*) => {
        match $mnemonic {
            $($(
                Mnemonic::$ps => by_shape!($shape; packed_fused, u32; Order::$order, $signs),
                Mnemonic::$pd => by_shape!($shape; packed_fused, u64; Order::$order, $signs),
                $(
                    Mnemonic::$ss => by_memory!($shape; scalar_fused, u32; Order::$order, $signs),
                    Mnemonic::$sd => by_memory!($shape; scalar_fused, u64; Order::$order, $signs),
                )?
            )*)*
            _ => return None,
        }
    };
}

/// The handler of an instruction of this table.
pub(super) fn handler(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    Some(table!(mnemonic, shape;
        ADD {
            O132 Vfmadd132ps Vfmadd132pd Vfmadd132ss Vfmadd132sd;
            O213 Vfmadd213ps Vfmadd213pd Vfmadd213ss Vfmadd213sd;
            O231 Vfmadd231ps Vfmadd231pd Vfmadd231ss Vfmadd231sd;
        }
        SUB {
            O132 Vfmsub132ps Vfmsub132pd Vfmsub132ss Vfmsub132sd;
            O213 Vfmsub213ps Vfmsub213pd Vfmsub213ss Vfmsub213sd;
            O231 Vfmsub231ps Vfmsub231pd Vfmsub231ss Vfmsub231sd;
        }
        NEGATIVE_ADD {
            O132 Vfnmadd132ps Vfnmadd132pd Vfnmadd132ss Vfnmadd132sd;
            O213 Vfnmadd213ps Vfnmadd213pd Vfnmadd213ss Vfnmadd213sd;
            O231 Vfnmadd231ps Vfnmadd231pd Vfnmadd231ss Vfnmadd231sd;
        }
        NEGATIVE_SUB {
            O132 Vfnmsub132ps Vfnmsub132pd Vfnmsub132ss Vfnmsub132sd;
            O213 Vfnmsub213ps Vfnmsub213pd Vfnmsub213ss Vfnmsub213sd;
            O231 Vfnmsub231ps Vfnmsub231pd Vfnmsub231ss Vfnmsub231sd;
        }
        ADD_SUB {
            O132 Vfmaddsub132ps Vfmaddsub132pd;
            O213 Vfmaddsub213ps Vfmaddsub213pd;
            O231 Vfmaddsub231ps Vfmaddsub231pd;
        }
        SUB_ADD {
            O132 Vfmsubadd132ps Vfmsubadd132pd;
            O213 Vfmsubadd213ps Vfmsubadd213pd;
            O231 Vfmsubadd231ps Vfmsubadd231pd;
        }
    ))
}

/// `a`, `b` and `c` as first factor, second factor and addend.
#[inline(always)]
fn arrange<T>(order: Order, a: T, b: T, c: T) -> [T; 3] {
    match order {
        Order::O132 => [a, c, b],
        Order::O213 => [b, a, c],
        Order::O231 => [b, c, a],
    }
}

#[inline(always)]
fn packed_fused<E: Packed, const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    order: Order,
    signs: Signs,
) -> Flow {
    enter(cpu)?;
    let c = source::<N, MEMORY>(cpu, op, op.c)?;
    let [x, y, z] = arrange(order, get::<N>(cpu, op.a), get::<N>(cpu, op.b), c);
    let result = instruction(&mut cpu.mxcsr, |s| {
        std::array::from_fn(|lane| fused_lane::<E>(s, x[lane], y[lane], z[lane], signs))
    });
    deliver::<N>(cpu, op, result)
}

#[inline(always)]
fn fused_lane<E: Packed>(s: &mut Session, x: u128, y: u128, z: u128, signs: Signs) -> u128 {
    let bits = 8 * size_of::<E>() as u32;
    (0..128 / bits).fold(0, |lane, i| {
        let at = i * bits;
        let [x, y, z] = [x, y, z].map(|v| E::low(v >> at));
        let result: u128 = s
            .fused(x, y, z, signs.product, signs.addend[i as usize & 1])
            .into();
        lane | result << at
    })
}

#[inline(always)]
fn scalar_fused<E: Packed, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, order: Order, signs: Signs) -> Flow {
    enter(cpu)?;
    let c = if MEMORY {
        E::load(cpu, op)?
    } else {
        E::low(xmm(cpu, op.c))
    };
    let a = xmm(cpu, op.a);
    let [x, y, z] = arrange(order, E::low(a), E::low(xmm(cpu, op.b)), c);
    let result = instruction(&mut cpu.mxcsr, |s| {
        [E::with_low(a, s.fused(x, y, z, signs.product, signs.addend[0]))]
    });
    deliver(cpu, op, result)
}
