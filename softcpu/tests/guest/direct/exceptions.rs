//! Exceptions of programs that run directly are the guest's.

use iced_x86::code_asm::*;

use super::{STAR, SYSTEM_CALL, Write, check_ran, enter, machine, same, spin};
use crate::machine::{Trap, USER_DATA, wrmsr};

const CSTAR: u32 = 0xc000_0083;

#[test]
fn exceptions_are_the_guests() {
    let cases: &[(&str, Write, u64)] = &[
        (
            "division",
            |a| {
                spin(a)?;
                a.xor(ecx, ecx)?;
                a.div(ecx)
            },
            0,
        ),
        (
            "int3",
            |a| {
                spin(a)?;
                a.int3()
            },
            13,
        ),
        (
            "int 3 of two bytes",
            |a| {
                spin(a)?;
                a.db(&[0xcd, 3])
            },
            13,
        ),
        (
            "ud2",
            |a| {
                spin(a)?;
                a.ud2()
            },
            6,
        ),
        (
            "hlt",
            |a| {
                spin(a)?;
                a.hlt()
            },
            13,
        ),
        (
            "a kernel's page",
            |a| {
                spin(a)?;
                a.mov(rax, qword_ptr(0x1000))
            },
            14,
        ),
        (
            "not canonical",
            |a| {
                spin(a)?;
                a.mov(rdi, 1u64 << 62)?;
                a.mov(rax, qword_ptr(rdi))
            },
            13,
        ),
        (
            "int 0x80",
            |a| {
                spin(a)?;
                a.mov(eax, eax)?;
                a.int(0x80)
            },
            13,
        ),
        (
            "a jump to nothing",
            |a| {
                spin(a)?;
                a.mov(rdi, 0x1234_5678_9000u64)?;
                a.jmp(rdi)
            },
            14,
        ),
        (
            "int 4",
            |a| {
                spin(a)?;
                a.int(4)?;
                a.nop()
            },
            13,
        ),
        (
            "int1",
            |a| {
                spin(a)?;
                a.db(&[0xf1])
            },
            1,
        ),
        (
            "a stack that is not canonical",
            |a| {
                spin(a)?;
                a.mov(rsp, 1u64 << 62)?;
                a.push(rax)
            },
            12,
        ),
        (
            "TF",
            |a| {
                spin(a)?;
                a.pushfq()?;
                a.or(qword_ptr(rsp), 0x100)?;
                a.popfq()?;
                a.nop()?;
                a.nop()
            },
            1,
        ),
        (
            "AC, which this kernel does not ask for",
            |a| {
                spin(a)?;
                a.mov(rdi, USER_DATA + 1)?;
                a.pushfq()?;
                a.or(qword_ptr(rsp), 0x4_0000)?;
                a.popfq()?;
                a.mov(qword_ptr(rdi), rdi)?;
                spin(a)?;
                a.hlt()
            },
            13,
        ),
        (
            "x87",
            |a| {
                spin(a)?;
                a.push(0x340)?;
                a.fldcw(word_ptr(rsp))?;
                a.fld1()?;
                a.fldz()?;
                a.fdivp(st1, st0)?;
                a.db(&[0x9b])
            },
            16,
        ),
        (
            "SSE",
            |a| {
                spin(a)?;
                a.push(0)?;
                a.ldmxcsr(dword_ptr(rsp))?;
                a.xorps(xmm1, xmm1)?;
                a.divps(xmm2, xmm1)
            },
            6,
        ),
        (
            "a port",
            |a| {
                spin(a)?;
                a.in_(al, dx)
            },
            13,
        ),
        (
            "a register of the kernel's",
            |a| {
                spin(a)?;
                a.mov(rax, cr3)
            },
            13,
        ),
        (
            "swapgs",
            |a| {
                spin(a)?;
                a.swapgs()
            },
            13,
        ),
        (
            "an interrupt return to the kernel",
            |a| {
                spin(a)?;
                for word in [0x10, 0x2_0000, 2, 8, 0x3_0000] {
                    a.push(word)?;
                }
                a.iretq()
            },
            13,
        ),
        (
            "a far return to a gate of the kernel",
            |a| {
                spin(a)?;
                a.push(0x10)?;
                a.push(0x3_0000)?;
                a.db(&[0x48, 0xcb])
            },
            13,
        ),
        (
            "a store to code",
            |a| {
                let mut code = a.create_label();
                spin(a)?;
                a.lea(rdi, ptr(code))?;
                a.mov(word_ptr(rdi), 0x0b0f)?;
                a.set_label(&mut code)?;
                a.nop()?;
                a.nop()
            },
            6,
        ),
    ];
    for (what, write, vector) in cases {
        let (trap, _) = same(*write);
        assert_eq!(trap.vector, *vector, "{what}");
    }
}

/// A 64-bit program that jumps to Linux's segment for 32-bit programs, which the host has as well.
fn in_32_bits(direct: bool, code: &[u8]) -> Trap {
    let mut machine = machine(direct, |a| {
        let mut narrow = a.create_label();
        spin(a)?;
        a.push(0x23)?;
        a.lea(rdi, ptr(narrow))?;
        a.push(rdi)?;
        a.db(&[0x48, 0xcb])?;
        a.set_label(&mut narrow)?;
        a.db(code)?;
        a.ud2()
    });
    machine.kernel(|a| {
        wrmsr(a, STAR, 0x23 << 48 | 0x08 << 32)?;
        wrmsr(a, CSTAR, SYSTEM_CALL)?;
        enter(a)
    });
    machine.assemble(SYSTEM_CALL, 64, |a| a.ud2());
    let trap = machine.trap();
    check_ran(&machine, direct, &format!("{code:x?} {trap:?}"));
    trap
}

#[test]
fn a_far_jump_to_32_bit_code_is_the_guests() {
    // INT 0x80, INTO with OF, an undefined instruction.
    let cases: [(&[u8], u64); 3] = [
        (&[0xcd, 0x80], 13),
        (&[0xb0, 0x7f, 0x04, 0x7f, 0xce, 0x90], 13),
        (&[0x0f, 0x0b], 6),
    ];
    for (code, vector) in cases {
        let [interpreted, direct] = [false, true].map(|direct| in_32_bits(direct, code));
        assert_eq!(interpreted.vector, vector, "{code:x?}");
        assert_eq!(interpreted, direct, "{code:x?}");
    }
    // SYSCALL and SYSENTER, after which the host's kernel knows the address no more: the program ends.
    for code in [[0x0f, 0x05], [0x0f, 0x34]] {
        let trap = in_32_bits(true, &code);
        assert!([6, 13, 14].contains(&trap.vector), "{code:x?} {trap:?}");
    }
}
