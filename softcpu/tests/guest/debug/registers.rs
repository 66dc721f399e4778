//! The debug registers themselves.

use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use super::{BD, DR6_FIXED, DR7_FIXED, GD, RF, Write, debugged, hits, places};
use crate::machine::{KERNEL, Machine, USER, USER_CODE64, done};

#[test]
fn debug_registers_have_fixed_bits_and_reserved_ones() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(eax, u32::MAX)?;
        a.mov(dr6, rax)?;
        a.mov(rbx, dr6)?;
        // Without general detect, which would stop the next access.
        a.mov(eax, !(GD as u32) & !0xff)?;
        a.mov(dr7, rax)?;
        a.mov(rcx, dr7)?;
        // DR4 and DR5 are other names, without debugging extensions.
        a.db(&[0x0f, 0x21, 0xe2])?;
        a.db(&[0x0f, 0x21, 0xee])?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], DR6_FIXED | 0xe00f);
    assert_eq!(machine.cpu.gpr[reg::RCX], 0xffff_0300 | DR7_FIXED);
    assert_eq!(machine.cpu.gpr[reg::RDX], DR6_FIXED | 0xe00f);
    assert_eq!(machine.cpu.gpr[reg::RSI], 0xffff_0300 | DR7_FIXED);
}

#[test]
fn bad_accesses_to_debug_registers_are_refused() {
    let cases: [(&str, u64, Write); 5] = [
        ("DR4 with debugging extensions", 6, |a| {
            a.mov(rax, cr4)?;
            a.or(eax, 8)?;
            a.mov(cr4, rax)?;
            a.db(&[0x0f, 0x21, 0xe0])
        }),
        ("DR8", 6, |a| a.db(&[0x44, 0x0f, 0x21, 0xc0])),
        ("the upper half of DR6", 13, |a| {
            a.mov(rax, 1u64 << 32)?;
            a.mov(dr6, rax)
        }),
        ("the upper half of DR7", 13, |a| {
            a.mov(rax, 1u64 << 63)?;
            a.mov(dr7, rax)
        }),
        ("a user", 13, |a| crate::machine::enter(a, USER_CODE64, USER)),
    ];
    for (what, vector, write) in cases {
        let mut machine = Machine::new();
        machine.assemble(USER, 64, |a| a.mov(rax, dr0));
        machine.kernel(write);
        assert_eq!(machine.trap().vector, vector, "{what}");
    }
}

#[test]
fn general_detect_stops_the_next_access_and_lets_the_handler_in() {
    let mut machine = debugged();
    let body: Write = |a| {
        a.mov(eax, 0x2000)?;
        a.mov(dr7, rax)?;
        a.mov(rbx, dr0)?;
        done(a)
    };
    machine.kernel(body);
    machine.done();
    let hits = hits(&machine);
    let at = places(KERNEL, body);
    // A fault: the instruction has not run, and runs when GD is clear.
    assert_eq!((hits.len(), hits[0].rip, hits[0].why), (1, at[2], BD));
    assert_eq!(hits[0].dr7 & GD, 0);
    assert_eq!(hits[0].rflags & RF, RF);
}
