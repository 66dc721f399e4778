//! Which handler runs an instruction: by mnemonic, then by kinds and widths of its operands.

mod alu;
mod bmi;
mod branch;
mod data;
mod pair;
mod system;
mod xstate;

use iced_x86::{Instruction, OpKind, Register};

use crate::x86_64::decode::Choice;
use crate::x86_64::features::Features;
use crate::x86_64::state::CodeSize;

pub(crate) use pair::fused;

/// A generic handler for an operand size in bytes.
macro_rules! sized {
    ($size:expr; $($f:ident)::+ $(, $g:ty)*) => {
        match $size {
            1 => chain($($f)::+::<u8 $(, $g)*>),
            2 => chain($($f)::+::<u16 $(, $g)*>),
            4 => chain($($f)::+::<u32 $(, $g)*>),
            8 => chain($($f)::+::<u64 $(, $g)*>),
            _ => return None,
        }
    };
}

/// The same without 8-bit operands; extra arguments may be constants.
macro_rules! sized_wide {
    ($size:expr; $($f:ident)::+ $(, $g:tt)*) => {
        match $size {
            2 => chain($($f)::+::<u16 $(, $g)*>),
            4 => chain($($f)::+::<u32 $(, $g)*>),
            8 => chain($($f)::+::<u64 $(, $g)*>),
            _ => return None,
        }
    };
}

/// A handler that is also generic over how its memory operand is reached, its last argument.
macro_rules! sized_reach {
    ($size:expr, $way:expr; $($f:ident)::+ $(, $g:ty)*) => {
        match $way {
            Way::BaseDisp => sized!($size; $($f)::+ $(, $g)*, BaseDisp),
            Way::Indexed => sized!($size; $($f)::+ $(, $g)*, Indexed),
            Way::Any => sized!($size; $($f)::+ $(, $g)*, General),
        }
    };
}

/// A handler that is generic over the condition.
macro_rules! by_condition {
    ($cc:expr; $f:ident $(, $w:ident)?) => {
        by_condition!(@ $cc; $f $(, $w)?; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $cc:expr; $f:ident; $($n:literal)*) => {
        match $cc { $($n => chain($f::<$n>),)* _ => return None }
    };
    (@ $cc:expr; $f:ident, $w:ident; $($n:literal)*) => {
        match $cc { $($n => chain($f::<$w, $n>),)* _ => return None }
    };
}

use {by_condition, sized, sized_reach, sized_wide};

/// Where operands are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
    Reg,
    Mem,
}

fn form(instr: &Instruction) -> Option<Form> {
    let kind = |n| instr.op_kind(n);
    let memory = |n| kind(n) == OpKind::Memory;
    let register = |n| kind(n) == OpKind::Register;
    Some(match instr.op_count() {
        1 if memory(0) => Form::Mem,
        1 if register(0) => Form::Reg,
        2 | 3 => match (memory(0), register(0), memory(1), register(1)) {
            (true, _, _, true) => Form::MemReg,
            (true, _, _, _) => Form::MemImm,
            (_, true, true, _) => Form::RegMem,
            (_, true, _, true) => Form::RegReg,
            (_, true, _, _) => Form::RegImm,
            _ => return None,
        },
        _ => return None,
    })
}

/// How a memory operand is reached: the names of the
/// [`AddressingMode`](crate::x86_64::access::AddressingMode)es.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    BaseDisp,
    Indexed,
    Any,
}

/// Only 64-bit code has the short ways: its addresses have 64 bits, and only FS and GS have a base there.
fn way(instr: &Instruction, size: CodeSize) -> Way {
    let (base, index) = (instr.memory_base(), instr.memory_index());
    let wide = |register: Register| register == Register::None || register.size() == 8;
    let flat = !matches!(instr.memory_segment(), Register::FS | Register::GS);
    let full = wide(base) && wide(index) && (base != Register::None || index != Register::None);
    if size != CodeSize::Bits64 || !flat || !full {
        Way::Any
    } else if index == Register::None {
        Way::BaseDisp
    } else {
        Way::Indexed
    }
}

/// Size in bytes of operand `n`.
fn size_of_operand(instr: &Instruction, n: u32) -> usize {
    match instr.op_kind(n) {
        OpKind::Register => instr.op_register(n).size(),
        OpKind::Memory
        | OpKind::MemorySegRSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegSI
        | OpKind::MemoryESRDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESDI
        | OpKind::MemorySegRDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegDI => instr.memory_size().size(),
        _ => 0,
    }
}

/// The handler of an instruction; `None` where this processor has none.
pub(crate) fn select(instr: &Instruction, size: CodeSize, features: Features) -> Option<Choice> {
    alu::select(instr, size)
        .or_else(|| data::select(instr, size))
        .or_else(|| branch::select(instr))
        .or_else(|| system::select(instr, size))
        .or_else(|| bmi::select(instr, features))
        .or_else(|| xstate::select(instr, features))
        .or_else(|| {
            let memory = instr.op_kinds().any(|kind| kind == OpKind::Memory);
            crate::x86_64::simd::handlers::handler(instr.code(), memory)
                .or_else(|| crate::x86_64::simd::vex::select(instr, features))
                .or_else(|| crate::x86_64::x87::handlers::handler(instr.code()))
                .map(Choice::single)
        })
}
