//! Programs on the host's processor: the same guests, interpreted and run directly, end the same.

mod exceptions;
mod hostile;
mod registers;

use std::sync::OnceLock;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::direct::{Helper, When, check, try_out};
use softcpu::x86_64::state::reg;
use softcpu::{Clock, Features};

use crate::machine::{
    Devices, End, GDT, KERNEL, Machine, Trap, USER, USER_DATA, USER_STACK, done, enable_xsave, page, wrmsr,
};

/// Linux's selectors of programs, which are the host's.
const CODE: u16 = 0x33;
const STACK: u16 = 0x2b;
const LSTAR: u32 = 0xc000_0082;
const STAR: u32 = 0xc000_0081;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Whether this host runs programs directly. Where it does not, both ways are the interpreter.
fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let tried = try_out().and_then(|()| check(Features::V3));
        if let Err(error) = &tried {
            eprintln!("nothing runs directly: {error}");
        }
        tried.is_ok()
    })
}

/// Checks that the program of `machine` ran directly, if it was to.
fn check_ran(machine: &Machine, direct: bool, what: &str) {
    assert_eq!(
        machine.cpu.counters().direct_runs > 0,
        direct && available(),
        "{what} {:?}",
        machine.devices.unimplemented
    );
}

/// Goes to the program at [`USER`] as Linux does.
fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // FSGSBASE.
    a.mov(rax, cr4)?;
    a.bts(rax, 16)?;
    a.mov(cr4, rax)?;
    a.push(i32::from(STACK))?;
    a.push(USER_STACK as i32)?;
    a.push(0x202)?;
    a.push(i32::from(CODE))?;
    a.push(USER as i32)?;
    for register in [ds, es, fs, gs] {
        a.xor(eax, eax)?;
        a.mov(register, eax)?;
    }
    a.iretq()
}

/// A machine whose program at [`USER`] has Linux's segments.
fn machine(direct: bool, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    machine_of(1, direct, write)
}

fn machine_of(
    cpus: u32,
    direct: bool,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Machine {
    let mut machine = Machine::with(Clock::Host, cpus);
    if direct && available() {
        let helper = Helper::start(machine.file()).unwrap();
        machine.cpu.run_directly_in(vec![helper], When::Always);
    }
    machine.set_word(GDT + 0x20, 0x00cf_fb00_0000_ffff);
    machine.set_word(GDT + 0x28, 0x00cf_f300_0000_ffff);
    machine.set_word(GDT + 0x30, 0x00af_fb00_0000_ffff);
    machine.kernel(enter);
    machine.assemble(USER, 64, write);
    machine
}

/// Runs it both ways to an exception; the second time some of it runs directly.
fn both(write: Write) -> [(Trap, Machine); 2] {
    [false, true].map(|direct| {
        let mut machine = machine(direct, write);
        let trap = machine.trap();
        check_ran(&machine, direct, &format!("{trap:?}"));
        (trap, machine)
    })
}

fn same(write: Write) -> (Trap, Machine) {
    let [(trap, interpreted), (again, direct)] = both(write);
    assert_eq!(trap, again);
    assert_eq!(interpreted.cpu.gpr[..4], direct.cpu.gpr[..4]);
    assert_eq!(interpreted.cpu.gpr[5..16], direct.cpu.gpr[5..16]);
    assert_eq!(interpreted.cpu.xmm, direct.cpu.xmm);
    assert_eq!(interpreted.cpu.ymm_upper, direct.cpu.ymm_upper);
    assert_eq!(interpreted.cpu.mxcsr, direct.cpu.mxcsr);
    for word in 0..512 {
        let at = USER_DATA + 8 * word;
        assert_eq!(interpreted.word(at), direct.word(at), "{at:#x}");
    }
    for at in [USER, USER_DATA, USER_STACK - 8, USER_DATA + 0x1000] {
        assert_eq!(interpreted.entry(at), direct.entry(at), "{at:#x}");
    }
    (trap, direct)
}

/// Long enough to run directly.
fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, 200_000)?;
    a.set_label(&mut again)?;
    a.add(rax, rcx)?;
    a.dec(ecx)?;
    a.jnz(again)
}

#[test]
fn registers_and_memory_end_the_same() {
    let (trap, machine) = same(|a| {
        a.mov(rbx, 0x1122_3344_5566_7788u64)?;
        a.movq(xmm3, rbx)?;
        a.cvtsi2sd(xmm4, ebx)?;
        spin(a)?;
        a.mov(rdi, USER_DATA)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.addsd(xmm4, xmm4)?;
        a.divsd(xmm4, xmm3)?;
        a.push(rax)?;
        a.std()?;
        a.ud2()
    });
    assert_eq!(trap.vector, 6);
    assert_eq!(machine.word(USER_DATA), 200_000 * 200_001 / 2);
}

/// Where system calls go: after the kernel's code.
const SYSTEM_CALL: u64 = KERNEL + 0x1000;

/// A machine whose program makes system calls, which `kernel` answers before it returns.
fn with_system_calls(direct: bool, kernel: Write, program: Write) -> Machine {
    let mut machine = machine(direct, program);
    answer_system_calls(&mut machine, kernel);
    machine
}

fn answer_system_calls(machine: &mut Machine, kernel: Write) {
    machine.kernel(|a| {
        enable_xsave(a, 7)?;
        wrmsr(a, STAR, 0x23 << 48 | 0x08 << 32)?;
        wrmsr(a, LSTAR, SYSTEM_CALL)?;
        enter(a)
    });
    machine.assemble(SYSTEM_CALL, 64, |a| {
        kernel(a)?;
        a.sysretq()
    });
}

#[test]
fn a_page_that_the_kernel_moves_is_moved_for_the_program() {
    for direct in [false, true] {
        // The kernel maps the page of data to the next page, and back.
        let mut machine = with_system_calls(
            direct,
            |a| {
                a.mov(r8, 0x5000u64 + (USER_DATA - USER) / 4096 * 8)?;
                a.xor(qword_ptr(r8), 0x1000)?;
                a.mov(r8, USER_DATA)?;
                a.invlpg(ptr(r8))
            },
            |a| {
                let mut again = a.create_label();
                a.mov(r12d, 20)?;
                a.set_label(&mut again)?;
                a.mov(r13, USER_DATA)?;
                a.add(qword_ptr(r13), r12)?;
                spin(a)?;
                a.add(qword_ptr(r13 + 8), 1)?;
                a.syscall()?;
                a.dec(r12)?;
                a.jnz(again)?;
                a.ud2()
            },
        );
        // Bit 12 of the entry's address is clear for the page, and set for the next one.
        assert_eq!(machine.entry(USER_DATA) & 0x1000, 0);
        assert_eq!(machine.trap().vector, 6);
        assert_eq!(machine.cpu.counters().direct_runs > 10, direct && available());
        let found = [0, 8, 0x1000, 0x1008].map(|at| machine.word(USER_DATA + at));
        assert_eq!(found, [110, 10, 100, 10], "{direct}");
    }
}

#[test]
fn a_page_that_becomes_read_only_is_that_for_the_program() {
    for direct in [false, true] {
        let mut machine = with_system_calls(
            direct,
            |a| {
                a.mov(r8, 0x5000u64 + (USER_DATA - USER) / 4096 * 8)?;
                a.and(qword_ptr(r8), !(page::WRITE as i32))?;
                a.mov(r8, cr3)?;
                a.mov(cr3, r8)
            },
            |a| {
                a.mov(r13, USER_DATA)?;
                spin(a)?;
                a.add(qword_ptr(r13), 1)?;
                spin(a)?;
                a.add(qword_ptr(r13), 1)?;
                a.syscall()?;
                spin(a)?;
                a.mov(rbx, qword_ptr(r13))?;
                a.add(qword_ptr(r13), 1)
            },
        );
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.code, trap.cr2), (14, 7, USER_DATA));
        assert_eq!((machine.word(USER_DATA), machine.cpu.gpr[reg::RBX]), (2, 2));
    }
}

#[test]
fn a_page_whose_code_may_not_run_any_more_does_not() {
    for direct in [false, true] {
        let mut machine = with_system_calls(
            direct,
            |a| {
                a.mov(r8, 0x5008u64)?;
                a.bts(qword_ptr(r8), 63)?;
                a.mov(r8, cr3)?;
                a.mov(cr3, r8)
            },
            |a| {
                let mut function = a.create_label();
                spin(a)?;
                a.call(function)?;
                a.syscall()?;
                spin(a)?;
                a.call(function)?;
                for _ in 0..4096 {
                    a.nop()?;
                }
                a.set_label(&mut function)?;
                spin(a)?;
                a.ret()
            },
        );
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.code), (14, 0x15));
        assert_eq!(trap.cr2 & !0xfff, USER + 0x1000);
        check_ran(&machine, direct, "code");
    }
}

#[test]
fn accessed_and_dirty_bits_say_what_the_program_did() {
    let bits = page::PRESENT | page::WRITE | page::USER;
    let (trap, machine) = same(|a| {
        a.mov(r13, USER_DATA + 0x1000)?;
        spin(a)?;
        a.mov(rax, qword_ptr(r13))?;
        a.mov(rax, qword_ptr(r13 + 0x1000))?;
        spin(a)?;
        a.mov(qword_ptr(r13), 1)?;
        spin(a)?;
        a.ud2()
    });
    assert_eq!(trap.vector, 6);
    let flags = |at: u64| machine.entry(at) & 0xfff & !bits;
    let both = page::ACCESSED | page::DIRTY;
    assert_eq!(flags(USER_DATA + 0x1000), both);
    assert_eq!(flags(USER_DATA + 0x2000), page::ACCESSED);
    assert_eq!(flags(USER_DATA + 0x3000), 0);
}

#[test]
fn a_program_that_changes_its_code_runs_what_it_wrote() {
    same(|a| {
        let (mut again, mut changed) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.mov(r12d, 30)?;
        a.set_label(&mut again)?;
        a.lea(r13, ptr(changed))?;
        a.mov(dword_ptr(r13 + 1), r12d)?;
        spin(a)?;
        a.set_label(&mut changed)?;
        a.mov(eax, 0x1234_5678)?;
        a.add(ebx, eax)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.mov(eax, eax)?;
        a.ud2()
    });
}

#[test]
fn what_programs_find_out_about_the_processor_is_the_guests() {
    // CPUID, and the vsyscall page, which the host answers itself where it may.
    same(|a| {
        let mut next_page = a.create_label();
        spin(a)?;
        a.jmp(next_page)?;
        for _ in 0..4096 {
            a.nop()?;
        }
        a.set_label(&mut next_page)?;
        a.mov(eax, 1)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.ud2()
    });
    let (trap, _) = same(|a| {
        spin(a)?;
        a.mov(rdi, USER_DATA)?;
        a.xor(esi, esi)?;
        a.mov(rax, 0xffff_ffff_ff60_0000u64)?;
        a.call(rax)
    });
    assert_eq!((trap.vector, trap.rip), (14, 0xffff_ffff_ff60_0000));
}

#[test]
fn code_beside_an_instruction_that_is_interpreted_runs_directly() {
    // CPUID twice, and its bytes in a constant.
    let (trap, machine) = same(|a| {
        let mut again = a.create_label();
        a.mov(r12d, 3)?;
        a.set_label(&mut again)?;
        spin(a)?;
        a.mov(eax, 7)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(r13d, ebx)?;
        a.mov(r14d, 0x0000_a20f)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        spin(a)?;
        a.mov(eax, 0xd)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.ud2()
    });
    assert_eq!(trap.vector, 6);
    assert!(machine.cpu.counters().direct_runs >= 4 || !available());
}

#[test]
fn time_goes_on_the_same_way_in_both() {
    let mut machine = machine(true, |a| {
        let (mut again, mut backward) = (a.create_label(), a.create_label());
        a.mov(r12d, 50)?;
        a.xor(r13d, r13d)?;
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, r13)?;
        a.jb(backward)?;
        a.mov(r13, rax)?;
        spin(a)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.ud2()?;
        a.set_label(&mut backward)?;
        a.int3()
    });
    assert_eq!(machine.trap().vector, 6);
    assert!(u128::from(machine.cpu.gpr[13]) <= machine.platform.elapsed().as_nanos());
}

#[test]
fn a_busy_program_is_stopped_by_a_kick() {
    let mut machine = machine(true, |a| {
        let mut again = a.create_label();
        a.mov(rdi, USER_DATA)?;
        a.set_label(&mut again)?;
        a.add(qword_ptr(rdi), 1)?;
        a.jmp(again)
    });
    let (platform, ram) = (machine.platform.clone(), machine.ram.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Until it is well on its way in the helper.
            let mut word = [0; 8];
            while u64::from_le_bytes(word) < 10_000_000 {
                assert!(ram.read(USER_DATA, &mut word));
                std::thread::yield_now();
            }
            platform.kick(0);
        });
        assert_eq!(machine.run(), End::Kicked);
    });
    check_ran(&machine, true, "until the kick");
}

#[test]
fn two_processors_share_memory() {
    const ROUNDS: u32 = 400_000;
    let mut machine = machine_of(2, true, |a| {
        let mut again = a.create_label();
        a.mov(rdi, USER_DATA)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(rdi))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    });
    answer_system_calls(&mut machine, done);
    let mut second = machine.processor(1, KERNEL);
    if available() {
        second.run_directly_in(vec![Helper::start(machine.file()).unwrap()], When::Always);
    }
    std::thread::scope(|scope| {
        let beside = scope.spawn(move || {
            second.run(&mut Devices::default());
            second.counters().direct_runs
        });
        machine.done();
        assert_eq!(beside.join().unwrap() > 0, available());
    });
    check_ran(&machine, true, "the first");
    assert_eq!(machine.word(USER_DATA), 2 * u64::from(ROUNDS));
}
