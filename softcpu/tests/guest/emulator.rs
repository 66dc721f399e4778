//! Instructions of the kernel's that a differential test in user mode does not reach: system registers,
//! ports, strings that fault half-way (Intel SDM vol. 2).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, DATA_SELECTOR, GDT, KERNEL, Machine, STACK, done, page};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs kernel code to its end and returns RAX.
fn result(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        write(a)?;
        done(a)
    });
    machine.done();
    machine.cpu.gpr[reg::RAX]
}

#[test]
fn cr8_is_the_apics_task_priority() {
    let value = result(|a| {
        crate::machine::wrmsr(a, 0x1b, 0xfee0_0d00)?;
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        a.mov(rbx, cr8)?;
        a.mov(ecx, 0x808)?;
        a.rdmsr()?;
        a.shl(rbx, 8)?;
        a.or(rax, rbx)
    });
    assert_eq!(value, 0x550);
}

#[test]
fn the_machine_status_word_cannot_leave_protected_mode() {
    let value = result(|a| {
        a.mov(eax, 0xe)?;
        a.lmsw(ax)?;
        a.smsw(eax)?;
        // Task switched would end everything with #NM.
        a.clts()?;
        a.and(eax, 0xf)
    });
    assert_eq!(value, 0xf);
}

#[test]
fn registers_that_do_not_exist_are_undefined() {
    let cases: [(&str, Write); 4] = [
        ("mov cr1", |a| a.db(&[0x0f, 0x20, 0xc8])),
        ("mov cr9", |a| a.db(&[0x44, 0x0f, 0x20, 0xc8])),
        ("mov cs", |a| a.db(&[0x8e, 0xc8])),
        ("mov to segment register 6", |a| a.db(&[0x8e, 0xf0])),
    ];
    for (what, write) in cases {
        let mut machine = Machine::new();
        machine.kernel(write);
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.rip), (6, KERNEL), "{what}");
    }
}

#[test]
fn a_loaded_task_is_busy_and_cannot_be_loaded_again() {
    let mut machine = Machine::new();
    machine.set_word(GDT + 0x30, 0x0000_8900_0000_0067);
    machine.set_word(GDT + 0x38, 0);
    machine.kernel(|a| {
        a.mov(eax, 0x30)?;
        a.ltr(ax)?;
        a.str(ebx)?;
        a.ltr(ax)
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (13, 0x30));
    assert_eq!(machine.cpu.gpr[reg::RBX], 0x30);
    assert_eq!(machine.word(GDT + 0x30) >> 40 & 0x1f, 0xb);
}

#[test]
fn segments_are_null_or_fit_the_privilege() {
    let value = result(|a| {
        a.xor(eax, eax)?;
        a.mov(ss, eax)?;
        a.mov(ds, eax)?;
        a.mov(fs, eax)?;
        a.mov(eax, i32::from(DATA_SELECTOR))?;
        a.mov(ss, eax)?;
        a.mov(eax, ss)
    });
    assert_eq!(value, u64::from(DATA_SELECTOR));
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(eax, i32::from(crate::machine::USER_SS))?;
        a.mov(ss, eax)
    });
    let trap = machine.trap();
    assert_eq!(
        (trap.vector, trap.code),
        (13, u64::from(crate::machine::USER_SS & !3))
    );
}

#[test]
fn the_stack_pointer_moves_as_the_operand_says() {
    let mut machine = Machine::new();
    machine.set_word(DATA, 0x1122_3344_5566_7788);
    machine.kernel(|a| {
        a.push(qword_ptr(DATA))?;
        a.mov(rbx, rsp)?;
        // PUSH of 16 bits, which the assembler has no name for.
        a.db(&[0x66, 0x68, 0x34, 0x12])?;
        a.sub(rbx, rsp)?;
        a.pop(word_ptr(DATA + 8))?;
        // An address from RSP is the one after the pop.
        a.pop(qword_ptr(rsp - 0x20))?;
        a.mov(rax, qword_ptr(rsp - 0x20))?;
        a.push(rsp)?;
        a.pop(rcx)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RAX], 0x1122_3344_5566_7788);
    assert_eq!(machine.cpu.gpr[reg::RBX], 2);
    assert_eq!(machine.cpu.gpr[reg::RCX], STACK, "as it was before the push");
    assert_eq!(machine.word(DATA + 8) & 0xffff, 0x1234);
}

#[test]
fn strings_that_fault_have_done_what_their_registers_say() {
    type Case = (&'static str, Write, u64);
    let cases: [Case; 5] = [
        ("movs", |a| a.rep().movsb(), 16),
        ("movs, words across the page", |a| a.rep().movsq(), 14),
        ("stos", |a| a.rep().stosb(), 16),
        ("cmps", |a| a.repe().cmpsb(), 16),
        ("scas", |a| a.repe().scasb(), 16),
    ];
    for (what, write, size) in cases {
        let mut machine = Machine::new();
        // Sixteen bytes before a page that is not there.
        machine.map(DATA + 0x1000, 0);
        let wide = size == 14;
        let start = DATA + 0xff0 + if wide { 1 } else { 0 };
        machine.kernel(|a| {
            a.mov(edi, start as u32)?;
            a.mov(esi, DATA as u32 + 0x100)?;
            a.mov(ecx, 0x100)?;
            a.xor(eax, eax)?;
            write(a)
        });
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.cr2), (14, DATA + 0x1000), "{what}");
        let (done, step) = if wide { (1, 8) } else { (16, 1) };
        assert_eq!(machine.cpu.gpr[reg::RCX], 0x100 - done, "{what}");
        assert_eq!(machine.cpu.gpr[reg::RDI], start + done * step, "{what}");
        // It goes on where it stopped.
        machine.map(DATA + 0x1000, page::PRESENT | page::WRITE);
        machine.cpu.rip = trap.rip;
        machine.cpu.gpr[reg::RSP] = trap.rsp;
        let code = crate::machine::assembled(trap.rip, 64, write);
        machine.assemble(trap.rip + code.len() as u64, 64, done_code);
        machine.done();
        assert_eq!(machine.cpu.gpr[reg::RCX], 0, "{what}");
    }
}

fn done_code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    done(a)
}

#[test]
fn strings_of_ports_move_their_registers() {
    let mut machine = Machine::new();
    machine.set_word(DATA, 0x0403_0201);
    machine.kernel(|a| {
        a.mov(esi, DATA as u32)?;
        a.mov(edx, 0x80)?;
        a.mov(ecx, 4)?;
        a.rep().outsb()?;
        a.std()?;
        a.mov(edi, DATA as u32 + 0x10)?;
        a.mov(ecx, 2)?;
        a.rep().insd()?;
        done(a)
    });
    machine.done();
    let written: Vec<u32> = machine.devices.written.iter().map(|(_, value)| *value).collect();
    assert_eq!(written, [1, 2, 3, 4]);
    assert_eq!(machine.cpu.gpr[reg::RSI], DATA + 4);
    assert_eq!(machine.cpu.gpr[reg::RDI], DATA + 8, "downwards");
}

#[test]
fn aligned_moves_fault_off_their_alignment_and_others_do_not() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(ebx, DATA as u32 + 8)?;
        a.movups(xmm0, xmmword_ptr(rbx))?;
        a.movdqu(xmmword_ptr(rbx), xmm0)?;
        a.movaps(xmm0, xmmword_ptr(rbx))
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (13, 0));
}

#[test]
fn disabled_units_raise_device_not_available() {
    let cases: [(&str, u64, u64, Write); 5] = [
        ("TS, x87", 1 << 3, 7, |a| a.fld1()),
        ("TS, SSE", 1 << 3, 7, |a| a.addps(xmm0, xmm0)),
        ("EM, x87", 1 << 2, 7, |a| a.fld1()),
        ("EM, SSE", 1 << 2, 6, |a| a.addps(xmm0, xmm0)),
        ("EM, MMX", 1 << 2, 6, |a| a.emms()),
    ];
    for (what, bit, vector, write) in cases {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            a.mov(rax, cr0)?;
            a.or(eax, bit as i32)?;
            a.mov(cr0, rax)?;
            write(a)
        });
        assert_eq!(machine.trap().vector, vector, "{what}");
    }
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(rax, cr4)?;
        a.btr(rax, 9)?;
        a.mov(cr4, rax)?;
        a.addps(xmm0, xmm0)
    });
    assert_eq!(machine.trap().vector, 6, "SSE without OSFXSR");
}
