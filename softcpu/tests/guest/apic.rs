//! The local APIC: its timer in every mode, priorities, both ways to its registers (Intel SDM vol. 3, chapter
//! 11).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, KERNEL, Machine, done, wrmsr};

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
/// x2APIC registers.
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const TIMER: u32 = 0x832;
const INITIAL: u32 = 0x838;
const CURRENT: u32 = 0x839;
const DIVIDE: u32 = 0x83e;
const SELF_IPI: u32 = 0x83f;
/// Timer vector, and its modes in the LVT.
const VECTOR: u64 = 0x40;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
const MASKED: u64 = 1 << 16;
/// Divide by one.
const BY_ONE: u64 = 0b1011;

const HANDLER: u64 = KERNEL + 0x2000;

/// Turns x2APIC mode and the APIC itself on.
fn enable(a: &mut CodeAssembler) -> Result<(), IcedError> {
    wrmsr(a, APIC_BASE, 0xfee0_0d00)?;
    wrmsr(a, SPURIOUS, 0x1ff)
}

/// A machine whose timer handler counts in `DATA`, notes the time in `DATA + 8 * count` and ends the
/// interrupt.
fn ticking() -> Machine {
    let mut machine = Machine::new();
    machine.set_gate(VECTOR as u8, HANDLER, 0, 0);
    machine.assemble(HANDLER, 64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.inc(qword_ptr(DATA))?;
        a.mov(rcx, qword_ptr(DATA))?;
        a.mov(qword_ptr(rcx * 8 + DATA as i32), rax)?;
        wrmsr(a, EOI, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    });
    machine
}

/// HLT with interrupts until the handler has counted to `ticks`.
fn sleep_until(a: &mut CodeAssembler, ticks: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(qword_ptr(DATA), ticks)?;
    a.jb(again)?;
    done(a)
}

/// What the handler noted at its `n`th tick, from 1.
fn tick(machine: &Machine, n: u64) -> u64 {
    machine.word(DATA + 8 * n)
}

#[test]
fn a_periodic_timer_keeps_its_period() {
    const PERIOD: u64 = 1_000_000;
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        wrmsr(a, DIVIDE, BY_ONE)?;
        wrmsr(a, TIMER, PERIODIC | VECTOR)?;
        wrmsr(a, INITIAL, PERIOD)?;
        sleep_until(a, 5)
    });
    machine.done();
    for n in 2..=5 {
        let apart = tick(&machine, n) - tick(&machine, n - 1);
        assert!(
            apart.abs_diff(PERIOD) < 20,
            "tick {n} comes {apart} ns after the one before"
        );
    }
}

#[test]
fn a_timer_is_divided_and_fires_once() {
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        // By 16.
        wrmsr(a, DIVIDE, 0b0011)?;
        wrmsr(a, TIMER, VECTOR)?;
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        wrmsr(a, INITIAL, 10_000)?;
        sleep_until(a, 1)
    });
    machine.done();
    let apart = tick(&machine, 1) - machine.cpu.gpr[reg::RBX];
    assert!(apart.abs_diff(160_000) < 40, "{apart} ns");
    // Nothing is left to wake a second HLT.
    machine.kernel(|a| {
        a.mov(ecx, CURRENT)?;
        a.rdmsr()?;
        done(a)
    });
    machine.cpu.rip = KERNEL;
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RAX], 0);
    assert_eq!(machine.word(DATA), 1);
}

#[test]
fn a_tsc_deadline_timer_fires_at_its_deadline() {
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        wrmsr(a, TIMER, DEADLINE | VECTOR)?;
        wrmsr(a, TSC_DEADLINE, 5_000_000_000)?;
        sleep_until(a, 1)
    });
    machine.done();
    assert!(
        tick(&machine, 1).abs_diff(5_000_000_000) < 20,
        "{}",
        tick(&machine, 1)
    );
}

#[test]
fn a_deadline_that_has_passed_fires_at_once_and_zero_disarms() {
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        wrmsr(a, TIMER, DEADLINE | VECTOR)?;
        wrmsr(a, TSC_DEADLINE, 1_000)?;
        wrmsr(a, TSC_DEADLINE, 0)?;
        a.sti()?;
        let mut again = a.create_label();
        a.mov(ecx, 10_000)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.cli()?;
        a.mov(rbx, qword_ptr(DATA))?;
        wrmsr(a, TSC_DEADLINE, 1)?;
        sleep_until(a, 1)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 0, "disarmed");
    assert_eq!(machine.word(DATA), 1, "passed");
}

#[test]
fn a_masked_timer_counts_and_does_not_interrupt() {
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        wrmsr(a, DIVIDE, BY_ONE)?;
        wrmsr(a, TIMER, PERIODIC | MASKED | VECTOR)?;
        wrmsr(a, INITIAL, 1_000_000)?;
        a.sti()?;
        let mut again = a.create_label();
        a.mov(ecx, 100_000)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.cli()?;
        a.mov(ecx, CURRENT)?;
        a.rdmsr()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.word(DATA), 0);
    let left = machine.cpu.gpr[reg::RAX];
    assert!((700_000..850_000).contains(&left), "{left} of a million are left");
}

#[test]
fn an_interrupt_below_the_priority_waits() {
    let mut machine = ticking();
    machine.kernel(|a| {
        enable(a)?;
        wrmsr(a, TPR, 0x40)?;
        wrmsr(a, SELF_IPI, VECTOR)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        a.mov(rbx, qword_ptr(DATA))?;
        wrmsr(a, TPR, 0x30)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        done(a)
    });
    machine.done();
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.word(DATA)), (0, 1));
}

#[test]
fn an_interrupt_in_service_holds_back_its_equals_until_its_end() {
    let mut machine = Machine::new();
    let low = KERNEL + 0x3000;
    for (vector, at) in [(0x41, low), (0x45, low + 0x100), (0x51, low + 0x200)] {
        machine.set_gate(vector, at, 0, 0);
        machine.assemble(at, 64, |a| {
            // The order of arrival, one byte each.
            a.shl(rbx, 8)?;
            a.or(rbx, i32::from(vector))?;
            if vector == 0x45 {
                wrmsr(a, SELF_IPI, 0x41)?;
                wrmsr(a, SELF_IPI, 0x51)?;
                a.sti()?;
                a.nop()?;
                a.nop()?;
                a.cli()?;
            }
            wrmsr(a, EOI, 0)?;
            a.iretq()
        });
    }
    machine.kernel(|a| {
        enable(a)?;
        a.xor(ebx, ebx)?;
        wrmsr(a, SELF_IPI, 0x45)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 0x45_5141);
}

#[test]
fn xapic_and_x2apic_registers_are_the_same() {
    let mut machine = Machine::new();
    // The register page is mapped where nothing else is.
    machine.set_word(0x4000 + DATA / 4096 * 8, 0xfee0_0000 | 0x1b);
    machine.kernel(|a| {
        a.mov(eax, dword_ptr(DATA + 0x30))?;
        a.mov(ebx, eax)?;
        a.mov(dword_ptr(DATA + 0x80), 0x50)?;
        wrmsr(a, APIC_BASE, 0xfee0_0d00)?;
        a.mov(ecx, TPR)?;
        a.rdmsr()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX] & 0xff, 0x14, "version");
    assert_eq!(machine.cpu.gpr[reg::RAX], 0x50);
}

#[test]
fn x2apic_registers_are_there_in_x2apic_mode_only() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(ecx, TPR)?;
        a.rdmsr()
    });
    assert_eq!(machine.trap().vector, 13);
}
