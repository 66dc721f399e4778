//! Several processors: startup, interrupts from one to the other, stores in order (Intel SDM vol. 3, 8.4 and
//! 11.6).

use std::sync::Arc;

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;
use softcpu::{Clock, Cpu};

use crate::machine::{DATA, KERNEL, Machine, START, assembled, done, wrmsr};

const INTERRUPT_COMMAND: u32 = 0x830;
/// Runs the first processor's `machine` and, beside it, a second one that does `other` after its startup IPI.
/// Returns the second one.
fn run_both(
    machine: &mut Machine,
    other: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Box<Cpu> {
    let second = machine.second(other);
    machine.done_beside(second)
}

/// Sends INIT and then a startup IPI to processor 1, as an operating system does.
fn start_the_other(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    wrmsr(a, 0x1b, 0xfee0_0d00)?;
    wrmsr(a, 0x80f, 0x1ff)?;
    wrmsr(a, INTERRUPT_COMMAND, 1 << 32 | 0x4500)?;
    wrmsr(a, INTERRUPT_COMMAND, 1 << 32 | 0x4600 | START >> 12)
}

/// Waits until the 32-bit word at `at` is not 0.
fn wait(a: &mut CodeAssembler, at: u64) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(at), 0)?;
    a.je(again)
}

#[test]
fn a_startup_ipi_starts_a_processor_in_real_mode() {
    let mut machine = Machine::with(Clock::Host, 2);
    machine.kernel(|a| {
        start_the_other(a)?;
        wait(a, DATA)?;
        done(a)
    });
    let second = run_both(&mut machine, |a| {
        a.mov(bx, cs)?;
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(dword_ptr(0), 1)?;
        done(a)
    });
    assert_eq!(second.gpr[reg::RBX] & 0xffff, START >> 4);
}

#[test]
fn an_interrupt_reaches_the_other_processor() {
    let mut machine = Machine::with(Clock::Host, 2);
    let handler = KERNEL + 0x2000;
    machine.set_gate(0x61, handler, 0, 0);
    machine.assemble(handler, 64, |a| {
        a.mov(dword_ptr(DATA), 1)?;
        wrmsr(a, 0x80b, 0)?;
        a.iretq()
    });
    machine.kernel(|a| {
        start_the_other(a)?;
        a.sti()?;
        wait(a, DATA)?;
        done(a)
    });
    // The second processor's APIC in memory is beyond real mode's reach: the interrupt is sent for it.
    let platform = Arc::clone(&machine.platform);
    let sender = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        platform.deliver(softcpu::Message {
            destination: 0,
            logical: false,
            mode: 0,
            vector: 0x61,
        });
    });
    run_both(&mut machine, done);
    sender.join().unwrap();
    assert_eq!(machine.word(DATA) as u32, 1);
}

#[test]
fn locked_additions_of_two_processors_all_count() {
    const EACH: u32 = 20_000;
    let mut machine = Machine::with(Clock::Host, 2);
    machine.kernel(|a| {
        let mut again = a.create_label();
        start_the_other(a)?;
        a.mov(ecx, EACH)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(DATA + 64))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        wait(a, DATA)?;
        done(a)
    });
    run_both(&mut machine, |a| {
        let mut again = a.create_label();
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(ecx, EACH)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(64))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(dword_ptr(0), 1)?;
        done(a)
    });
    assert_eq!(machine.word(DATA + 64) as u32, 2 * EACH);
}

#[test]
fn what_is_stored_first_is_seen_first() {
    const ROUNDS: u32 = 5_000;
    let mut machine = Machine::with(Clock::Host, 2);
    // The other stores n to the first word and then to the second; whoever sees n in the second must see it
    // in the first.
    machine.kernel(|a| {
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        start_the_other(a)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(DATA + 0x80))?;
        a.mov(ebx, dword_ptr(DATA + 0x40))?;
        a.cmp(ebx, eax)?;
        a.jb(wrong)?;
        a.cmp(eax, ROUNDS)?;
        a.jb(again)?;
        done(a)?;
        a.set_label(&mut wrong)?;
        a.ud2()
    });
    run_both(&mut machine, |a| {
        let mut again = a.create_label();
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(0x40), ecx)?;
        a.mov(dword_ptr(0x80), ecx)?;
        a.cmp(ecx, ROUNDS)?;
        a.jb(again)?;
        done(a)
    });
}

#[test]
fn interrupts_go_both_ways_and_to_groups() {
    // To all but the sender, to all, and to one by its number: the second processor answers each time.
    for command in [3 << 18, 2 << 18, 1 << 32] {
        let mut machine = Machine::with(Clock::Host, 2);
        let (handler, answer) = (KERNEL + 0x2000, KERNEL + 0x2800);
        machine.set_gate(0x62, handler, 0, 0);
        machine.set_gate(0x61, answer, 0, 0);
        for (at, word) in [(handler, DATA + 8), (answer, DATA + 16)] {
            machine.assemble(at, 64, |a| {
                a.push(rax)?;
                a.push(rcx)?;
                a.push(rdx)?;
                a.inc(dword_ptr(word))?;
                wrmsr(a, 0x80b, 0)?;
                a.pop(rdx)?;
                a.pop(rcx)?;
                a.pop(rax)?;
                a.iretq()
            });
        }
        // Real mode's table: the handler of 0x61 is in the second processor's segment.
        const OTHERS: u16 = 0x800;
        machine.set_word(
            (4 * 0x61) & !7,
            (START >> 4 << 16 | u64::from(OTHERS)) << (8 * (4 * 0x61 % 8)),
        );
        let other = assembled(START + u64::from(OTHERS), 16, |a| {
            wrmsr(a, 0x80b, 0)?;
            wrmsr(a, INTERRUPT_COMMAND, 0x62)?;
            done(a)
        });
        assert!(machine.ram.write(START + u64::from(OTHERS), &other));
        machine.kernel(|a| {
            start_the_other(a)?;
            a.sti()?;
            wait(a, DATA)?;
            wrmsr(a, INTERRUPT_COMMAND, command | 0x61)?;
            wait(a, DATA + 8)?;
            done(a)
        });
        run_both(&mut machine, |a| {
            let mut again = a.create_label();
            wrmsr(a, 0x1b, 0xfee0_0c00)?;
            wrmsr(a, 0x80f, 0x1ff)?;
            a.mov(ax, (DATA >> 4) as i32)?;
            a.mov(ds, ax)?;
            a.sti()?;
            a.mov(dword_ptr(0), 1)?;
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)
        });
        assert_eq!(machine.word(DATA + 8) as u32, 1, "the answer, to {command:#x}");
        assert_eq!(
            machine.word(DATA + 16) as u32,
            u32::from(command == 2 << 18),
            "the sender's own"
        );
    }
}
