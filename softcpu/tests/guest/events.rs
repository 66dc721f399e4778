//! Events that meet: NMIs, interrupts and exceptions at the same instruction or inside each other's handlers
//! (Intel SDM vol. 3, §6.7 to §6.9).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Message;
use softcpu::x86_64::state::reg;

use crate::machine::{
    DATA, DATA_SELECTOR, End, IDT, KERNEL, Machine, USER, USER_CODE64, done, enter, page, wrmsr,
};

const HANDLER: u64 = KERNEL + 0x2000;
const OTHER: u64 = KERNEL + 0x2800;
const COMMAND: u32 = 0x830;
const SELF_IPI: u32 = 0x83f;
const EOI: u32 = 0x80b;
/// An NMI to this processor.
const NMI: u64 = 4 << 8;

fn enable_apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    wrmsr(a, 0x1b, 0xfee0_0d00)?;
    wrmsr(a, 0x80f, 0x1ff)
}

const NMI_MESSAGE: Message = Message {
    destination: 0,
    logical: false,
    mode: 4,
    vector: 0,
};

#[test]
fn an_nmi_that_came_in_an_nmis_handler_is_taken_at_its_return() {
    for interrupts in [false, true] {
        let mut machine = Machine::new();
        machine.set_gate(2, HANDLER, 0, 0);
        machine.assemble(HANDLER, 64, |a| {
            let mut second = a.create_label();
            a.inc(rbx)?;
            a.cmp(rbx, 1)?;
            a.jne(second)?;
            wrmsr(a, COMMAND, NMI)?;
            // Not before the return.
            a.nop()?;
            a.mov(rsi, rbx)?;
            a.set_label(&mut second)?;
            a.iretq()
        });
        machine.kernel(|a| {
            enable_apic(a)?;
            if interrupts {
                a.sti()?;
            }
            wrmsr(a, COMMAND, NMI)?;
            a.nop()?;
            done(a)
        });
        machine.done();
        assert_eq!(machine.cpu.gpr[reg::RBX], 2, "interrupts {interrupts}");
        assert_eq!(machine.cpu.gpr[reg::RSI], 1);
    }
}

#[test]
fn an_nmi_comes_before_an_interrupt() {
    let mut machine = Machine::new();
    for (vector, handler, value) in [(2, HANDLER, 1), (0x61, OTHER, 2)] {
        machine.set_gate(vector, handler, 0, 0);
        machine.assemble(handler, 64, |a| {
            a.shl(rbx, 4)?;
            a.or(rbx, value)?;
            a.iretq()
        });
    }
    machine.platform.deliver(NMI_MESSAGE);
    machine.kernel(|a| {
        enable_apic(a)?;
        wrmsr(a, SELF_IPI, 0x61)?;
        wrmsr(a, COMMAND, NMI)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        done(a)
    });
    machine.cpu.gpr[reg::RBX] = 0;
    machine.done();
    // One NMI came before anything ran, one before the interrupt was let in.
    assert_eq!(machine.cpu.gpr[reg::RBX], 0x112);
}

#[test]
fn an_nmi_wakes_a_processor_that_halts_without_interrupts() {
    let mut machine = Machine::new();
    machine.set_gate(2, HANDLER, 0, 0);
    machine.assemble(HANDLER, 64, |a| {
        a.inc(rbx)?;
        a.iretq()
    });
    machine.kernel(|a| {
        a.hlt()?;
        done(a)
    });
    let (platform, ended) = (Arc::clone(&machine.platform), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One that comes before HLT does not count.
            while !ended.load(Ordering::Relaxed) {
                platform.deliver(NMI_MESSAGE);
                std::thread::yield_now();
            }
        });
        let end = machine.run();
        ended.store(true, Ordering::Relaxed);
        assert_eq!(end, End::Done);
    });
    assert_ne!(machine.cpu.gpr[reg::RBX], 0);
}

#[test]
fn an_interrupt_waits_for_the_instruction_behind_a_load_of_the_stack_segment() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        enable_apic(a)?;
        wrmsr(a, SELF_IPI, 0x61)?;
        a.mov(ebx, i32::from(DATA_SELECTOR))?;
        // STI holds it back for the load, the load for the instruction behind it.
        a.sti()?;
        a.mov(ss, ebx)?;
        a.inc(rdi)?;
        a.inc(rdi)?;
        done(a)
    });
    assert_eq!(machine.trap().vector, 0x61);
    assert_eq!(machine.cpu.gpr[reg::RDI], 1);
}

#[test]
fn an_exception_whose_stack_is_not_there_is_delivered_when_it_is() {
    let mut machine = Machine::new();
    // The handler of #PF has a stack of its own, maps the page, and lets the instruction run again.
    machine.set_gate(14, HANDLER, 1, 0);
    let entry = 0x4000 + DATA / 4096 * 8;
    machine.assemble(HANDLER, 64, |a| {
        a.mov(qword_ptr(entry), (DATA | page::PRESENT | page::WRITE) as i32)?;
        a.inc(rbx)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    machine.set_gate(0x55, OTHER, 0, 0);
    machine.assemble(OTHER, 64, |a| {
        a.inc(rdi)?;
        a.iretq()
    });
    machine.map(DATA, 0);
    machine.kernel(|a| {
        a.mov(rsp, DATA + 0x800)?;
        a.int(0x55)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 1, "one page fault");
    assert_eq!(machine.cpu.gpr[reg::RDI], 1, "one interrupt");
}

#[test]
fn an_exception_in_a_handler_returns_into_it() {
    let mut machine = Machine::new();
    machine.set_gate(6, HANDLER, 0, 0);
    machine.set_gate(0, OTHER, 0, 0);
    // #UD divides by zero; #DE skips the division, and #UD what was undefined.
    machine.assemble(HANDLER, 64, |a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)?;
        a.inc(rbx)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    machine.assemble(OTHER, 64, |a| {
        a.inc(rbx)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    machine.kernel(|a| {
        a.ud2()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 2);
}

#[test]
fn an_interrupt_in_user_code_enters_the_kernel_and_returns() {
    let mut machine = Machine::new();
    machine.set_gate(0x61, HANDLER, 0, 0);
    machine.assemble(HANDLER, 64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        wrmsr(a, EOI, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.inc(rbx)?;
        a.iretq()
    });
    machine.kernel(|a| {
        enable_apic(a)?;
        wrmsr(a, SELF_IPI, 0x61)?;
        // With interrupts, as IRET gives them.
        a.push(i32::from(crate::machine::USER_SS))?;
        a.push(crate::machine::USER_STACK as i32)?;
        a.push(0x202)?;
        a.push(i32::from(USER_CODE64))?;
        a.push(USER as i32)?;
        a.iretq()
    });
    machine.assemble(USER, 64, |a| {
        a.inc(rdi)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!(trap.vector, 6);
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RDI]), (1, 1));
    assert_eq!(machine.word(IDT) & 0xffff, 0x9000, "the table is whole");
}

#[test]
fn a_user_without_rights_does_not_reach_a_kernels_gate() {
    let mut machine = Machine::new();
    machine.set_gate(0x80, HANDLER, 0, 3);
    machine.assemble(HANDLER, 64, |a| {
        a.inc(rbx)?;
        a.iretq()
    });
    machine.kernel(|a| enter(a, USER_CODE64, USER));
    machine.assemble(USER, 64, |a| {
        a.int(0x80)?;
        a.int(0x81)
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (13, 0x81 * 8 + 2));
    assert_eq!(machine.cpu.gpr[reg::RBX], 1);
}
