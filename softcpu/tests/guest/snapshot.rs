//! A processor that is saved and restored goes on as if nothing had happened.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::{ArchState, Clock, Cpu, Message, OtherProcessor, RestoreError};

use crate::machine::{DATA, KERNEL, Machine, STACK, done, wrmsr};

const MEMORY: usize = 4 << 20;
const VECTOR: u8 = 0x61;
const MESSAGE: Message = Message {
    destination: 0,
    logical: false,
    mode: 0,
    vector: VECTOR,
};
const HANDLER: u64 = KERNEL + 0x2000;
/// Where the handler counts.
const INTERRUPTS: u64 = DATA + 0x800;

/// A machine whose handler of [`VECTOR`] counts, and whose kernel is this.
fn machine(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut machine = Machine::new();
    machine.set_gate(VECTOR, HANDLER, 0, 0);
    machine.assemble(HANDLER, 64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.inc(qword_ptr(INTERRUPTS))?;
        wrmsr(a, 0x80b, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    });
    machine.kernel(write);
    machine
}

fn enable_apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    wrmsr(a, 0x1b, 0xfee0_0d00)?;
    wrmsr(a, 0x80f, 0x1ff)
}

/// Works with everything that has a state: flags, SSE and x87 with other than default rounding, a timer that
/// interrupts, the time stamp counter, a base of GS, a debug register, direction.
fn everything(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    enable_apic(a)?;
    // A periodic timer of some thousand instructions.
    wrmsr(a, 0x83e, 0b1011)?;
    wrmsr(a, 0x832, 1 << 17 | u64::from(VECTOR))?;
    wrmsr(a, 0x838, 3000)?;
    wrmsr(a, 0xc000_0101, DATA)?;
    a.mov(eax, 0x1234)?;
    a.mov(dr1, rax)?;
    a.mov(dword_ptr(DATA), 0x5f80)?;
    a.ldmxcsr(dword_ptr(DATA))?;
    a.mov(dword_ptr(DATA), 0x0b7f)?;
    a.fldcw(word_ptr(DATA))?;
    a.fldpi()?;
    a.fld1()?;
    a.mov(dword_ptr(DATA), 3)?;
    a.cvtsi2sd(xmm0, dword_ptr(DATA))?;
    a.cvtsi2sd(xmm1, dword_ptr(DATA))?;
    a.sti()?;
    a.std()?;
    a.mov(r15d, 3000)?;
    a.set_label(&mut again)?;
    a.rdtsc()?;
    a.add(rbx, rax)?;
    a.adc(rbp, rdx)?;
    a.sqrtsd(xmm2, xmm1)?;
    a.addsd(xmm1, xmm2)?;
    a.divsd(xmm0, xmm1)?;
    a.fadd_2(st0, st1)?;
    a.fsqrt()?;
    a.mov(edi, (DATA + 0x400) as u32)?;
    a.mov(rax, rbx)?;
    a.stosq()?;
    a.add(rsi, qword_ptr(rdi + 8))?;
    a.add(qword_ptr(0x10).gs(), rsi)?;
    a.push(rsi)?;
    a.pop(r8)?;
    a.dec(r15)?;
    a.jnz(again)?;
    a.mov(r9, dr1)?;
    done(a)
}

/// Runs until so many instructions have retired.
fn run_to(machine: &mut Machine, retired: u64) {
    machine.cpu.set_limit(retired);
    machine.done();
    machine.cpu.set_limit(u64::MAX);
}

/// All of RAM.
fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    assert!(machine.ram.read(0, &mut bytes));
    bytes
}

/// A new machine with the RAM of one and the state of its processor.
fn restored(from: &Machine) -> Machine {
    let state: ArchState = from.cpu.save();
    let machine = Machine::new();
    assert!(machine.ram.write(0, &memory(from)));
    let mut machine = machine;
    machine.cpu.restore(&state).unwrap();
    assert_eq!(machine.cpu.save(), state);

    machine
}

#[test]
fn a_restored_processor_comes_to_the_same_end() {
    let mut total = machine(everything);
    total.done();
    let total = total.cpu.retired();
    for part in 1..8 {
        let mut first = machine(everything);
        run_to(&mut first, total * part / 8);
        let mut second = restored(&first);
        first.done();
        second.done();
        assert!(first.word(INTERRUPTS) > 5);
        assert_eq!(second.cpu.save(), first.cpu.save(), "after {part} of 8 parts");
        assert!(memory(&second) == memory(&first), "after {part} of 8 parts");
    }
}

#[test]
fn an_interrupt_that_waits_is_saved() {
    let kernel = |a: &mut CodeAssembler| {
        enable_apic(a)?;
        done(a)?;
        a.sti()?;
        a.nop()?;
        done(a)
    };
    let mut first = machine(kernel);
    first.done();
    // Nobody has taken it from the mailbox yet.
    first.platform.deliver(MESSAGE);
    let mut second = restored(&first);
    second.done();
    assert_eq!(second.word(INTERRUPTS), 1);
    // Nor when it is saved once more, from where it was restored.
    let mut third = restored(&restored(&first));
    third.done();
    assert_eq!(third.word(INTERRUPTS), 1);
}

#[test]
fn the_shadow_of_a_stack_segment_is_saved() {
    let mut first = machine(|a| {
        enable_apic(a)?;
        a.sti()?;
        a.nop()?;
        a.mov(eax, 0x10)?;
        a.mov(ss, eax)?;
        a.mov(ecx, 7)?;
        done(a)
    });
    first.assemble(HANDLER, 64, |a| {
        a.mov(qword_ptr(INTERRUPTS), rcx)?;
        done(a)
    });
    // WRMSR takes three instructions more; then STI to MOV SS.
    run_to(&mut first, 2 * 4 + 4);
    first.platform.deliver(MESSAGE);
    let mut second = restored(&first);
    second.done();
    assert_eq!(
        second.word(INTERRUPTS),
        7,
        "the interrupt comes after the next instruction"
    );
}

#[test]
fn a_halted_processor_stays_halted_until_its_timer() {
    let kernel = |a: &mut CodeAssembler| {
        enable_apic(a)?;
        wrmsr(a, 0x83e, 0b1011)?;
        wrmsr(a, 0x832, u64::from(VECTOR))?;
        wrmsr(a, 0x838, 100_000)?;
        a.sti()?;
        a.hlt()?;
        a.rdtsc()?;
        done(a)
    };
    let mut first = machine(kernel);
    // WRMSR takes three instructions more; then STI and HLT.
    run_to(&mut first, 5 * 4 + 2);
    let mut second = restored(&first);
    first.done();
    second.done();
    assert_eq!(second.cpu.save(), first.cpu.save());
    assert_eq!(second.word(INTERRUPTS), 1);
}

#[test]
fn a_state_of_another_processor_is_refused() {
    let mut machine = Machine::with(Clock::Instructions, 2);
    let mut other: Box<Cpu> = machine.processor(1, KERNEL);
    other.gpr[4] = STACK;
    let before = machine.cpu.save();
    assert_eq!(
        machine.cpu.restore(&other.save()),
        Err(RestoreError::OtherProcessor(OtherProcessor { saved: 1, this: 0 }))
    );
    assert_eq!(machine.cpu.save(), before);
}
