//! From bytes to operations: `iced-x86` reads the instruction, this module turns it into plain data.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::x86_64::cpu::{Chained, Handler, Op};
use crate::x86_64::op::{REG_BLOCK, SEG_FLAT, op_flag};
use crate::x86_64::state::CodeSize;

/// What runs an operation.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// It goes on by itself.
    Chained(Chained),
    /// It does not: [`carry`](crate::x86_64::exec::chain::carry) makes it.
    Single(Handler),
}

/// What a handler was found for.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    /// The handler.
    pub run: Run,
    /// It ends the block: it sets `rip` itself and returns [`Stop`](crate::x86_64::op::Stop).
    pub ends: bool,
    /// It must be the first of its block, so that interrupts are looked for before it.
    pub starts: bool,
}

impl Choice {
    /// An ordinary instruction.
    pub const fn plain(run: Chained) -> Choice {
        Choice {
            run: Run::Chained(run),
            ends: false,
            starts: false,
        }
    }

    /// An ordinary instruction whose handler does not go on by itself.
    pub const fn single(run: Handler) -> Choice {
        Choice {
            run: Run::Single(run),
            ends: false,
            starts: false,
        }
    }

    /// The last of a block.
    pub const fn end(run: Chained) -> Choice {
        Choice {
            run: Run::Chained(run),
            ends: true,
            starts: false,
        }
    }
}

/// Number of a register operand; see [`Op`].
pub(crate) fn register_number(register: Register) -> u8 {
    use Register::*;
    if register.is_gpr8() {
        return match register {
            AH => 1,
            CH => 9,
            DH => 17,
            BH => 25,
            _ => register.full_register().number() as u8 * 8,
        };
    }
    match register {
        ES => 0,
        CS => 1,
        SS => 2,
        DS => 3,
        FS => 4,
        GS => 5,
        _ => register.number() as u8,
    }
}

/// Fills everything but the handler and the number of an operation that has no operands yet. `false` where an
/// operand does not fit an [`Op`].
pub(crate) fn operands(instr: &Instruction, size: CodeSize, op: &mut Op) -> bool {
    op.off = instr.ip() as u16;
    op.len = instr.len() as u8;
    if instr.has_lock_prefix() {
        op.flags |= op_flag::LOCK;
    }
    if instr.has_rep_prefix() {
        op.flags |= op_flag::REP;
    }
    if instr.has_repne_prefix() {
        op.flags |= op_flag::REPNE;
    }
    op.flags |= counter_flag(instr.code());
    (0..instr.op_count().min(5)).all(|n| operand(instr, n, size, op).is_some())
}

fn operand(instr: &Instruction, n: u32, size: CodeSize, op: &mut Op) -> Option<()> {
    match instr.op_kind(n) {
        OpKind::Register => {
            let number = register_number(instr.op_register(n));
            match n {
                0 => op.a = number,
                1 => op.b = number,
                2 => op.c = number,
                // The fourth, of the variable blends, which have no immediate.
                _ => op.imm = number as u64,
            }
        }
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            op.imm = instr.near_branch_target()
        }
        OpKind::FarBranch16 => {
            op.imm = instr.far_branch16() as u64 | (instr.far_branch_selector() as u64) << 32;
        }
        OpKind::FarBranch32 => {
            op.imm = instr.far_branch32() as u64 | (instr.far_branch_selector() as u64) << 32;
        }
        // ENTER and EXTRQ have a second one.
        OpKind::Immediate8_2nd => op.c = instr.immediate8_2nd(),
        OpKind::Memory => {
            op.flags |= op_flag::MEM;
            if n == 0 {
                op.flags |= op_flag::MEM_FIRST;
            }
            memory(instr, size, op)?;
        }
        OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
            op.seg = segment(instr.memory_segment(), size);
            op.flags |= address_flag(instr.op_kind(n));
        }
        OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => {
            op.seg = segment(instr.memory_segment(), size);
            op.flags |= address_flag(instr.op_kind(n));
        }
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {
            op.flags |= address_flag(instr.op_kind(n));
        }
        _ => op.imm = instr.immediate(n),
    }
    Some(())
}

/// LOOP and JCXZ have no memory operand, but their counter has the size of addresses.
fn counter_flag(code: Code) -> u8 {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => op_flag::ADDR16,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX
        | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX
        | Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => op_flag::ADDR32,
        _ => 0,
    }
}

fn address_flag(kind: OpKind) -> u8 {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => op_flag::ADDR16,
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => op_flag::ADDR32,
        _ => 0,
    }
}

/// In 64-bit code only FS and GS have a base.
fn segment(register: Register, size: CodeSize) -> u8 {
    let number = register_number(register);
    if size == CodeSize::Bits64 && number < 4 {
        SEG_FLAT
    } else {
        number
    }
}

fn memory(instr: &Instruction, size: CodeSize, op: &mut Op) -> Option<()> {
    op.seg = segment(instr.memory_segment(), size);
    let (base, index) = (instr.memory_base(), instr.memory_index());
    if base == Register::RIP || base == Register::EIP {
        // The decoder counted from the start of the block.
        op.base = REG_BLOCK;
        op.disp = i32::try_from(instr.memory_displacement64() as i64).ok()?;
        if base == Register::EIP {
            op.flags |= op_flag::ADDR32;
        }
        return Some(());
    }
    if base != Register::None {
        op.base = base.number() as u8;
    }
    if index != Register::None {
        op.index = index.number() as u8;
        op.scale = instr.memory_index_scale().trailing_zeros() as u8;
    }
    let displacement = instr.memory_displacement64();
    // A vector register of indices has no say in the size of addresses.
    let narrow = [base, index]
        .iter()
        .find(|r| **r != Register::None && !r.is_vector_register())
        .map(|r| r.size());
    match narrow {
        Some(8) => {}
        Some(4) => op.flags |= op_flag::ADDR32,
        Some(2) => op.flags |= op_flag::ADDR16,
        _ => match instr.memory_displ_size() {
            8 => {}
            2 => op.flags |= op_flag::ADDR16,
            // In 64-bit code a lone 32-bit displacement is sign-extended, but after an address size prefix
            // it is not; the decoder has done either.
            _ if size == CodeSize::Bits64 && displacement as i64 == displacement as i32 as i64 => {}
            _ => op.flags |= op_flag::ADDR32,
        },
    }
    op.disp = displacement as i32;
    if narrow.is_none() && instr.memory_displ_size() == 8 {
        // MOV AL/AX/EAX/RAX with a 64-bit address: there is no immediate, so its field is free.
        op.imm = displacement;
    }
    Some(())
}

/// MOV between the accumulator and a 64-bit address, which does not fit the displacement.
pub(crate) fn is_absolute64(instr: &Instruction) -> bool {
    matches!(
        instr.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    ) && instr.memory_displ_size() == 8
}
