//! Instructions as time: exact counts, the same each time, and when devices are asked.

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, End, KERNEL, Machine, USER, USER_CODE64, done, enter, page};

#[test]
fn every_instruction_is_a_nanosecond() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?; // 1
        a.rdtsc()?; // 2
        a.mov(ebx, eax)?; // 3
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?; // 2003
        a.rdtsc()?; // 2004
        a.sub(eax, ebx)?; // 2005
        done(a) // 2006
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RAX], 2002, "from one RDTSC to the other");
    assert_eq!(machine.cpu.retired(), 2006);
    assert_eq!(machine.platform.instructions(), 2006);
}

#[test]
fn an_instruction_that_faults_is_not_retired() {
    let mut machine = Machine::new();
    machine.map(DATA, 0);
    machine.kernel(|a| {
        a.nop()?;
        a.nop()?;
        a.mov(rax, qword_ptr(DATA))
    });
    let End::Trap(_) = machine.run() else {
        panic!("no fault")
    };
    // Two NOPs, the handler's PUSH and OUT, and two to read CR2.
    assert_eq!(machine.cpu.retired(), 2 + 2 + 2);
}

#[test]
fn a_repeated_string_instruction_is_one() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 3000)?;
        a.xor(eax, eax)?;
        a.rep().stosb()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.retired(), 5);
}

#[test]
fn devices_are_asked_every_millisecond_of_work_and_before_each_sleep() {
    let run = || {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            let mut again = a.create_label();
            a.mov(ecx, 5 << 20)?;
            a.set_label(&mut again)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            done(a)
        });
        machine.done();
        (machine.devices.polls, machine.cpu.retired())
    };
    let (polls, retired) = run();
    assert_eq!(polls, 11, "at the start and every 2^20 of ten times that");
    assert_eq!((polls, retired), run());
}

#[test]
fn a_profile_records_callers() {
    let mut machine = Machine::new();
    let (outer, inner, top) = (KERNEL + 0x1000, KERNEL + 0x2000, 0xffff_8000_0003_8000u64);
    // The stack has a kernel's address: the lower half once more.
    machine.set_word(0x1000 + 8 * 256, machine.word(0x1000));
    machine.cpu.start_profile([KERNEL, outer, inner].into());
    machine.assemble(inner, 64, |a| {
        a.nop()?;
        a.ret()
    });
    machine.assemble(outer, 64, |a| {
        a.call(inner)?;
        a.call(inner)?;
        a.ret()
    });
    machine.kernel(|a| {
        a.mov(rsp, top)?;
        a.jmp(KERNEL + 0x40)
    });
    machine.assemble(KERNEL + 0x40, 64, |a| {
        a.call(outer)?;
        a.call(inner)?;
        enter(a, USER_CODE64, USER)
    });
    machine.assemble(USER, 64, |a| {
        a.nop()?;
        a.nop()?;
        a.ud2()
    });
    assert_eq!(machine.trap().vector, 6);
    let profile = machine.cpu.take_profile().unwrap();
    assert_eq!(profile.user(), 2);
    let mut stacks: Vec<_> = profile.stacks().collect();
    stacks.sort();
    let of = |path: &[u64]| {
        let same = stacks.iter().filter(|(stack, _)| stack == path);
        same.map(|(_, count)| count).sum::<u64>()
    };
    assert_eq!(of(&[outer, inner, inner]), 4, "{stacks:x?}");
    assert_eq!(of(&[inner, inner]), 2, "{stacks:x?}");
    assert_eq!(of(&[outer, outer]), 3, "{stacks:x?}");
    assert_eq!(profile.total(), machine.cpu.retired());
}

#[test]
fn enabling_interrupts_decodes_nothing_each_time() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        // The write to CR8 lets the processor look for interrupts, with STI's shadow still there.
        a.sti()?;
        a.mov(cr8, rax)?;
        a.cli()?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.retired(), 2 + 5 * 1000 + 1);
    assert!(
        machine.cpu.counters().blocks_decoded < 10,
        "{:?}",
        machine.cpu.counters()
    );
}

/// Times that blocks were looked up by physical address while `body` ran 100 times, and 1100 times.
fn looked_up(body: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> (u64, u64) {
    const GLOBAL: u64 = 1 << 8;
    const LOCAL_CODE: u64 = KERNEL + 0x1000;
    let mut machine = Machine::new();
    machine.map(KERNEL, page::PRESENT | page::WRITE | GLOBAL);
    machine.assemble(LOCAL_CODE, 64, |a| a.ret());
    let mut run = |rounds: u32| {
        machine.kernel(|a| {
            let mut again = a.create_label();
            a.mov(rax, cr4)?;
            a.or(eax, 1 << 7)?; // PGE
            a.mov(cr4, rax)?;
            a.mov(ecx, rounds)?;
            a.set_label(&mut again)?;
            body(a)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            done(a)
        });
        machine.cpu.rip = KERNEL;
        let before = machine.cpu.counters().blocks_looked_up;
        machine.done();
        machine.cpu.counters().blocks_looked_up - before
    };
    run(10);
    (run(100), run(1100))
}

#[test]
fn a_switch_of_address_spaces_leaves_global_code_known() {
    let (few, many) = looked_up(|a| {
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    });
    assert_eq!(few, many);
}

#[test]
fn a_data_page_is_invalidated_without_a_look_at_code() {
    let (few, many) = looked_up(|a| {
        a.inc(dword_ptr(DATA))?;
        a.invlpg(ptr(DATA))
    });
    assert_eq!(few, many);
}

#[test]
fn a_code_page_is_looked_up_once_it_is_invalidated() {
    let (few, many) = looked_up(|a| {
        a.call(KERNEL + 0x1000)?;
        a.invlpg(ptr(KERNEL + 0x1000))
    });
    assert!(many >= few + 1000, "{few} {many}");
}
