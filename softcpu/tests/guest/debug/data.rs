//! Breakpoints on data and on ports.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use super::{
    ACCESS, BS, EXECUTE, HANDLER, PORT, TF, WRITE, Write, addresses, debugged, enabled, hits, places,
    set_breakpoint,
};
use crate::machine::{DATA, DATA_SELECTOR, KERNEL, Machine, done};

/// Where the code is that a breakpoint is for: apart from what sets it, so that it is decoded later.
const TARGET: u64 = KERNEL + 0x800;
/// Where breakpoints lie.
const HERE: u64 = DATA + 0x100;

/// A machine that does `set_up` and goes on at [`TARGET`] with `body`.
fn prepared(
    set_up: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Machine {
    let mut machine = debugged();
    machine.kernel(|a| {
        set_up(a)?;
        a.jmp(TARGET)
    });
    machine.assemble(TARGET, 64, body);
    machine
}

/// A machine that loads the stack segment from watched memory and goes on with `body`.
fn watched_stack_segment(body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> (Machine, Vec<u64>) {
    let whole = |a: &mut CodeAssembler| {
        a.mov(ss, word_ptr(HERE))?;
        body(a)?;
        done(a)
    };
    let mut machine = prepared(|a| set_breakpoint(a, HERE, enabled(0, ACCESS, 2)), whole);
    machine.set_word(HERE, u64::from(DATA_SELECTOR));
    (machine, places(TARGET, whole))
}

/// Where exceptions came, and why.
fn seen(machine: &Machine) -> Vec<(u64, u64)> {
    hits(machine).iter().map(|hit| (hit.rip, hit.why)).collect()
}

/// Runs an instruction with one breakpoint on data and returns what was hit.
fn watched(breakpoint: u64, kind: u64, len: u64, body: Write) -> (Vec<(u64, u64)>, Vec<u64>) {
    let set_up = |a: &mut CodeAssembler| {
        // Whatever is in the TLB by now must not get past the breakpoint.
        a.mov(rax, qword_ptr(HERE))?;
        a.mov(qword_ptr(HERE), rax)?;
        a.mov(ebx, HERE as u32)?;
        a.mov(ecx, 1)?;
        a.mov(edi, HERE as u32)?;
        a.mov(esi, HERE as u32)?;
        set_breakpoint(a, breakpoint, enabled(0, kind, len))
    };
    let mut machine = prepared(set_up, |a| {
        body(a)?;
        a.nop()?;
        done(a)
    });
    machine.done();
    (seen(&machine), places(TARGET, body))
}

#[test]
fn data_breakpoints_are_hit_by_every_byte_that_they_cover() {
    let store: Write = |a| a.mov(dword_ptr(rbx), eax);
    let load: Write = |a| a.mov(eax, dword_ptr(rbx));
    let cases = [
        (HERE, WRITE, 1, store, true),
        (HERE + 3, WRITE, 1, store, true),
        (HERE + 4, WRITE, 1, store, false),
        (HERE - 1, WRITE, 1, store, false),
        (HERE - 1, WRITE, 2, store, false),
        (HERE + 2, WRITE, 2, store, true),
        // Addresses are aligned to the length.
        (HERE + 7, WRITE, 8, store, true),
        (HERE + 7, WRITE, 4, store, false),
        (HERE, ACCESS, 4, store, true),
        (HERE, WRITE, 4, load, false),
        (HERE, ACCESS, 4, load, true),
        (HERE, PORT, 4, store, false),
        (HERE, EXECUTE, 1, load, false),
    ];
    for (at, kind, len, body, expected) in cases {
        let (seen, places) = watched(at, kind, len, body);
        // A trap: the instruction has run.
        let all = [(places[1], 1)];
        let expected = if expected { &all[..] } else { &[] };
        assert_eq!(seen, expected, "{at:#x}, kind {kind}, {len} bytes");
    }
}

#[test]
fn data_breakpoints_see_every_kind_of_access() {
    let cases: [(&str, u64, Write); 13] = [
        ("add to memory", WRITE, |a| a.add(dword_ptr(rbx), 1)),
        ("lock add", WRITE, |a| a.lock().add(dword_ptr(rbx), 1)),
        ("xchg", WRITE, |a| a.xchg(qword_ptr(rbx), rax)),
        ("cmpxchg16b", WRITE, |a| a.lock().cmpxchg16b(xmmword_ptr(rbx))),
        ("cmpxchg, not equal", ACCESS, |a| a.cmpxchg(dword_ptr(rbx), ecx)),
        ("compare and jump", ACCESS, |a| {
            a.cmp(dword_ptr(rbx), 5)?;
            let mut next = a.create_label();
            a.je(next)?;
            a.set_label(&mut next)?;
            a.zero_bytes()
        }),
        ("movaps", WRITE, |a| a.movaps(xmmword_ptr(rbx), xmm0)),
        ("movdqu load", ACCESS, |a| a.movdqu(xmm0, xmmword_ptr(rbx - 8))),
        ("fxsave", WRITE, |a| a.fxsave(ptr(rbx))),
        ("across two pages", ACCESS, |a| {
            a.mov(rax, qword_ptr(DATA + 0xfff))
        }),
        ("fstp", WRITE, |a| {
            a.fldz()?;
            a.fstp(tbyte_ptr(rbx))
        }),
        ("lods", ACCESS, |a| a.lodsd()),
        ("movs", WRITE, |a| a.rep().movsd()),
    ];
    for (what, kind, body) in cases {
        let breakpoint = if what == "across two pages" {
            DATA + 0x1000
        } else {
            HERE
        };
        let (seen, _) = watched(breakpoint, kind, 8, body);
        let why: Vec<u64> = seen.iter().map(|(_, why)| *why).collect();
        assert_eq!(why, [1], "{what}");
    }
}

#[test]
fn the_stack_can_be_watched() {
    let top = DATA + 0x200;
    let body: Write = |a| {
        let mut next = a.create_label();
        a.push(rax)?;
        a.pop(rax)?;
        a.call(next)?;
        a.nop()?;
        a.set_label(&mut next)?;
        done(a)
    };
    let set_up = |a: &mut CodeAssembler| {
        set_breakpoint(a, top - 8, enabled(0, WRITE, 8))?;
        a.mov(rsp, top)
    };
    let mut machine = prepared(set_up, body);
    machine.done();
    let at = places(TARGET, body);
    assert_eq!(addresses(&machine), [at[1], at[4]]);
}

#[test]
fn a_repeated_store_is_trapped_after_the_iteration_that_hits() {
    let set_up = |a: &mut CodeAssembler| {
        set_breakpoint(a, HERE + 5, enabled(0, WRITE, 1))?;
        a.mov(edi, HERE as u32)?;
        a.mov(ecx, 16)
    };
    let mut machine = prepared(set_up, |a| {
        a.rep().stosb()?;
        done(a)
    });
    // The handler's registers are the program's: stop there to look at them.
    machine.assemble(HANDLER, 64, |a| a.ud2());
    assert_eq!(machine.trap().vector, 6);
    assert_eq!(machine.cpu.gpr[reg::RCX], 10);
    assert_eq!(machine.cpu.gpr[reg::RDI], HERE + 6);
}

#[test]
fn a_watch_on_one_page_leaves_other_pages_alone_and_ends_with_its_bit() {
    let mut machine = debugged();
    machine.kernel(|a| {
        set_breakpoint(a, DATA, enabled(0, ACCESS, 8))?;
        a.mov(rax, qword_ptr(DATA + 0x1000))?;
        a.mov(rax, qword_ptr(DATA + 0x800))?;
        a.xor(eax, eax)?;
        a.mov(dr7, rax)?;
        a.mov(rax, qword_ptr(DATA))?;
        done(a)
    });
    machine.done();
    assert_eq!(hits(&machine), []);
}

#[test]
fn a_trap_on_a_load_of_the_stack_segment_waits_for_the_next_instruction() {
    let (mut machine, places) = watched_stack_segment(|a| a.nop());
    machine.done();
    assert_eq!(addresses(&machine), [places[2]]);
}

#[test]
fn a_trap_that_waits_for_the_stack_pointer_comes_with_the_exception_in_between() {
    // Linux's #DB handler has a stack of the interrupt stack table: once more at its first instruction is an
    // endless loop.
    let (mut machine, places) = watched_stack_segment(|a| a.int1());
    machine.done();
    assert_eq!(seen(&machine), [(places[2], 1)]);
}

#[test]
fn ports_are_watched_with_debugging_extensions() {
    for (extended, expected) in [(true, 2), (false, 0)] {
        let mut machine = debugged();
        machine.kernel(|a| {
            a.mov(rax, cr4)?;
            if extended {
                a.or(eax, 8)?;
            }
            a.mov(cr4, rax)?;
            set_breakpoint(a, 0x81, enabled(0, PORT, 1))?;
            a.out(0x80, eax)?;
            a.in_(al, 0x81)?;
            a.out(0x82, al)?;
            done(a)
        });
        machine.done();
        let hits = hits(&machine);
        assert_eq!(hits.len(), expected);
        assert!(hits.iter().all(|hit| hit.why == 1));
        // Each instruction has reached its device once.
        assert_eq!(machine.devices.written.len(), 2);
    }
}

#[test]
fn a_single_step_and_a_breakpoint_are_reported_together() {
    let set_up = |a: &mut CodeAssembler| {
        set_breakpoint(a, DATA, enabled(0, WRITE, 1))?;
        a.pushfq()?;
        a.or(qword_ptr(rsp), TF as i32)?;
        a.popfq()?;
        a.mov(byte_ptr(DATA), al)
    };
    let mut machine = prepared(set_up, done);
    machine.done();
    assert_eq!(hits(&machine)[0].why, BS | 1);
}

#[test]
fn a_trap_that_waits_is_delivered_behind_an_interrupt_and_with_int1() {
    // Behind the load of a stack segment from watched memory, as CVE-2018-8897 has it.
    let cases: [(&str, Write, bool); 2] = [("int n", |a| a.int(0x55), true), ("int1", |a| a.int1(), false)];
    for (what, write, in_handler) in cases {
        let handler = KERNEL + 0x2000;
        let (mut machine, places) = watched_stack_segment(|a| {
            write(a)?;
            a.nop()
        });
        machine.set_gate(0x55, handler, 0, 0);
        machine.assemble(handler, 64, |a| {
            a.nop()?;
            a.iretq()
        });
        machine.done();
        let rip = if in_handler { handler } else { places[2] };
        assert_eq!(seen(&machine), [(rip, 1)], "{what}");
    }
}
