//! Moves, extensions, exchanges, stack, strings, and what touches single flags.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Form, Way, form, size_of_operand, sized, sized_reach, sized_wide, way};
use crate::x86_64::access::{BaseDisp, General, Indexed};
use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::{Choice, is_absolute64};
use crate::x86_64::exec::chain::chain;
use crate::x86_64::exec::{atomic, decimal, flag, misc, mov, segment, stack, string, system};
use crate::x86_64::state::CodeSize;

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction, code: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let op0 = || size_of_operand(instr, 0);
    let op1 = || size_of_operand(instr, 1);
    let run: Chained = match instr.mnemonic() {
        M::Mov => return mov(instr, code),
        M::Movnti => sized_wide!(op0(); mov::mr, General),
        M::Movzx | M::Movsx | M::Movsxd => return extend(instr, code),
        M::Lea => match way(instr, code) {
            Way::BaseDisp => sized_wide!(op0(); mov::lea, BaseDisp),
            Way::Indexed => sized_wide!(op0(); mov::lea, Indexed),
            Way::Any => sized_wide!(op0(); mov::lea, General),
        },
        M::Xchg => match form(instr)? {
            Form::RegReg => sized!(op0(); mov::xchg_rr),
            _ => sized!(op0(); atomic::xchg),
        },
        M::Xadd => sized!(op0(); atomic::xadd),
        M::Cmpxchg => sized!(op0(); atomic::cmpxchg),
        M::Cmpxchg8b => chain(atomic::cmpxchg8b),
        M::Cmpxchg16b => chain(atomic::cmpxchg16b),
        M::Bswap if op0() == 2 => chain(mov::bswap16),
        M::Bswap => sized_wide!(op0(); mov::bswap),
        M::Cbw => chain(mov::extend_accumulator::<u16, u8>),
        M::Cwde => chain(mov::extend_accumulator::<u32, u16>),
        M::Cdqe => chain(mov::extend_accumulator::<u64, u32>),
        M::Cwd => chain(mov::sign_to_dx::<u16>),
        M::Cdq => chain(mov::sign_to_dx::<u32>),
        M::Cqo => chain(mov::sign_to_dx::<u64>),
        M::Salc => chain(flag::salc),
        M::Xlatb => chain(mov::xlat),
        M::Aaa => chain(decimal::aaa),
        M::Aas => chain(decimal::aas),
        M::Daa => chain(decimal::daa),
        M::Das => chain(decimal::das),
        M::Aam => chain(decimal::aam),
        M::Aad => chain(decimal::aad),
        M::Bound => sized_wide!(op0(); decimal::bound),
        M::Push => match instr.op_kind(0) {
            OpKind::Register if instr.op0_register().is_segment_register() => {
                sized_wide!(instr.stack_pointer_increment().unsigned_abs(); stack::push_seg)
            }
            OpKind::Register => sized_wide!(op0(); stack::push_r),
            OpKind::Memory => sized_wide!(op0(); stack::push_m),
            _ => sized_wide!(instr.stack_pointer_increment().unsigned_abs(); stack::push_i),
        },
        M::Pop => match instr.op_kind(0) {
            OpKind::Register if instr.op0_register().is_segment_register() => {
                return Some(Choice::end(
                    sized_wide!(instr.stack_pointer_increment(); segment::pop),
                ));
            }
            OpKind::Register => sized_wide!(op0(); stack::pop_r),
            _ => sized_wide!(op0(); stack::pop_m),
        },
        M::Pushf => chain(stack::pushf::<u16>),
        M::Pushfd => chain(stack::pushf::<u32>),
        M::Pushfq => chain(stack::pushf::<u64>),
        M::Popf => return Some(Choice::end(chain(stack::popf::<u16>))),
        M::Popfd => return Some(Choice::end(chain(stack::popf::<u32>))),
        M::Popfq => return Some(Choice::end(chain(stack::popf::<u64>))),
        M::Leave => match instr.code() {
            Code::Leavew => chain(stack::leave::<u16>),
            Code::Leaved => chain(stack::leave::<u32>),
            _ => chain(stack::leave::<u64>),
        },
        M::Enter => match instr.code() {
            Code::Enterw_imm16_imm8 => chain(stack::enter::<u16>),
            Code::Enterd_imm16_imm8 => chain(stack::enter::<u32>),
            _ => chain(stack::enter::<u64>),
        },
        M::Pusha => chain(stack::pusha::<u16>),
        M::Pushad => chain(stack::pusha::<u32>),
        M::Popa => chain(stack::popa::<u16>),
        M::Popad => chain(stack::popa::<u32>),
        M::Clc => chain(flag::clc),
        M::Stc => chain(flag::stc),
        M::Cmc => chain(flag::cmc),
        M::Cld => chain(flag::cld),
        M::Std => chain(flag::std),
        M::Lahf => chain(flag::lahf),
        M::Sahf => chain(flag::sahf),
        M::Nop | M::Reservednop | M::Lfence | M::Sfence => chain(mov::nop),
        M::Mfence => chain(misc::mfence),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if instr.is_string_instruction() => {
            sized!(op0(); string::movs)
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => sized!(op0(); string::stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => sized!(op1(); string::lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => sized!(op1(); string::scas),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if instr.is_string_instruction() => {
            sized!(op0(); string::cmps)
        }
        M::Insb | M::Insw | M::Insd => sized!(op0(); string::ins),
        M::Outsb | M::Outsw | M::Outsd => sized!(op1(); string::outs),
        M::Rdrand | M::Rdseed => sized_wide!(op0(); misc::random),
        _ => return None,
    };
    Some(Choice::plain(run))
}

/// MOVZX and MOVSX by sizes of destination and source.
macro_rules! extension {
    ($sizes:expr, $way:expr; $r:ident, $m:ident; $($to:literal $from:literal $d:ty, $s:ty;)*) => {
        match ($sizes, $way) {
            $(
                (($to, $from), None) => chain(mov::$r::<$d, $s>),
                (($to, $from), Some(Way::BaseDisp)) => chain(mov::$m::<$d, $s, BaseDisp>),
                (($to, $from), Some(Way::Indexed)) => chain(mov::$m::<$d, $s, Indexed>),
                (($to, $from), Some(Way::Any)) => chain(mov::$m::<$d, $s, General>),
            )*
            _ => return None,
        }
    };
}

fn extend(instr: &Instruction, code: CodeSize) -> Option<Choice> {
    let sizes = (size_of_operand(instr, 0), size_of_operand(instr, 1));
    let way = (form(instr)? == Form::RegMem).then(|| way(instr, code));
    // Zero-extension to 32 bits is one to 64 bits.
    let run: Chained = if instr.mnemonic() == Mnemonic::Movzx {
        extension!(sizes, way; movzx_r, movzx_m;
            2 1 u16, u8; 2 2 u16, u16; 4 1 u32, u8; 4 2 u32, u16; 8 1 u32, u8; 8 2 u32, u16;)
    } else {
        extension!(sizes, way; movsx_r, movsx_m;
            2 1 u16, u8; 2 2 u16, u16; 4 1 u32, u8; 4 2 u32, u16; 4 4 u32, u32;
            8 1 u64, u8; 8 2 u64, u16; 8 4 u64, u32;)
    };
    Some(Choice::plain(run))
}

fn mov(instr: &Instruction, code: CodeSize) -> Option<Choice> {
    let size = size_of_operand(instr, 0);
    if is_absolute64(instr) {
        let run = if instr.op_kind(0) == OpKind::Memory {
            sized!(size; mov::store_absolute)
        } else {
            sized!(size; mov::load_absolute)
        };
        return Some(Choice::plain(run));
    }
    let class = |n| {
        if instr.op_kind(n) == OpKind::Register {
            instr.op_register(n)
        } else {
            Register::None
        }
    };
    let (to, from) = (class(0), class(1));
    if to.is_segment_register() {
        return (to != Register::CS).then_some(Choice::end(chain(segment::mov_to)));
    }
    if from.is_segment_register() {
        let run = if to == Register::None {
            chain(segment::mov_from_m)
        } else {
            sized_wide!(size; segment::mov_from)
        };
        return Some(Choice::plain(run));
    }
    if to.is_cr() {
        return Some(Choice::end(if from.size() == 8 {
            chain(system::mov_to_cr::<u64>)
        } else {
            chain(system::mov_to_cr::<u32>)
        }));
    }
    if from.is_cr() {
        let run: Chained = if to.size() == 8 {
            chain(system::mov_from_cr::<u64>)
        } else {
            chain(system::mov_from_cr::<u32>)
        };
        return Some(Choice::plain(run));
    }
    if to.is_dr() {
        return Some(Choice::end(if from.size() == 8 {
            chain(system::mov_to_dr::<u64>)
        } else {
            chain(system::mov_to_dr::<u32>)
        }));
    }
    if from.is_dr() {
        let run: Chained = if to.size() == 8 {
            chain(system::mov_from_dr::<u64>)
        } else {
            chain(system::mov_from_dr::<u32>)
        };
        return Some(Choice::plain(run));
    }
    let way = way(instr, code);
    Some(Choice::plain(match form(instr)? {
        Form::RegReg => sized!(size; mov::rr),
        Form::RegImm => sized!(size; mov::ri),
        Form::RegMem => sized_reach!(size, way; mov::rm),
        Form::MemReg => sized_reach!(size, way; mov::mr),
        Form::MemImm => sized_reach!(size, way; mov::mi),
        _ => return None,
    }))
}
