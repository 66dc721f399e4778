//! Breakpoints on instructions.

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use super::{RF, Write, addresses, debugged, hits, places, set_breakpoint};
use crate::machine::{DATA, KERNEL, done};

#[test]
fn a_breakpoint_stops_before_its_instruction_and_resumes_past_it() {
    let target = KERNEL + 0x800;
    let body: Write = |a| {
        let mut again = a.create_label();
        a.mov(ecx, 2)?;
        a.set_label(&mut again)?;
        a.nop()?;
        a.inc(rbx)?;
        a.nop()?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    };
    let at = places(target, body);
    for dr7_value in [1, 2, 3] {
        let mut machine = debugged();
        machine.kernel(|a| {
            set_breakpoint(a, at[2], dr7_value)?;
            a.jmp(target)
        });
        machine.assemble(target, 64, body);
        machine.done();
        let hits = hits(&machine);
        assert_eq!(addresses(&machine), [at[2], at[2]], "DR7 {dr7_value}");
        assert!(hits.iter().all(|hit| hit.why == 1 && hit.rflags & RF == 0));
        assert_eq!(machine.cpu.gpr[reg::RBX], 2, "each run once");
    }
}

#[test]
fn a_breakpoint_counts_at_the_first_byte_and_while_it_is_enabled() {
    let target = KERNEL + 0x800;
    let body: Write = |a| {
        a.mov(ebx, 1)?;
        a.mov(ecx, 2)?;
        done(a)
    };
    let second = places(target, body)[1];
    for (at, dr7_value, expected) in [(second + 1, 1, 0), (second, 0, 0), (second, 4, 0), (second, 1, 1)] {
        let mut machine = debugged();
        machine.kernel(|a| {
            set_breakpoint(a, at, dr7_value)?;
            a.jmp(target)
        });
        machine.assemble(target, 64, body);
        machine.done();
        assert_eq!(hits(&machine).len(), expected, "DR7 {dr7_value:#x}");
    }
}

#[test]
fn a_fault_resumes_past_the_breakpoint_that_stopped_its_instruction_before() {
    let mut machine = debugged();
    let skip = KERNEL + 0x2000;
    machine.map(DATA, 0);
    machine.set_gate(14, skip, 0, 0);
    // Maps the page and returns to the instruction, with RF as it was pushed.
    let entry = 0x4000 + DATA / 4096 * 8;
    machine.assemble(skip, 64, |a| {
        a.mov(rdx, qword_ptr(rsp + 24))?;
        a.mov(qword_ptr(entry), DATA as i32 | 3)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    let target = KERNEL + 0x800;
    machine.kernel(|a| {
        set_breakpoint(a, target, 1)?;
        a.jmp(target)
    });
    machine.assemble(target, 64, |a| {
        a.mov(rbx, qword_ptr(DATA))?;
        done(a)
    });
    machine.done();
    assert_eq!(addresses(&machine), [target]);
    assert_eq!(machine.cpu.gpr[reg::RDX] & RF, RF);
}
