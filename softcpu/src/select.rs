//! Which handler runs an instruction: by mnemonic, then by kinds and widths of its operands.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::decode::{Choice, is_absolute64};
use crate::exec::branch::jcc;
use crate::exec::mov::{cmov, setcc_m, setcc_r};
use crate::exec::{
    arith::{self, Adc, Add, And, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Xor},
    atomic,
    bits::{self, Bt, Btc, Btr, Bts},
    branch, far, flag, misc, mov, muldiv, segment,
    shift::{self, Rcl, Rcr, Rol, Ror, Sar, Shl, Shr},
    stack, string, system,
};
use crate::op::Handler;
use crate::state::CodeSize;

/// A generic handler for an operand size in bytes.
macro_rules! sized {
    ($size:expr; $($f:ident)::+ $(, $g:ty)*) => {
        match $size {
            1 => $($f)::+::<u8 $(, $g)*> as Handler,
            2 => $($f)::+::<u16 $(, $g)*>,
            4 => $($f)::+::<u32 $(, $g)*>,
            8 => $($f)::+::<u64 $(, $g)*>,
            _ => return None,
        }
    };
}

/// The same without 8-bit operands; extra arguments may be constants.
macro_rules! sized_wide {
    ($size:expr; $($f:ident)::+ $(, $g:tt)*) => {
        match $size {
            2 => $($f)::+::<u16 $(, $g)*> as Handler,
            4 => $($f)::+::<u32 $(, $g)*>,
            8 => $($f)::+::<u64 $(, $g)*>,
            _ => return None,
        }
    };
}

/// A handler that is generic over the condition.
macro_rules! by_condition {
    ($cc:expr; $f:ident $(, $w:ident)?) => {
        by_condition!(@ $cc; $f $(, $w)?; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $cc:expr; $f:ident; $($n:literal)*) => {
        match $cc { $($n => $f::<$n> as Handler,)* _ => return None }
    };
    (@ $cc:expr; $f:ident, $w:ident; $($n:literal)*) => {
        match $cc { $($n => $f::<$w, $n> as Handler,)* _ => return None }
    };
}

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
pub(crate) fn select(instr: &Instruction, size: CodeSize) -> Option<Choice> {
    if let Some(choice) = integer(instr, size) {
        return Some(choice);
    }
    system_instruction(instr, size).or_else(|| {
        let memory = instr.op_kinds().any(|kind| kind == OpKind::Memory);
        crate::simd::handlers::handler(instr.code(), memory)
            .or_else(|| crate::x87::handlers::handler(instr.code()))
            .map(Choice::plain)
    })
}

macro_rules! alu {
    ($instr:expr, $o:ty) => {{
        let (instr, size) = ($instr, size_of_operand($instr, 0));
        let lock = instr.has_lock_prefix();
        match form(instr)? {
            Form::RegReg => sized!(size; arith::rr, $o),
            Form::RegImm => sized!(size; arith::ri, $o),
            Form::RegMem => sized!(size; arith::rm, $o),
            Form::MemReg if lock => sized!(size; atomic::mr, $o),
            Form::MemReg => sized!(size; arith::mr, $o),
            Form::MemImm if lock => sized!(size; atomic::mi, $o),
            Form::MemImm => sized!(size; arith::mi, $o),
            _ => return None,
        }
    }};
}

macro_rules! unary {
    ($instr:expr, $o:ty) => {{
        let size = size_of_operand($instr, 0);
        match form($instr)? {
            Form::Reg => sized!(size; arith::unary_r, $o),
            Form::Mem if $instr.has_lock_prefix() => sized!(size; atomic::unary, $o),
            Form::Mem => sized!(size; arith::unary_m, $o),
            _ => return None,
        }
    }};
}

macro_rules! shift {
    ($instr:expr, $s:ty) => {{
        let size = size_of_operand($instr, 0);
        let by_cl = $instr.op_kind(1) == OpKind::Register;
        match (form($instr)?, by_cl) {
            (Form::RegReg | Form::RegImm, true) => sized!(size; shift::rc, $s),
            (Form::RegReg | Form::RegImm, false) => sized!(size; shift::ri, $s),
            (Form::MemReg | Form::MemImm, true) => sized!(size; shift::mc, $s),
            (Form::MemReg | Form::MemImm, false) => sized!(size; shift::mi, $s),
            _ => return None,
        }
    }};
}

macro_rules! bit {
    ($instr:expr, $o:ty) => {{
        let size = size_of_operand($instr, 0);
        if $instr.op_kind(1) == OpKind::Register {
            sized_wide!(size; bits::by_register, $o)
        } else {
            sized_wide!(size; bits::by_immediate, $o)
        }
    }};
}

fn integer(instr: &Instruction, size: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let op0 = || size_of_operand(instr, 0);
    let op1 = || size_of_operand(instr, 1);
    let memory_first = instr.op_count() > 0 && instr.op_kind(0) == OpKind::Memory;
    let run: Handler = match instr.mnemonic() {
        M::Add => alu!(instr, Add),
        M::Adc => alu!(instr, Adc),
        M::Sub => alu!(instr, Sub),
        M::Sbb => alu!(instr, Sbb),
        M::And => alu!(instr, And),
        M::Or => alu!(instr, Or),
        M::Xor => alu!(instr, Xor),
        M::Cmp => alu!(instr, Cmp),
        M::Test => alu!(instr, Test),
        M::Inc => unary!(instr, Inc),
        M::Dec => unary!(instr, Dec),
        M::Neg => unary!(instr, Neg),
        M::Not => unary!(instr, Not),
        M::Shl | M::Sal => shift!(instr, Shl),
        M::Shr => shift!(instr, Shr),
        M::Sar => shift!(instr, Sar),
        M::Rol => shift!(instr, Rol),
        M::Ror => shift!(instr, Ror),
        M::Rcl => shift!(instr, Rcl),
        M::Rcr => shift!(instr, Rcr),
        M::Shld if instr.op_kind(2) == OpKind::Register => sized_wide!(op0(); shift::double_cl, true),
        M::Shld => sized_wide!(op0(); shift::double_imm, true),
        M::Shrd if instr.op_kind(2) == OpKind::Register => sized_wide!(op0(); shift::double_cl, false),
        M::Shrd => sized_wide!(op0(); shift::double_imm, false),
        M::Bt => bit!(instr, Bt),
        M::Bts => bit!(instr, Bts),
        M::Btr => bit!(instr, Btr),
        M::Btc => bit!(instr, Btc),
        M::Bsf | M::Tzcnt => sized_wide!(op0(); bits::bsf),
        M::Bsr | M::Lzcnt => sized_wide!(op0(); bits::bsr),
        M::Popcnt => sized_wide!(op0(); bits::popcnt),
        M::Mul => sized!(op0(); muldiv::mul),
        M::Imul => match instr.op_count() {
            1 => sized!(op0(); muldiv::imul1),
            2 => sized_wide!(op0(); muldiv::imul2),
            _ => sized_wide!(op0(); muldiv::imul3),
        },
        M::Div => sized!(op0(); muldiv::div),
        M::Idiv => sized!(op0(); muldiv::idiv),
        M::Mov => return mov(instr),
        M::Movnti => sized_wide!(op0(); mov::mr),
        M::Movzx => match (op0(), op1(), form(instr)?) {
            (2, 1, Form::RegReg) => mov::movzx_r::<u16, u8>,
            (2, 1, _) => mov::movzx_m::<u16, u8>,
            (2, _, Form::RegReg) => mov::movzx_r::<u16, u16>,
            (2, _, _) => mov::movzx_m::<u16, u16>,
            // Zero-extension to 32 bits is one to 64 bits.
            (_, 1, Form::RegReg) => mov::movzx_r::<u32, u8>,
            (_, 1, _) => mov::movzx_m::<u32, u8>,
            (_, _, Form::RegReg) => mov::movzx_r::<u32, u16>,
            _ => mov::movzx_m::<u32, u16>,
        },
        M::Movsx | M::Movsxd => match (op0(), op1(), form(instr)?) {
            (2, 1, Form::RegReg) => mov::movsx_r::<u16, u8>,
            (2, 1, _) => mov::movsx_m::<u16, u8>,
            (2, _, Form::RegReg) => mov::movsx_r::<u16, u16>,
            (2, _, _) => mov::movsx_m::<u16, u16>,
            (4, 1, Form::RegReg) => mov::movsx_r::<u32, u8>,
            (4, 1, _) => mov::movsx_m::<u32, u8>,
            (4, 2, Form::RegReg) => mov::movsx_r::<u32, u16>,
            (4, 2, _) => mov::movsx_m::<u32, u16>,
            (4, _, Form::RegReg) => mov::movsx_r::<u32, u32>,
            (4, _, _) => mov::movsx_m::<u32, u32>,
            (_, 1, Form::RegReg) => mov::movsx_r::<u64, u8>,
            (_, 1, _) => mov::movsx_m::<u64, u8>,
            (_, 2, Form::RegReg) => mov::movsx_r::<u64, u16>,
            (_, 2, _) => mov::movsx_m::<u64, u16>,
            (_, _, Form::RegReg) => mov::movsx_r::<u64, u32>,
            _ => mov::movsx_m::<u64, u32>,
        },
        M::Lea => sized_wide!(op0(); mov::lea),
        M::Xchg => match form(instr)? {
            Form::RegReg => sized!(op0(); mov::xchg_rr),
            _ => sized!(op0(); atomic::xchg),
        },
        M::Xadd => sized!(op0(); atomic::xadd),
        M::Cmpxchg => sized!(op0(); atomic::cmpxchg),
        M::Cmpxchg8b => atomic::cmpxchg8b,
        M::Cmpxchg16b => atomic::cmpxchg16b,
        M::Bswap if op0() == 2 => mov::bswap16,
        M::Bswap => sized_wide!(op0(); mov::bswap),
        M::Cbw => mov::extend_accumulator::<u16, u8>,
        M::Cwde => mov::extend_accumulator::<u32, u16>,
        M::Cdqe => mov::extend_accumulator::<u64, u32>,
        M::Cwd => mov::sign_to_dx::<u16>,
        M::Cdq => mov::sign_to_dx::<u32>,
        M::Cqo => mov::sign_to_dx::<u64>,
        M::Xlatb => mov::xlat,
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
        M::Pushf => stack::pushf::<u16>,
        M::Pushfd => stack::pushf::<u32>,
        M::Pushfq => stack::pushf::<u64>,
        M::Popf => return Some(Choice::end(stack::popf::<u16>)),
        M::Popfd => return Some(Choice::end(stack::popf::<u32>)),
        M::Popfq => return Some(Choice::end(stack::popf::<u64>)),
        M::Leave => match instr.code() {
            Code::Leavew => stack::leave::<u16>,
            Code::Leaved => stack::leave::<u32>,
            _ => stack::leave::<u64>,
        },
        M::Enter => match instr.code() {
            Code::Enterw_imm16_imm8 => stack::enter::<u16>,
            Code::Enterd_imm16_imm8 => stack::enter::<u32>,
            _ => stack::enter::<u64>,
        },
        M::Pusha => stack::pusha::<u16>,
        M::Pushad => stack::pusha::<u32>,
        M::Popa => stack::popa::<u16>,
        M::Popad => stack::popa::<u32>,
        M::Clc => flag::clc,
        M::Stc => flag::stc,
        M::Cmc => flag::cmc,
        M::Cld => flag::cld,
        M::Std => flag::std,
        M::Lahf => flag::lahf,
        M::Sahf => flag::sahf,
        M::Nop
        | M::Fnop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchwt1
        | M::Reservednop
        | M::Lfence
        | M::Sfence => {
            if instr.mnemonic() == M::Fnop {
                return None;
            }
            mov::nop
        }
        M::Mfence => misc::mfence,
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
        _ => return branch_or_condition(instr, size, memory_first),
    };
    Some(Choice::plain(run))
}

fn mov(instr: &Instruction) -> Option<Choice> {
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
        return (to != Register::CS).then_some(Choice::end(segment::mov_to));
    }
    if from.is_segment_register() {
        let run = if to == Register::None {
            segment::mov_from_m
        } else {
            sized_wide!(size; segment::mov_from)
        };
        return Some(Choice::plain(run));
    }
    if to.is_cr() {
        return Some(Choice::end(if from.size() == 8 {
            system::mov_to_cr::<u64>
        } else {
            system::mov_to_cr::<u32>
        }));
    }
    if from.is_cr() {
        let run: Handler = if to.size() == 8 {
            system::mov_from_cr::<u64>
        } else {
            system::mov_from_cr::<u32>
        };
        return Some(Choice::plain(run));
    }
    if to.is_dr() {
        return Some(Choice::plain(if from.size() == 8 {
            system::mov_to_dr::<u64>
        } else {
            system::mov_to_dr::<u32>
        }));
    }
    if from.is_dr() {
        let run: Handler = if to.size() == 8 {
            system::mov_from_dr::<u64>
        } else {
            system::mov_from_dr::<u32>
        };
        return Some(Choice::plain(run));
    }
    Some(Choice::plain(match form(instr)? {
        Form::RegReg => sized!(size; mov::rr),
        Form::RegImm => sized!(size; mov::ri),
        Form::RegMem => sized!(size; mov::rm),
        Form::MemReg => sized!(size; mov::mr),
        Form::MemImm => sized!(size; mov::mi),
        _ => return None,
    }))
}

fn branch_or_condition(instr: &Instruction, size: CodeSize, memory: bool) -> Option<Choice> {
    use Mnemonic as M;
    let cc = instr.condition_code() as u8;
    let wide = size_of_operand(instr, 0);
    if instr.is_jcc_short_or_near() {
        return Some(Choice::end(by_condition!(cc - 1; jcc)));
    }
    let run: Handler = match instr.mnemonic() {
        M::Jmp if instr.is_jmp_short_or_near() => branch::jmp,
        M::Jmp if instr.is_jmp_far_indirect() || instr.is_jmp_far() => {
            return Some(Choice::end(match instr.code() {
                Code::Jmp_m1664 => far::jmp::<u64>,
                Code::Jmp_m1632 | Code::Jmp_ptr1632 => far::jmp::<u32>,
                _ => far::jmp::<u16>,
            }));
        }
        M::Jmp => sized_wide!(wide; branch::jmp_indirect),
        M::Call if instr.is_call_near() => {
            sized_wide!(instr.stack_pointer_increment().unsigned_abs(); branch::call)
        }
        M::Call if instr.is_call_far_indirect() || instr.is_call_far() => match instr.code() {
            Code::Call_m1664 => far::call::<u64>,
            Code::Call_m1632 | Code::Call_ptr1632 => far::call::<u32>,
            _ => far::call::<u16>,
        },
        M::Call => sized_wide!(wide; branch::call_indirect),
        M::Ret => match instr.code() {
            Code::Retnw | Code::Retnw_imm16 => branch::ret::<u16>,
            Code::Retnd | Code::Retnd_imm16 => branch::ret::<u32>,
            _ => branch::ret::<u64>,
        },
        M::Retf => match instr.code() {
            Code::Retfw | Code::Retfw_imm16 => far::retf::<u16>,
            Code::Retfd | Code::Retfd_imm16 => far::retf::<u32>,
            _ => far::retf::<u64>,
        },
        M::Iret => far::iret::<u16>,
        M::Iretd => far::iret::<u32>,
        M::Iretq => far::iret::<u64>,
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => return counted(instr, size),
        _ if cc == 0 => return None,
        _ => {
            // SETcc has one operand, CMOVcc two.
            let run: Handler = match (instr.op_count(), wide) {
                (1, _) if memory => by_condition!(cc - 1; setcc_m),
                (1, _) => by_condition!(cc - 1; setcc_r),
                (2, 2) => by_condition!(cc - 1; cmov, u16),
                (2, 4) => by_condition!(cc - 1; cmov, u32),
                (2, 8) => by_condition!(cc - 1; cmov, u64),
                _ => return None,
            };
            // FCMOVcc has a condition too, but is another unit's.
            let general = instr.op_kind(0) != OpKind::Register || instr.op0_register().is_gpr();
            return general.then_some(Choice::plain(run));
        }
    };
    Some(Choice::end(run))
}

/// LOOP and JCXZ: the counter's width is that of addresses.
fn counted(instr: &Instruction, size: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let run: Handler = match instr.mnemonic() {
        M::Loopne => branch::loops::<0>,
        M::Loope => branch::loops::<1>,
        M::Loop => branch::loops::<2>,
        _ => branch::loops::<3>,
    };
    let _ = size;
    Some(Choice::end(run))
}

fn system_instruction(instr: &Instruction, size: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let wide = || size_of_operand(instr, 0);
    let run: Handler = match instr.mnemonic() {
        M::Cli => {
            return Some(Choice {
                run: flag::cli,
                ends: false,
                starts: true,
            });
        }
        M::Clac => flag::set_ac::<false>,
        M::Stac => flag::set_ac::<true>,
        M::Cpuid => misc::cpuid,
        M::Rdtsc => misc::rdtsc,
        M::Rdtscp => misc::rdtscp,
        M::Rdmsr => system::rdmsr,
        M::Swapgs => segment::swapgs,
        M::Rdfsbase => sized_wide!(wide(); segment::read_base, 4),
        M::Rdgsbase => sized_wide!(wide(); segment::read_base, 5),
        M::Wrfsbase => sized_wide!(wide(); segment::write_base, 4),
        M::Wrgsbase => sized_wide!(wide(); segment::write_base, 5),
        M::Lldt => segment::lldt,
        M::Ltr => segment::ltr,
        M::Sldt | M::Str => {
            let task = instr.mnemonic() == M::Str;
            match (wide(), task) {
                (8, false) => segment::store_selector::<u64, false>,
                (4, false) => segment::store_selector::<u32, false>,
                (_, false) => segment::store_selector::<u16, false>,
                (8, true) => segment::store_selector::<u64, true>,
                (4, true) => segment::store_selector::<u32, true>,
                (_, true) => segment::store_selector::<u16, true>,
            }
        }
        M::Lar => sized_wide!(wide(); segment::lar),
        M::Lsl => sized_wide!(wide(); segment::lsl),
        M::Verr => segment::verify::<false>,
        M::Verw => segment::verify::<true>,
        M::Clts => system::clts,
        M::Smsw => sized_wide!(wide(); system::smsw),
        M::Lgdt => table(
            instr,
            size,
            [
                system::load_table::<u16, false>,
                system::load_table::<u32, false>,
                system::load_table::<u64, false>,
            ],
        ),
        M::Lidt => table(
            instr,
            size,
            [
                system::load_table::<u16, true>,
                system::load_table::<u32, true>,
                system::load_table::<u64, true>,
            ],
        ),
        M::Sgdt => table(
            instr,
            size,
            [
                system::store_table::<u16, false>,
                system::store_table::<u32, false>,
                system::store_table::<u64, false>,
            ],
        ),
        M::Sidt => table(
            instr,
            size,
            [
                system::store_table::<u16, true>,
                system::store_table::<u32, true>,
                system::store_table::<u64, true>,
            ],
        ),
        M::Wbinvd | M::Invd | M::Wbnoinvd => system::wbinvd,
        M::Clflush | M::Clflushopt | M::Clwb => system::touch,
        _ => return ending(instr),
    };
    Some(Choice::plain(run))
}

fn table(instr: &Instruction, size: CodeSize, by_size: [Handler; 3]) -> Handler {
    match (size, instr.code()) {
        (CodeSize::Bits64, _) => by_size[2],
        (_, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16) => {
            by_size[0]
        }
        _ => by_size[1],
    }
}

/// Instructions after which nothing may be taken for granted.
fn ending(instr: &Instruction) -> Option<Choice> {
    use Mnemonic as M;
    let by_port = |imm: [Handler; 3], dx: [Handler; 3], data: u32, port: u32| {
        let set = if instr.op_kind(port) == OpKind::Register {
            dx
        } else {
            imm
        };
        set[match instr.op_register(data) {
            Register::AL => 0,
            Register::AX => 1,
            _ => 2,
        }]
    };
    let wide = || size_of_operand(instr, 0);
    let run: Handler = match instr.mnemonic() {
        M::Sti => flag::sti,
        M::Hlt => misc::hlt,
        M::Int3 => misc::int3,
        M::Int => misc::int,
        M::Into => misc::into,
        M::Pause => misc::pause,
        M::Syscall => far::syscall,
        M::Sysret => far::sysret::<u32>,
        M::Sysretq => far::sysret::<u64>,
        M::Wrmsr => system::wrmsr,
        M::Invlpg => system::invlpg,
        M::Lmsw => system::lmsw,
        M::In => by_port(
            [
                system::input::<u8, true>,
                system::input::<u16, true>,
                system::input::<u32, true>,
            ],
            [
                system::input::<u8, false>,
                system::input::<u16, false>,
                system::input::<u32, false>,
            ],
            0,
            1,
        ),
        M::Out => by_port(
            [
                system::output::<u8, true>,
                system::output::<u16, true>,
                system::output::<u32, true>,
            ],
            [
                system::output::<u8, false>,
                system::output::<u16, false>,
                system::output::<u32, false>,
            ],
            1,
            0,
        ),
        M::Lds => sized_wide!(wide(); segment::load_far, 3),
        M::Les => sized_wide!(wide(); segment::load_far, 0),
        M::Lfs => sized_wide!(wide(); segment::load_far, 4),
        M::Lgs => sized_wide!(wide(); segment::load_far, 5),
        M::Lss => sized_wide!(wide(); segment::load_far, 2),
        // The opcodes that are there to be undefined.
        M::Ud0 | M::Ud1 | M::Ud2 => misc::undefined,
        _ => return None,
    };
    Some(Choice::end(run))
}
