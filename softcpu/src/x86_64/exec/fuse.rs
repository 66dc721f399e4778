//! A comparison and the conditional jump after it, run as one.
//!
//! Both stay in the block as two operations: the first one's handler also does the second one's work, and
//! ends the block. What faults is the first, so nothing else changes.
#![allow(unsafe_code)]

use super::arith::Alu;
use super::branch::jump_if;
use super::chain::halt;
use crate::x86_64::access::{AddressingMode, BaseDisp, Gpr};
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::Width;
use crate::x86_64::op::{Flow, Stop};

/// Where the two operands of a comparison come from; zero-extended.
pub(crate) trait Operands: 'static {
    fn get<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Result<(u64, u64), Stop>;
}

macro_rules! operands {
    ($($(#[$doc:meta])* $name:ident |$w:ident, $cpu:ident, $op:ident| $a:expr, $b:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Operands for $name {
            #[inline(always)]
            fn get<$w: Gpr>($cpu: &mut Cpu, $op: &Op) -> Result<(u64, u64), Stop> {
                Ok(($a, $b))
            }
        }
    )*};
}

operands! {
    /// register, register
    RegReg |W, cpu, op| W::get(cpu, op.a).zext(), W::get(cpu, op.b).zext();
    /// register, immediate
    RegImm |W, cpu, op| W::get(cpu, op.a).zext(), <W as Width>::from(op.imm).zext();
    /// register, memory
    RegMem |W, cpu, op| W::get(cpu, op.a).zext(), cpu.load::<W>(BaseDisp::address(cpu, op))?.zext();
    /// memory, register
    MemReg |W, cpu, op| cpu.load::<W>(BaseDisp::address(cpu, op))?.zext(), W::get(cpu, op.b).zext();
    /// memory, immediate
    MemImm |W, cpu, op| cpu.load::<W>(BaseDisp::address(cpu, op))?.zext(), <W as Width>::from(op.imm).zext();
}

/// An operation on two registers or a register and a constant, or a comparison with memory; then Jcc.
///
/// # Safety
/// See [`Chained`](crate::x86_64::op::Chained); the next operation is the jump.
pub(crate) unsafe fn branch<W: Gpr, O: Alu, S: Operands, const CC: u8>(cpu: &mut Cpu, at: *const Op) -> Flow {
    // SAFETY: the caller's promise.
    let (op, jump) = unsafe { (&*at, &*at.add(1)) };
    let (a, b) = match S::get::<W>(cpu, op) {
        Ok(operands) => operands,
        Err(stop) => return halt(cpu, at, stop),
    };
    let (r, flags) = O::apply::<W>(cpu.flags, a, b);
    if O::WRITES {
        W::set(cpu, op.a, <W as Width>::from(r));
    }
    cpu.flags = flags;
    let taken = O::holds::<W, CC>(a, b).unwrap_or_else(|| flags.condition::<CC>());
    jump_if(cpu, jump, taken)
}
