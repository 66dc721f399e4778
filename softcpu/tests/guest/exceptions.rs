//! Exceptions: vectors, error codes, where they return to, stacks, and faults on the way to a handler (Intel
//! SDM vol. 3, chapter 6).

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{
    CODE64, DATA, DATA_SELECTOR, ENTRY_STACK, End, IDT, IST1, KERNEL, Machine, STACK, USER, USER_CODE64,
    USER_SS, USER_STACK, done,
};

#[test]
fn faults_return_to_their_instruction_and_traps_behind_it() {
    type Write = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(&str, u64, u64, Write); 7] = [
        ("divide", 0, 0, |a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        }),
        ("ud2", 6, 0, |a| {
            a.nop()?;
            a.nop()?;
            a.ud2()
        }),
        ("int3", 3, 3, |a| {
            a.nop()?;
            a.nop()?;
            a.int3()
        }),
        ("int n", 0x55, 4, |a| {
            a.nop()?;
            a.nop()?;
            a.int(0x55)
        }),
        ("a selector beyond the table", 13, 0, |a| {
            a.mov(ax, 0x1000i32)?;
            a.mov(ds, ax)
        }),
        ("a bad control register", 13, 0, |a| {
            a.bts(rax, 63)?;
            a.mov(cr0, rax)
        }),
        ("an address that is not canonical", 13, 0, |a| {
            a.mov(rcx, 1u64 << 50)?;
            a.mov(rax, qword_ptr(rcx))
        }),
    ];
    for (what, vector, past, write) in cases {
        let mut machine = Machine::new();
        let mut last = 0;
        machine.kernel(|a| {
            write(a)?;
            last = a.instructions().len();
            Ok(())
        });
        let code = crate::machine::assembled(KERNEL, 64, write);
        let mut decoder = iced_x86::Decoder::with_ip(64, &code, KERNEL, 0);
        let at = decoder.iter().map(|instruction| instruction.ip()).last().unwrap();
        let trap = machine.trap();
        let expected = if past == 0 { at } else { KERNEL + past };
        assert_eq!(
            (trap.vector, trap.rip),
            (vector, if past == 3 { at + 1 } else { expected }),
            "{what}, {last}"
        );
        assert_eq!(u64::from(CODE64), trap.cs);
        if what.contains("selector") {
            assert_eq!(trap.code, 0x1000);
        }
    }
}

#[test]
fn a_users_exception_comes_in_on_the_kernels_stack() {
    let mut machine = Machine::new();
    machine.user(|a| a.ud2());
    let trap = machine.trap();
    assert_eq!(
        (trap.vector, trap.rip, trap.cs),
        (6, USER, u64::from(USER_CODE64))
    );
    assert_eq!((trap.rsp, trap.ss), (USER_STACK, u64::from(USER_SS)));
    assert_eq!(trap.top, ENTRY_STACK);
    // The new SS is the null selector of privilege level 0.
    assert_eq!(machine.cpu.segment(softcpu::x86_64::state::seg::SS).selector, 0);
}

#[test]
fn a_kernels_exception_stays_on_its_stack_aligned() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.sub(rsp, 0x18)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!((trap.rsp, trap.ss), (STACK - 0x18, u64::from(DATA_SELECTOR)));
    assert_eq!(trap.top, STACK - 0x20);
}

#[test]
fn the_interrupt_stack_table_gives_a_known_stack() {
    let mut machine = Machine::new();
    let handler = machine.word(IDT + 16 * 6) & 0xffff | machine.word(IDT + 16 * 6) >> 32 & 0xffff_0000;
    machine.set_gate(6, handler, 1, 0);
    machine.kernel(|a| {
        a.mov(rsp, 0x8000_0000_0000u64)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.top, trap.rsp), (6, IST1, 0x8000_0000_0000));
}

#[test]
fn a_gates_privilege_level_holds_for_software_only() {
    let mut machine = Machine::new();
    machine.user(|a| a.int(0x55));
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code, trap.rip), (13, 0x55 * 8 + 2, USER));

    let mut machine = Machine::new();
    machine.user(|a| a.ud2());
    assert_eq!(machine.trap().vector, 6);
}

#[test]
fn a_gate_that_is_not_present_says_which() {
    let mut machine = Machine::new();
    machine.set_word(IDT + 16 * 0x55, machine.word(IDT + 16 * 0x55) & !(1 << 47));
    machine.kernel(|a| a.int(0x55));
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (11, 0x55 * 8 + 2));
}

#[test]
fn two_contributory_faults_are_a_double_fault() {
    let mut machine = Machine::new();
    // #GP meets a gate that is not present: #NP on the way to #GP.
    machine.set_word(IDT + 16 * 13, machine.word(IDT + 16 * 13) & !(1 << 47));
    machine.kernel(|a| {
        a.mov(rcx, 1u64 << 50)?;
        a.mov(rax, qword_ptr(rcx))
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (8, 0));
}

#[test]
fn a_page_fault_on_the_way_to_a_page_fault_is_a_double_fault() {
    let mut machine = Machine::new();
    machine.map(DATA, 0);
    let handler = machine.word(IDT + 16 * 8) & 0xffff | machine.word(IDT + 16 * 8) >> 32 & 0xffff_0000;
    machine.set_gate(8, handler, 1, 0);
    machine.kernel(|a| {
        a.mov(rsp, DATA + 0x800)?;
        a.mov(rax, qword_ptr(DATA))
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code, trap.top), (8, 0, IST1));
    assert_eq!(trap.rip, KERNEL + 10);
}

#[test]
fn a_benign_exception_is_replaced_by_what_its_delivery_met() {
    let mut machine = Machine::new();
    machine.set_word(IDT + 16 * 6, machine.word(IDT + 16 * 6) & !(1 << 47));
    machine.kernel(|a| a.ud2());
    let trap = machine.trap();
    // EXT: the program did not ask for it.
    assert_eq!((trap.vector, trap.code), (11, 6 * 8 + 3));
}

#[test]
fn a_fault_on_the_way_to_a_double_fault_shuts_down() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        // An empty table of gates.
        a.sub(rsp, 16)?;
        a.mov(qword_ptr(rsp), 0i32)?;
        a.mov(qword_ptr(rsp + 8), 0i32)?;
        a.lidt(ptr(rsp))?;
        a.ud2()
    });
    assert_eq!(machine.run(), End::Shutdown);
}

#[test]
fn a_single_step_traps_behind_each_instruction() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.inc(rbx)?;
        a.inc(rbx)
    });
    let trap = machine.trap();
    let inc = crate::machine::assembled(KERNEL, 64, |a| a.inc(rbx)).len() as u64;
    let set_up = crate::machine::assembled(KERNEL, 64, |a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()
    });
    assert_eq!(trap.vector, 1);
    assert_eq!(trap.rip, KERNEL + set_up.len() as u64 + inc);
    assert_eq!(machine.cpu.gpr[reg::RBX], 1);
}

#[test]
fn interrupts_wait_for_one_instruction_after_sti() {
    let mut machine = Machine::new();
    machine.platform.deliver_msi(0xfee0_0000, 0x61);
    machine.kernel(|a| {
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        crate::machine::wrmsr(a, 0x80f, 0x1ff)?;
        a.sti()?;
        a.inc(rbx)?;
        a.inc(rbx)?;
        done(a)
    });
    let trap = machine.trap();
    assert_eq!(trap.vector, 0x61);
    assert_eq!(machine.cpu.gpr[reg::RBX], 1);
}
