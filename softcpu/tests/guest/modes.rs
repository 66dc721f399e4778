//! Changes of mode: compatibility mode for 32-bit programs, system calls of both kinds, far returns (Intel
//! SDM vol. 3, 5.8).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{
    CODE64, DATA, ENTRY_STACK, KERNEL, Machine, STACK, USER, USER_CODE32, USER_CODE64, USER_SS, USER_STACK,
    done, enter, wrmsr,
};

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
/// Where system calls arrive.
const ENTRY: u64 = KERNEL + 0x1000;

/// Lets SYSCALL arrive at [`ENTRY`], with interrupts and direction masked; SYSRET returns to the users'
/// segments.
fn system_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    wrmsr(a, STAR, u64::from(CODE64) << 32 | u64::from(USER_CODE32) << 48)?;
    wrmsr(a, LSTAR, ENTRY)?;
    wrmsr(a, FMASK, 0x600)
}

#[test]
fn thirty_two_bit_code_has_its_own_instructions_and_registers() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(rbx, -1i64 as u64)?;
        enter(a, USER_CODE32, USER)
    });
    machine.assemble(USER, 32, |a| {
        a.mov(eax, 0xffff_fff0u32 as i32)?;
        // One byte, which is a prefix in 64-bit code.
        a.inc(eax)?;
        a.lea(ecx, ptr(eax + 0x20))?;
        a.inc(ebx)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!(
        (trap.vector, trap.cs, trap.ss),
        (6, u64::from(USER_CODE32), u64::from(USER_SS))
    );
    assert_eq!(trap.top, ENTRY_STACK);
    assert_eq!(machine.cpu.gpr[reg::RAX], 0xffff_fff1);
    // Addresses wrap at 4 GiB, and so do registers.
    assert_eq!(machine.cpu.gpr[reg::RCX], 0x11);
    assert_eq!(machine.cpu.gpr[reg::RBX], 0);
}

#[test]
fn int_0x80_from_thirty_two_bit_code_reaches_the_kernel_and_returns() {
    let mut machine = Machine::new();
    let handler = KERNEL + 0x2000;
    machine.set_gate(0x80, handler, 0, 3);
    machine.assemble(handler, 64, |a| {
        a.add(eax, 40)?;
        a.mov(qword_ptr(DATA), rsp)?;
        a.iretq()
    });
    machine.kernel(|a| enter(a, USER_CODE32, USER));
    machine.assemble(USER, 32, |a| {
        a.mov(eax, 2)?;
        a.int(0x80)?;
        a.inc(eax)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.cs), (6, u64::from(USER_CODE32)));
    assert_eq!(machine.cpu.gpr[reg::RAX], 43);
    assert_eq!(machine.word(DATA), ENTRY_STACK - 40);
    assert_eq!(trap.rsp, USER_STACK);
}

#[test]
fn syscall_leaves_where_it_was_and_masks_flags() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        system_calls(a)?;
        enter(a, USER_CODE64, USER)
    });
    machine.assemble(ENTRY, 64, |a| a.ud2());
    let before = crate::machine::assembled(USER, 64, |a| {
        a.std()?;
        a.syscall()
    });
    machine.assemble(USER, 64, |a| {
        a.std()?;
        a.syscall()
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.rip, trap.cs), (6, ENTRY, u64::from(CODE64)));
    assert_eq!(trap.rsp, USER_STACK, "the stack is the kernel's to change");
    assert_eq!(machine.cpu.gpr[reg::RCX], USER + before.len() as u64);
    assert_eq!(machine.cpu.gpr[reg::R11] & 0x400, 0x400, "as it was");
    assert_eq!(trap.rflags & 0x400, 0, "masked");
}

#[test]
fn sysret_returns_to_sixty_four_bit_and_to_thirty_two_bit_code() {
    for (wide, selector) in [(true, USER_CODE64), (false, USER_CODE32)] {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            system_calls(a)?;
            a.mov(rcx, USER)?;
            a.mov(r11, 0x202u64)?;
            a.mov(rsp, USER_STACK)?;
            if wide { a.sysretq() } else { a.sysret() }
        });
        machine.assemble(USER, 64, |a| a.ud2());
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.rip, trap.cs), (6, USER, u64::from(selector)));
        assert_eq!((trap.ss, trap.rsp), (u64::from(USER_SS), USER_STACK));
        assert_eq!(trap.rflags & 0x200, 0x200);
    }
}

#[test]
fn syscall_that_is_not_enabled_is_undefined() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, 0xc000_0080, 0xd00)?;
        a.syscall()
    });
    assert_eq!(machine.trap().vector, 6);
}

#[test]
fn a_far_return_changes_the_code_segment() {
    let mut machine = Machine::new();
    let target = KERNEL + 0x800;
    machine.assemble(target, 64, |a| {
        a.mov(ebx, 5)?;
        done(a)
    });
    machine.kernel(|a| {
        // With an operand size of 64 bits, which the assembler has no name for.
        a.push(i32::from(CODE64))?;
        a.push(target as i32)?;
        a.db(&[0x48, 0xcb])
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 5);
}

#[test]
fn a_user_may_not_halt_or_load_tables() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, Write); 4] = [
        ("hlt", |a| a.hlt()),
        ("cli", |a| a.cli()),
        ("mov cr3", |a| a.mov(cr3, rax)),
        ("wrmsr", |a| a.wrmsr()),
    ];
    for (what, write) in cases {
        let mut machine = Machine::new();
        machine.user(write);
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, USER), "{what}");
    }
}

/// Lets SYSENTER arrive at [`ENTRY`]. SYSEXIT returns to segments behind `CODE64`, so tables have to fit.
fn fast_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    wrmsr(a, SYSENTER_CS, u64::from(CODE64))?;
    wrmsr(a, SYSENTER_ESP, STACK - 0x100)?;
    wrmsr(a, SYSENTER_EIP, ENTRY)
}

#[test]
fn sysenter_takes_stack_and_target_from_its_registers() {
    for (selector, bits) in [(USER_CODE32, 32), (USER_CODE64, 64)] {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            fast_calls(a)?;
            enter(a, selector, USER)
        });
        machine.assemble(ENTRY, 64, |a| a.ud2());
        machine.assemble(USER, bits, |a| {
            a.std()?;
            a.sysenter()
        });
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.rip, trap.cs), (6, ENTRY, u64::from(CODE64)));
        assert_eq!((trap.rsp, trap.ss), (STACK - 0x100, u64::from(CODE64) + 8));
        assert_eq!(
            trap.rflags & 0x600,
            0x400,
            "interrupts are off, and nothing else changed"
        );
    }
}

#[test]
fn a_thirty_two_bit_program_calls_the_kernel_by_sysenter_as_linux_lets_it() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        system_calls(a)?;
        fast_calls(a)?;
        enter(a, USER_CODE32, USER)
    });
    // Linux answers with SYSRET, whose segments are those of STAR.
    machine.assemble(ENTRY, 64, |a| {
        a.add(eax, 40)?;
        a.mov(ecx, edx)?;
        a.mov(r11d, 0x202)?;
        a.mov(esp, ebp)?;
        a.sysret()
    });
    machine.assemble(USER, 32, |a| {
        // Behind the fourth instruction.
        a.mov(edx, USER as i32 + 14)?;
        a.mov(ebp, esp)?;
        a.mov(eax, 2)?;
        a.sysenter()?;
        a.inc(eax)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.cs), (6, u64::from(USER_CODE32)));
    assert_eq!((trap.rsp, trap.ss), (USER_STACK, u64::from(USER_SS)));
    assert_eq!(machine.cpu.gpr[reg::RAX], 43);
}

#[test]
fn sysexit_returns_to_the_stack_in_rcx_and_the_code_in_rdx() {
    for (wide, base, bits) in [(true, 0x08u16, 64), (false, 0x08, 32)] {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            wrmsr(a, SYSENTER_CS, u64::from(base))?;
            a.mov(rcx, 0x5_0000_0000 + USER_STACK)?;
            a.mov(rdx, USER)?;
            if wide { a.sysexitq() } else { a.sysexit() }
        });
        // An instruction whose length depends on the mode: what follows runs only where that is right.
        machine.assemble(USER, bits, |a| {
            a.mov(eax, 1)?;
            a.ud2()
        });
        let trap = machine.trap();
        let (code, stack) = if wide {
            (base + 32, 0x5_0000_0000 + USER_STACK)
        } else {
            (base + 16, USER_STACK)
        };
        assert_eq!((trap.vector, trap.rip), (6, USER + 5));
        assert_eq!(
            (trap.cs, trap.ss),
            (u64::from(code | 3), u64::from((code + 8) | 3))
        );
        assert_eq!((trap.rsp, trap.top), (stack, ENTRY_STACK));
    }
}

#[test]
fn sysenter_and_sysexit_need_their_selector_and_sysexit_the_kernel() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, u64, Write); 4] = [
        ("no selector", 0, |a| a.sysenter()),
        ("a null selector", 3, |a| a.sysexit()),
        ("a user", u64::from(CODE64), |a| a.sysexit()),
        ("a user, 64 bits", u64::from(CODE64), |a| a.sysexitq()),
    ];
    for (what, selector, write) in cases {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            wrmsr(a, SYSENTER_CS, selector)?;
            enter(a, USER_CODE64, USER)
        });
        machine.assemble(USER, 64, write);
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, USER), "{what}");
    }
    for (to, stack) in [(1u64 << 47, USER), (USER, 1 << 47)] {
        let mut machine = Machine::new();
        machine.kernel(|a| {
            wrmsr(a, SYSENTER_CS, u64::from(CODE64))?;
            a.mov(rdx, to)?;
            a.mov(rcx, stack)?;
            a.sysexitq()
        });
        assert_eq!(machine.trap().vector, 13, "addresses that are not canonical");
    }
}
