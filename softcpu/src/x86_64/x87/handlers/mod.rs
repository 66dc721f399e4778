//! From an x87 instruction's code to the function that executes it.

mod control;
mod memory;
mod registers;

use super::Fpu;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::operand::{enter_fpu, fpu_pending};
use iced_x86::Code;

/// The handler of an x87 instruction, FXSAVE and FXRSTOR included. Nothing for other instructions.
pub fn handler(code: Code) -> Option<Handler> {
    let tables = [
        memory::arithmetic,
        memory::transfer,
        registers::arithmetic,
        registers::other,
        control::handler,
    ];
    tables.iter().find_map(|table| table(code))
}

/// Starts an instruction that looks at pending exceptions and is remembered as the last one.
#[inline]
fn begin(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    enter_fpu(cpu)?;
    fpu_pending(cpu)?;
    cpu.x87.last.ip = cpu.ip(op);
    Ok(())
}

/// Runs a register operation.
#[inline]
fn on_registers(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Fpu)) -> Flow {
    begin(cpu, op)?;
    f(&mut cpu.x87);
    Ok(())
}

/// A handler of a register operation.
macro_rules! fpu {
    (|$fpu:ident| $f:expr) => {
        (|cpu, op| {
            crate::x86_64::x87::handlers::on_registers(cpu, op, |$fpu| {
                $f;
            })
        }) as Handler
    };
    (|$fpu:ident, $op:ident| $f:expr) => {
        (|cpu, $op| {
            crate::x86_64::x87::handlers::on_registers(cpu, $op, |$fpu| {
                $f;
            })
        }) as Handler
    };
}
use fpu;
