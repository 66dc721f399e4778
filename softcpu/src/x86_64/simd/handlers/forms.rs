//! The shapes that instructions come in: where operands are fetched, where the result goes, what may fault.
//!
//! Each macro makes the handler of one instruction in its register or its memory form out of a value
//! function, so that neither form tests at run time which it is. The order within a handler is the
//! architecture's order of faults: availability, memory, then arithmetic; nothing is written before the
//! last of them.

use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::float::Outcome;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::simd::operand::simd_exception;

pub(in crate::x86_64::simd) use crate::x86_64::simd::operand::*;

/// `xmm_a = f(xmm_a, b)` with an aligned 128-bit operand.
macro_rules! xmm {
    ($memory:ident, $f:expr) => {
        xmm_small!($memory, load128_aligned, $f)
    };
}

/// `xmm_a = f(xmm_a, b)` where `load` fetches as much of `b` as the instruction uses.
macro_rules! xmm_small {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as u128;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), b));
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), xmm(cpu, op.b)));
                Ok(())
            }) as Handler
        }
    };
}

/// `xmm_a = f(xmm_a, b, imm8)`.
macro_rules! xmm_control {
    ($memory:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = load128_aligned(cpu, op)?;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), b, op.imm as u8));
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), xmm(cpu, op.b), op.imm as u8));
                Ok(())
            }) as Handler
        }
    };
}

/// `xmm_a = f(xmm_a, imm8)`: shifts by a constant.
macro_rules! xmm_by {
    ($f:expr) => {
        (|cpu, op| {
            enter_sse(cpu)?;
            set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), op.imm & 0xff));
            Ok(())
        }) as Handler
    };
}

/// `xmm_a = f(xmm_a, b, xmm_0)`: the variable blends.
macro_rules! blend {
    ($memory:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = load128_aligned(cpu, op)?;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), b, xmm(cpu, 0)));
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                set_xmm(cpu, op.a, ($f)(xmm(cpu, op.a), xmm(cpu, op.b), xmm(cpu, 0)));
                Ok(())
            }) as Handler
        }
    };
}

/// Delivers a result of floating point arithmetic, or #XM.
#[inline(always)]
pub(in crate::x86_64::simd) fn deliver(
    cpu: &mut Cpu,
    op: &Op,
    f: impl FnOnce(&mut Mxcsr, u128) -> Outcome,
) -> Flow {
    let a = xmm(cpu, op.a);
    let result = f(&mut cpu.mxcsr, a);
    let value = arithmetic(cpu, result)?;
    set_xmm(cpu, op.a, value);
    Ok(())
}

/// The result of arithmetic, or #XM.
#[inline(always)]
pub(in crate::x86_64::simd) fn arithmetic<T>(cpu: &mut Cpu, result: Outcome<T>) -> Result<T, Stop> {
    result.map_err(|_unmasked| simd_exception(cpu))
}

/// `xmm_a = f(mxcsr, xmm_a, b)`.
macro_rules! float {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as u128;
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = xmm(cpu, op.b);
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        }
    };
}

/// `xmm_a = f(mxcsr, xmm_a, b, imm8)`.
macro_rules! float_control {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as u128;
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b, op.imm as u8))
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = xmm(cpu, op.b);
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b, op.imm as u8))
            }) as Handler
        }
    };
}

/// Sets RFLAGS from a comparison of the low elements.
macro_rules! compare {
    ($memory:ident, $load:ident, $element:ty, $quiet:literal) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as $element;
                let a = xmm(cpu, op.a) as $element;
                let order = compare(&mut cpu.mxcsr, a, b, $quiet);
                let order = arithmetic(cpu, order)?;
                set_flags(cpu, order.zero, order.parity, order.carry);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let (a, b) = (xmm(cpu, op.a) as $element, xmm(cpu, op.b) as $element);
                let order = compare(&mut cpu.mxcsr, a, b, $quiet);
                let order = arithmetic(cpu, order)?;
                set_flags(cpu, order.zero, order.parity, order.carry);
                Ok(())
            }) as Handler
        }
    };
}

/// `mm_a = f(mm_a, b)`, both zero-extended to 128 bits.
macro_rules! mmx {
    ($memory:ident, $f:expr) => {
        mmx_small!($memory, load64, $f)
    };
}

/// `mm_a = f(mm_a, b)` where `load` fetches as much of `b` as the instruction uses.
macro_rules! mmx_small {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = $load(cpu, op)? as u128;
                let a = mm(cpu, op.a) as u128;
                set_mm(cpu, op.a, ($f)(a, b) as u64);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let (a, b) = (mm(cpu, op.a) as u128, mm(cpu, op.b) as u128);
                set_mm(cpu, op.a, ($f)(a, b) as u64);
                Ok(())
            }) as Handler
        }
    };
}

/// `mm_a = f(b:mm_a, 0)`: instructions that work across the lanes of both operands, first operand first.
macro_rules! mmx_pair {
    ($memory:ident, $f:expr) => {
        mmx!($memory, |a: u128, b: u128| ($f)(a | b << 64, 0))
    };
}

/// `mm_a = f(mm_a, b, imm8)`.
macro_rules! mmx_control {
    ($memory:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = load64(cpu, op)? as u128;
                let a = mm(cpu, op.a) as u128;
                set_mm(cpu, op.a, ($f)(a, b, op.imm as u8) as u64);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let (a, b) = (mm(cpu, op.a) as u128, mm(cpu, op.b) as u128);
                set_mm(cpu, op.a, ($f)(a, b, op.imm as u8) as u64);
                Ok(())
            }) as Handler
        }
    };
}

/// `mm_a = f(mm_a, imm8)`.
macro_rules! mmx_by {
    ($f:expr) => {
        (|cpu, op| {
            enter_mmx(cpu)?;
            let a = mm(cpu, op.a) as u128;
            set_mm(cpu, op.a, ($f)(a, op.imm & 0xff) as u64);
            Ok(())
        }) as Handler
    };
}

/// `mm_a = f(mxcsr, b)` with `b` in an XMM register or memory. The x87 unit turns to MMX even where the
/// arithmetic faults, as hardware has it.
macro_rules! to_mmx {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = $load(cpu, op)? as u128;
                use_mmx(cpu);
                let result = ($f)(&mut cpu.mxcsr, b);
                let value = arithmetic(cpu, result)?;
                set_mm(cpu, op.a, value);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = xmm(cpu, op.b);
                use_mmx(cpu);
                let result = ($f)(&mut cpu.mxcsr, b);
                let value = arithmetic(cpu, result)?;
                set_mm(cpu, op.a, value);
                Ok(())
            }) as Handler
        }
    };
}

/// `xmm_a = f(mxcsr, xmm_a, b)` with `b` in an MMX register, or in memory, where the x87 unit is left alone.
macro_rules! from_mmx {
    ($memory:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = load64(cpu, op)?;
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        } else {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = mm(cpu, op.b);
                use_mmx(cpu);
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        }
    };
}

/// `xmm_a = f(b)`: CVTPI2PD, whose memory form leaves the x87 unit alone.
macro_rules! from_mmx_or_memory {
    ($memory:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = load64(cpu, op)?;
                set_xmm(cpu, op.a, ($f)(b));
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_mmx(cpu)?;
                let b = mm(cpu, op.b);
                use_mmx(cpu);
                set_xmm(cpu, op.a, ($f)(b));
                Ok(())
            }) as Handler
        }
    };
}

/// A general register gets `f(mxcsr, b)`, already zero-extended.
macro_rules! to_general {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as u128;
                let result = ($f)(&mut cpu.mxcsr, b);
                let value = arithmetic(cpu, result)?;
                set_general(cpu, op.a, value);
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = xmm(cpu, op.b);
                let result = ($f)(&mut cpu.mxcsr, b);
                let value = arithmetic(cpu, result)?;
                set_general(cpu, op.a, value);
                Ok(())
            }) as Handler
        }
    };
}

/// `xmm_a = f(mxcsr, xmm_a, b)` with `b` in a general register or memory.
macro_rules! from_general {
    ($memory:ident, $load:ident, $f:expr) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = $load(cpu, op)? as u64;
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let b = general(cpu, op.b);
                deliver(cpu, op, |mxcsr, a| ($f)(mxcsr, a, b))
            }) as Handler
        }
    };
}

pub(super) use {
    blend, compare, float, float_control, from_general, from_mmx, from_mmx_or_memory, mmx, mmx_by,
    mmx_control, mmx_pair, mmx_small, to_general, to_mmx, xmm, xmm_by, xmm_control, xmm_small,
};
