//! Single steps, steps over branches, and INT1.

use iced_x86::code_asm::*;

use super::{BS, RF, TF, Write, addresses, debugged, enter_with, hits, places};
use crate::machine::{CODE64, KERNEL, Machine, USER, USER_SS, done, wrmsr};

/// Runs user code with TF set, to its UD2; a system call and a software interrupt return at once.
fn stepped(write: Write) -> (Machine, Vec<u64>) {
    const ENTRY: u64 = KERNEL + 0x2000;
    const GATE: u64 = KERNEL + 0x2800;
    let mut machine = debugged();
    machine.set_gate(0x80, GATE, 0, 3);
    machine.assemble(GATE, 64, |a| {
        a.nop()?;
        a.iretq()
    });
    machine.assemble(ENTRY, 64, |a| {
        a.nop()?;
        a.sysretq()
    });
    machine.kernel(|a| {
        wrmsr(
            a,
            0xc000_0081,
            u64::from(CODE64) << 32 | u64::from(USER_SS - 8) << 48,
        )?;
        wrmsr(a, 0xc000_0082, ENTRY)?;
        wrmsr(a, 0xc000_0084, TF)?;
        enter_with(a, 2 | TF)
    });
    machine.assemble(USER, 64, |a| {
        write(a)?;
        a.ud2()
    });
    let trap = machine.trap();
    assert_eq!(trap.vector, 6);
    (machine, places(USER, write))
}

#[test]
fn a_step_into_the_kernel_is_not_trapped_there() {
    let cases: [(&str, Write); 2] = [
        ("int n", |a| {
            a.nop()?;
            a.int(0x80)?;
            a.nop()
        }),
        ("syscall", |a| {
            a.nop()?;
            a.syscall()?;
            a.nop()
        }),
    ];
    for (what, write) in cases {
        let (machine, at) = stepped(write);
        // Behind the first instruction and behind the last: what returns sets TF for what comes next.
        assert_eq!(addresses(&machine), [at[1], at[3]], "{what}");
        assert!(hits(&machine).iter().all(|hit| hit.why == BS), "{what}");
    }
}

#[test]
fn a_system_call_that_leaves_tf_set_is_trapped_at_its_entry() {
    let mut machine = debugged();
    let entry = KERNEL + 0x2000;
    machine.assemble(entry, 64, done);
    machine.kernel(|a| {
        wrmsr(a, 0xc000_0081, u64::from(CODE64) << 32)?;
        wrmsr(a, 0xc000_0082, entry)?;
        enter_with(a, 2 | TF)
    });
    machine.assemble(USER, 64, |a| a.syscall());
    machine.done();
    assert_eq!(addresses(&machine), [entry]);
}

#[test]
fn the_instruction_that_clears_tf_is_still_trapped() {
    let (machine, at) = stepped(|a| {
        a.push(2)?;
        a.popfq()?;
        a.nop()
    });
    assert_eq!(addresses(&machine), at[1..3]);
}

#[test]
fn a_load_of_the_stack_segment_is_trapped_with_the_instruction_behind_it() {
    let (machine, at) = stepped(|a| {
        a.mov(eax, ss)?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(addresses(&machine), [at[1], at[3], at[4]]);
}

#[test]
fn a_repeated_instruction_is_trapped_after_each_iteration() {
    let (machine, at) = stepped(|a| {
        a.mov(edi, crate::machine::USER_DATA as u32)?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        a.nop()
    });
    let rep = hits(&machine)[2..].to_vec();
    let seen: Vec<(u64, bool)> = rep.iter().map(|hit| (hit.rip, hit.rflags & RF != 0)).collect();
    // RF between two iterations: a breakpoint on it does not count again.
    assert_eq!(
        seen,
        [(at[2], true), (at[2], true), (at[3], false), (at[4], false)]
    );
}

#[test]
fn int1_enters_its_handler_from_anywhere_and_sets_nothing() {
    let mut machine = debugged();
    machine.kernel(|a| enter_with(a, 2));
    machine.assemble(USER, 64, |a| {
        a.int1()?;
        a.ud2()
    });
    assert_eq!(machine.trap().vector, 6);
    let hits = hits(&machine);
    assert_eq!((hits.len(), hits[0].rip, hits[0].why), (1, USER + 1, 0));
}

#[test]
fn steps_over_branches_stop_behind_those_that_are_taken() {
    let body: Write = |a| {
        let (mut over, mut end) = (a.create_label(), a.create_label());
        a.nop()?;
        a.cmp(ebx, ebx)?;
        a.jne(over)?;
        a.nop()?;
        a.set_label(&mut over)?;
        a.je(end)?;
        a.nop()?;
        a.set_label(&mut end)?;
        a.nop()
    };
    let mut machine = debugged();
    machine.kernel(|a| {
        wrmsr(a, 0x1d9, 2)?;
        enter_with(a, 2 | TF)
    });
    machine.assemble(USER, 64, |a| {
        body(a)?;
        a.ud2()
    });
    assert_eq!(machine.trap().vector, 6);
    let at = places(USER, body);
    // The exception has cleared BTF: the next instruction is a step of its own.
    assert_eq!(addresses(&machine), [at[6], at[7]]);
}
