//! What an operating system uses, ports, and what ends in an exception.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{size_of_operand, sized_wide};
use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::{Choice, Run};
use crate::x86_64::exec::chain::chain;
use crate::x86_64::exec::{fast_call, flag, misc, segment, system};
use crate::x86_64::state::CodeSize;

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction, size: CodeSize) -> Option<Choice> {
    use Mnemonic as M;
    let wide = || size_of_operand(instr, 0);
    let run: Chained = match instr.mnemonic() {
        M::Cli => {
            return Some(Choice {
                run: Run::Chained(chain(flag::cli)),
                ends: false,
                starts: true,
            });
        }
        M::Clac => chain(flag::set_ac::<false>),
        M::Stac => chain(flag::set_ac::<true>),
        M::Cpuid => chain(misc::cpuid),
        M::Rdtsc => chain(misc::rdtsc),
        M::Rdtscp => chain(misc::rdtscp),
        M::Rdmsr => chain(system::rdmsr),
        M::Rdpmc => chain(system::rdpmc),
        M::Vmcall | M::Vmmcall => chain(misc::hypercall),
        M::Swapgs => chain(segment::swapgs),
        M::Rdfsbase => sized_wide!(wide(); segment::read_base, 4),
        M::Rdgsbase => sized_wide!(wide(); segment::read_base, 5),
        M::Wrfsbase => sized_wide!(wide(); segment::write_base, 4),
        M::Wrgsbase => sized_wide!(wide(); segment::write_base, 5),
        M::Lldt => chain(segment::lldt),
        M::Ltr => chain(segment::ltr),
        M::Sldt | M::Str => {
            let task = instr.mnemonic() == M::Str;
            match (wide(), task) {
                (8, false) => chain(segment::store_selector::<u64, false>),
                (4, false) => chain(segment::store_selector::<u32, false>),
                (_, false) => chain(segment::store_selector::<u16, false>),
                (8, true) => chain(segment::store_selector::<u64, true>),
                (4, true) => chain(segment::store_selector::<u32, true>),
                (_, true) => chain(segment::store_selector::<u16, true>),
            }
        }
        M::Lar => sized_wide!(wide(); segment::lar),
        M::Arpl => chain(segment::arpl),
        M::Lsl => sized_wide!(wide(); segment::lsl),
        M::Verr => chain(segment::verify::<false>),
        M::Verw => chain(segment::verify::<true>),
        M::Clts => chain(system::clts),
        M::Smsw => sized_wide!(wide(); system::smsw),
        M::Lgdt => table(
            instr,
            size,
            [
                chain(system::load_table::<u16, false>),
                chain(system::load_table::<u32, false>),
                chain(system::load_table::<u64, false>),
            ],
        ),
        M::Lidt => table(
            instr,
            size,
            [
                chain(system::load_table::<u16, true>),
                chain(system::load_table::<u32, true>),
                chain(system::load_table::<u64, true>),
            ],
        ),
        M::Sgdt => table(
            instr,
            size,
            [
                chain(system::store_table::<u16, false>),
                chain(system::store_table::<u32, false>),
                chain(system::store_table::<u64, false>),
            ],
        ),
        M::Sidt => table(
            instr,
            size,
            [
                chain(system::store_table::<u16, true>),
                chain(system::store_table::<u32, true>),
                chain(system::store_table::<u64, true>),
            ],
        ),
        M::Wbinvd | M::Invd | M::Wbnoinvd => chain(system::wbinvd),
        M::Clflush | M::Clflushopt | M::Clwb => chain(system::touch),
        _ => return ending(instr),
    };
    Some(Choice::plain(run))
}

fn table(instr: &Instruction, size: CodeSize, by_size: [Chained; 3]) -> Chained {
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
    let by_port = |imm: [Chained; 3], dx: [Chained; 3], data: u32, port: u32| {
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
    let run: Chained = match instr.mnemonic() {
        M::Sti => chain(flag::sti),
        M::Hlt => chain(misc::hlt),
        M::Int3 => chain(misc::int3),
        M::Int1 => chain(misc::int1),
        M::Int => chain(misc::int),
        M::Into => chain(misc::into),
        M::Pause => chain(misc::pause),
        M::Syscall => chain(fast_call::syscall),
        M::Sysret => chain(fast_call::sysret::<u32>),
        M::Sysretq => chain(fast_call::sysret::<u64>),
        M::Sysenter => chain(fast_call::sysenter),
        M::Sysexit => chain(fast_call::sysexit::<u32>),
        M::Sysexitq => chain(fast_call::sysexit::<u64>),
        M::Wrmsr => chain(system::wrmsr),
        M::Invlpg => chain(system::invlpg),
        M::Lmsw => chain(system::lmsw),
        M::In => by_port(
            [
                chain(system::input::<u8, true>),
                chain(system::input::<u16, true>),
                chain(system::input::<u32, true>),
            ],
            [
                chain(system::input::<u8, false>),
                chain(system::input::<u16, false>),
                chain(system::input::<u32, false>),
            ],
            0,
            1,
        ),
        M::Out => by_port(
            [
                chain(system::output::<u8, true>),
                chain(system::output::<u16, true>),
                chain(system::output::<u32, true>),
            ],
            [
                chain(system::output::<u8, false>),
                chain(system::output::<u16, false>),
                chain(system::output::<u32, false>),
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
        M::Ud0 | M::Ud1 | M::Ud2 => chain(misc::undefined),
        _ => return None,
    };
    Some(Choice::end(run))
}
