//! Gates, frames and stacks of protected mode (Intel SDM vol. 3, §6.11 to §6.13), and its fast system calls.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Exit;
use softcpu::x86_64::state::reg;

use super::{CODE32, Paging, Protected, TSS, enter_user, enter_user_with, length, set_gate};
use crate::machine::{
    DATA, DATA_SELECTOR, ENTRY_STACK, End, GDT, IDT, KERNEL, STACK, USER, USER_CODE32, USER_SS, USER_STACK,
    done, wrmsr,
};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const IF: u64 = 1 << 9;
const RF: u64 = 1 << 16;
const HANDLER: u64 = KERNEL + 0x2000;

fn protected() -> Protected {
    Protected::new(Paging::Pae)
}

#[test]
fn a_kernels_exception_stays_on_its_stack() {
    let cases: [(&str, u32, u32, u64, Write); 5] = [
        ("ud2", 6, 0, RF, |a| a.ud2()),
        ("int3", 3, 0, 0, |a| a.int3()),
        ("int n", 0x55, 0, 0, |a| a.int(0x55)),
        ("a selector beyond the table", 13, 0x1000, RF, |a| {
            a.mov(ax, 0x1000i32)?;
            a.mov(ds, ax)
        }),
        ("paging without protection", 13, 0, RF, |a| {
            a.mov(eax, cr0)?;
            a.and(eax, -2)?;
            a.mov(cr0, eax)
        }),
    ];
    for (what, vector, code, resumes, write) in cases {
        let mut protected = protected();
        protected.kernel(write);
        let trap = protected.trap();
        assert_eq!((trap.vector, trap.code), (vector, code), "{what}");
        assert_eq!((trap.cs, trap.eflags & RF), (CODE32, resumes), "{what}");
        // Flags, CS, EIP and the handler's two words; the error code is one of these.
        assert_eq!(trap.sp, STACK - 12, "{what}");
    }
}

#[test]
fn a_users_exception_comes_in_on_the_tasks_stack() {
    let mut protected = protected();
    protected.user(|a| a.ud2());
    let trap = protected.trap();
    assert_eq!((trap.vector, trap.eip, trap.cs), (6, USER, USER_CODE32));
    assert_eq!((trap.esp, trap.ss), (USER_STACK, USER_SS));
    assert_eq!(trap.sp, ENTRY_STACK - 20);
    let stack = protected.machine.cpu.segment(softcpu::x86_64::state::seg::SS);
    assert_eq!((stack.selector, stack.limit), (DATA_SELECTOR, u32::MAX));
}

#[test]
fn a_system_call_by_interrupt_returns_to_the_user() {
    let mut protected = protected();
    set_gate(&mut protected.machine, 0x80, HANDLER, 0xee);
    protected.machine.assemble(HANDLER, 32, |a| {
        a.add(eax, 40)?;
        a.mov(dword_ptr(DATA), esp)?;
        a.iretd()
    });
    protected.user(|a| {
        a.mov(eax, 2)?;
        a.int(0x80)?;
        a.push(eax)?;
        a.ud2()
    });
    let trap = protected.trap();
    assert_eq!((trap.vector, trap.cs, trap.ss), (6, USER_CODE32, USER_SS));
    assert_eq!(trap.esp, USER_STACK - 4);
    assert_eq!(protected.machine.cpu.gpr[reg::RAX], 42);
    assert_eq!(protected.word(DATA), ENTRY_STACK as u32 - 20);
}

#[test]
fn an_interrupt_gate_turns_interrupts_off_and_a_trap_gate_leaves_them() {
    for (access, expected) in [(0x8e, 0), (0x8f, IF)] {
        let mut protected = protected();
        set_gate(&mut protected.machine, 0x55, HANDLER, access);
        protected.machine.assemble(HANDLER, 32, |a| {
            a.pushfd()?;
            a.pop(dword_ptr(DATA))?;
            a.iretd()
        });
        protected.kernel(|a| {
            a.sti()?;
            a.int(0x55)?;
            a.pushfd()?;
            a.pop(dword_ptr(DATA + 8))?;
            done(a)
        });
        protected.machine.done();
        assert_eq!(u64::from(protected.word(DATA)) & IF, expected);
        assert_eq!(u64::from(protected.word(DATA + 8)) & IF, IF);
    }
}

#[test]
fn a_sixteen_bit_gate_pushes_sixteen_bit_words() {
    let mut protected = protected();
    // Its handler lies in the first 64 KiB.
    let handler = 0xb000;
    set_gate(&mut protected.machine, 0x55, handler, 0x86);
    protected.machine.assemble(handler, 32, |a| {
        a.mov(ebx, esp)?;
        a.movzx(ecx, word_ptr(esp))?;
        a.movzx(edx, word_ptr(esp + 2))?;
        done(a)
    });
    protected.kernel(|a| a.int(0x55));
    protected.machine.done();
    let gpr = &protected.machine.cpu.gpr;
    assert_eq!(gpr[reg::RBX], STACK - 6);
    assert_eq!(
        (gpr[reg::RCX], gpr[reg::RDX]),
        ((KERNEL + 2) & 0xffff, u64::from(CODE32))
    );
}

#[test]
fn gates_have_a_privilege_level_a_place_and_a_kind() {
    let cases: [(&str, u64, u64, u32, u32); 4] = [
        ("beyond the user's privilege", 0x8e, 0x7ff, 13, 0x55 * 8 + 2),
        ("not present", 0x6e, 0x7ff, 11, 0x55 * 8 + 2),
        ("a call gate", 0xec, 0x7ff, 13, 0x55 * 8 + 2),
        ("behind the table", 0xee, 0x2a7, 13, 0x55 * 8 + 2),
    ];
    for (what, access, limit, vector, code) in cases {
        let mut protected = protected();
        set_gate(&mut protected.machine, 0x55, HANDLER, access);
        protected.machine.set_word(DATA, IDT << 16 | limit);
        protected.kernel(|a| {
            a.lidt(ptr(DATA))?;
            enter_user(a)
        });
        protected.machine.assemble(USER, 32, |a| a.int(0x55));
        let trap = protected.trap();
        assert_eq!((trap.vector, trap.code, trap.eip), (vector, code, USER), "{what}");
    }
}

#[test]
fn the_tasks_stack_segment_is_checked() {
    let absent = 0x00cf_1300_0000_ffff;
    let read_only = 0x00cf_9100_0000_ffff;
    // (what, selector of SS0, the descriptor at 0x28, limit of the task, vector, code)
    for (what, selector, descriptor, limit, vector, code) in [
        ("null", 0, 0, 0x67, 10, 1),
        ("of another level", u64::from(USER_SS), 0, 0x67, 10, 0x20 | 1),
        ("code", u64::from(CODE32), 0, 0x67, 10, u32::from(CODE32) | 1),
        ("read-only", 0x28, read_only, 0x67, 10, 0x28 | 1),
        ("absent", 0x28, absent, 0x67, 12, 0x28 | 1),
        ("behind the task's end", 0x10, 0, 8, 10, 0x30 | 1),
    ] {
        let mut protected = protected();
        protected.machine.set_word(GDT + 0x28, descriptor);
        protected.machine.set_word(TSS + 8, selector);
        // A conforming handler for what is met, which stays on the user's stack.
        let conforming = 0x00cf_9f00_0000_ffff;
        protected.machine.set_word(GDT + 8, conforming);
        for vector in [10u64, 12] {
            let gate = protected.machine.word(IDT + 8 * vector);
            protected
                .machine
                .set_word(IDT + 8 * vector, gate & !0xffff_0000 | 8 << 16);
        }
        protected
            .machine
            .set_word(GDT + 0x30, 0x0000_8900_8000_0000 | limit);
        protected.kernel(|a| {
            a.mov(ax, 0x30)?;
            a.ltr(ax)?;
            // With the I/O privilege level of users: the handler's port is theirs, too.
            enter_user_with(a, 0x3002)
        });
        // And so is the page of the handlers.
        protected.map(0x9000, 7);
        protected.machine.assemble(USER, 32, |a| a.ud2());
        let machine = &mut protected.machine;
        assert_eq!(machine.cpu.run(&mut machine.devices), Exit::Stopped, "{what}");
        let top = machine.word(machine.cpu.gpr[reg::RSP]);
        assert_eq!((top as u32, (top >> 32) as u32), (vector, code), "{what}");
    }
}

#[test]
fn faults_on_the_way_become_a_double_fault_and_a_shutdown() {
    let mut protected = protected();
    let gate = protected.machine.word(IDT + 8 * 13) & !(1 << 47);
    protected.machine.set_word(IDT + 8 * 13, gate);
    protected.kernel(|a| {
        a.mov(ax, 0x1000i32)?;
        a.mov(ds, ax)
    });
    let trap = protected.trap();
    assert_eq!((trap.vector, trap.code), (8, 0));

    // Without a table, as trampolines of kernels have it.
    let mut protected = super::Protected::new(Paging::TwoLevels);
    protected.machine.set_word(DATA, 0);
    protected.kernel(|a| {
        a.lidt(ptr(DATA))?;
        a.ud2()
    });
    assert_eq!(protected.machine.run(), End::Shutdown);
}

#[test]
fn a_task_gate_shuts_down_and_is_reported() {
    let mut protected = protected();
    set_gate(&mut protected.machine, 8, 0, 0x85);
    let gate = protected.machine.word(IDT + 8 * 13) & !(1 << 47);
    protected.machine.set_word(IDT + 8 * 13, gate);
    protected.kernel(|a| {
        a.mov(ax, 0x1000i32)?;
        a.mov(ds, ax)
    });
    assert_eq!(protected.machine.run(), End::Shutdown);
    assert_eq!(protected.machine.devices.unimplemented, ["a task switch"]);
}

#[test]
fn returns_to_tasks_and_to_virtual_8086_mode_are_refused() {
    let cases: [(&str, u32, &[&str], Write); 2] = [
        ("a nested task", 10, &[], |a| {
            a.push(0x4002)?;
            a.popfd()?;
            a.iretd()
        }),
        ("virtual-8086 mode", 13, &["virtual-8086 mode"], |a| {
            a.push(0x2_0002)?;
            a.push(i32::from(CODE32))?;
            a.push(KERNEL as i32)?;
            a.iretd()
        }),
    ];
    for (what, vector, reported, write) in cases {
        let mut protected = protected();
        protected.kernel(write);
        let trap = protected.trap();
        assert_eq!((trap.vector, trap.code), (vector, 0), "{what}");
        assert_eq!(protected.machine.devices.unimplemented, reported, "{what}");
    }
}

#[test]
fn an_interrupt_from_outside_comes_in() {
    let mut protected = protected();
    protected.machine.platform.deliver_msi(0xfee0_0000, 0x61);
    protected.kernel(|a| {
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        wrmsr(a, 0x80f, 0x1ff)?;
        enter_user_with(a, 0x202)
    });
    protected.machine.assemble(USER, 32, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    let trap = protected.trap();
    assert_eq!((trap.vector, trap.cs, trap.ss), (0x61, USER_CODE32, USER_SS));
    assert_eq!(trap.eflags & IF, IF);
}

/// The four segments behind the one in the register: the kernel's code and data, the user's code and data.
#[test]
fn sysenter_and_sysexit_call_the_kernel_and_return() {
    const BASE: u64 = 0x08;
    let mut protected = protected();
    protected.machine.assemble(HANDLER, 32, |a| {
        a.mov(dword_ptr(DATA), esp)?;
        a.mov(word_ptr(DATA + 8), cs)?;
        a.mov(word_ptr(DATA + 10), ss)?;
        a.add(eax, 40)?;
        a.mov(ecx, USER_STACK as i32)?;
        a.sysexit()
    });
    protected.kernel(|a| {
        wrmsr(a, 0x174, BASE)?;
        wrmsr(a, 0x175, STACK - 0x100)?;
        wrmsr(a, 0x176, HANDLER)?;
        enter_user(a)
    });
    let call = |a: &mut CodeAssembler| {
        a.mov(eax, 2)?;
        a.mov(edx, USER as i32 + 12)?;
        a.sysenter()
    };
    assert_eq!(length(call), 12);
    protected.machine.assemble(USER, 32, |a| {
        call(a)?;
        a.ud2()
    });
    let trap = protected.trap();
    assert_eq!((trap.vector, trap.eip, trap.esp), (6, USER + 12, USER_STACK));
    assert_eq!(
        (trap.cs, trap.ss),
        ((BASE as u16 + 16) | 3, (BASE as u16 + 24) | 3)
    );
    assert_eq!(protected.machine.cpu.gpr[reg::RAX], 42);
    assert_eq!(u64::from(protected.word(DATA)), STACK - 0x100);
    let selectors = protected.word(DATA + 8);
    assert_eq!(
        (selectors & 0xffff, selectors >> 16),
        (BASE as u32, BASE as u32 + 8)
    );
}
