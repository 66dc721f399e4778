//! Gates: what is pushed, which flags a handler starts with, and the table's end (Intel SDM vol. 3, §6.11 to
//! §6.14).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{DATA, IDT, KERNEL, Machine, done};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const RF: u64 = 1 << 16;
const IF: u64 = 1 << 9;

#[test]
fn faults_push_the_resume_flag_and_traps_do_not() {
    let cases: [(&str, u64, bool, Write); 6] = [
        ("ud2", 6, true, |a| a.ud2()),
        ("divide", 0, true, |a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        }),
        ("a protection fault", 13, true, |a| {
            a.bts(rax, 63)?;
            a.mov(cr0, rax)
        }),
        ("a page fault", 14, true, |a| a.mov(eax, dword_ptr(0x7000_0000))),
        ("int3", 3, false, |a| a.int3()),
        ("int n", 0x55, false, |a| a.int(0x55)),
    ];
    for (what, vector, resumes, write) in cases {
        let mut machine = Machine::new();
        machine.kernel(write);
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.rflags & RF != 0), (vector, resumes), "{what}");
    }
}

#[test]
fn an_interrupt_gate_turns_interrupts_off_and_a_trap_gate_leaves_them() {
    for (kind, expected) in [(0xe, 0), (0xf, IF)] {
        let mut machine = Machine::new();
        let handler = KERNEL + 0x2000;
        machine.set_gate(0x55, handler, 0, 0);
        let gate = machine.word(IDT + 16 * 0x55) & !(0xf << 40) | kind << 40;
        machine.set_word(IDT + 16 * 0x55, gate);
        machine.assemble(handler, 64, |a| {
            a.pushfq()?;
            a.pop(qword_ptr(DATA))?;
            a.iretq()
        });
        machine.kernel(|a| {
            a.sti()?;
            a.int(0x55)?;
            a.pushfq()?;
            a.pop(qword_ptr(DATA + 8))?;
            done(a)
        });
        machine.done();
        assert_eq!(machine.word(DATA) & IF, expected);
        assert_eq!(machine.word(DATA + 8) & IF, IF, "and the return restores it");
    }
}

#[test]
fn a_vector_beyond_the_table_names_itself() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.sidt(ptr(DATA))?;
        a.mov(word_ptr(DATA), 0x2ff)?;
        a.lidt(ptr(DATA))?;
        a.int(0x30)
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (13, 0x30 * 8 + 2));
}

#[test]
fn a_gate_of_another_kind_is_refused() {
    // A call gate, and a 16-bit interrupt gate, which long mode does not have.
    for kind in [0xc, 6, 0] {
        let mut machine = Machine::new();
        let gate = machine.word(IDT + 16 * 0x55) & !(0xf << 40) | kind << 40;
        machine.set_word(IDT + 16 * 0x55, gate);
        machine.kernel(|a| a.int(0x55));
        let trap = machine.trap();
        assert_eq!((trap.vector, trap.code), (13, 0x55 * 8 + 2), "kind {kind}");
    }
}
