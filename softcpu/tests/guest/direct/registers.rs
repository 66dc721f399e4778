//! Registers of programs that run directly: those that the guest's processor has, and no others.

use iced_x86::code_asm::*;
use softcpu::Features;

use super::{Write, available, both, check_ran, same, spin, with_system_calls};
use crate::machine::{DATA, USER_DATA};

#[test]
fn wide_vector_registers_end_the_same() {
    if !Features::host().has(Features::V3) {
        return;
    }
    // The kernel changes some of them behind the program's back, and sees what it left.
    let machines = [false, true].map(|direct| {
        let mut machine = with_system_calls(
            direct,
            |a| {
                a.mov(r8, DATA)?;
                a.vmovdqu(ptr(r8), ymm9)?;
                a.vpaddq(ymm9, ymm9, ymm9)?;
                a.vpxor(xmm10, xmm10, xmm10)
            },
            |a| {
                let mut again = a.create_label();
                a.mov(rbx, 0x1122_3344_5566_7788u64)?;
                a.vmovq(xmm9, rbx)?;
                a.vpbroadcastq(ymm9, xmm9)?;
                a.vpcmpeqd(ymm10, ymm10, ymm10)?;
                a.mov(r12d, 10)?;
                a.set_label(&mut again)?;
                spin(a)?;
                a.vpaddq(ymm11, ymm9, ymm10)?;
                a.vpaddq(ymm9, ymm9, ymm11)?;
                a.syscall()?;
                a.dec(r12d)?;
                a.jnz(again)?;
                a.mov(rdi, USER_DATA)?;
                a.vmovdqu(ptr(rdi), ymm10)?;
                a.ud2()
            },
        );
        assert_eq!(machine.trap().vector, 6);
        check_ran(&machine, direct, "vectors");
        machine
    });
    let [interpreted, direct] = machines;
    assert_eq!(interpreted.cpu.xmm, direct.cpu.xmm);
    assert_eq!(interpreted.cpu.ymm_upper, direct.cpu.ymm_upper);
    assert_ne!(direct.cpu.ymm_upper[9], 0);
    for word in 0..4 {
        assert_eq!(interpreted.word(DATA + 8 * word), direct.word(DATA + 8 * word));
        assert_eq!(
            interpreted.word(USER_DATA + 8 * word),
            direct.word(USER_DATA + 8 * word)
        );
    }
}

/// Instructions of registers beyond x86-64-v3, by their bytes. Where the host has them they run, and change
/// registers that no guest saves.
#[test]
fn registers_that_the_guest_does_not_have_end_the_program() {
    let cases: &[(&str, Write)] = &[
        ("ZMM", |a| {
            spin(a)?;
            // VPTERNLOGD zmm1, zmm1, zmm1, 0xff
            a.db(&[0x62, 0xf3, 0x75, 0x48, 0x25, 0xc9, 0xff])?;
            spin(a)?;
            a.hlt()
        }),
        ("XMM16", |a| {
            spin(a)?;
            // VPTERNLOGD xmm16, xmm16, xmm16, 0xff
            a.db(&[0x62, 0xa3, 0x7d, 0x00, 0x25, 0xc0, 0xff])?;
            spin(a)?;
            a.hlt()
        }),
        ("opmask", |a| {
            spin(a)?;
            // KXNORW k3, k0, k0
            a.db(&[0xc5, 0xfc, 0x46, 0xd8])?;
            spin(a)?;
            a.hlt()
        }),
        ("YMM without XSAVE", |a| {
            spin(a)?;
            a.vpcmpeqd(ymm3, ymm3, ymm3)?;
            spin(a)?;
            a.hlt()
        }),
        ("PKRU", |a| {
            spin(a)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.mov(eax, -1)?;
            a.wrpkru()?;
            spin(a)?;
            a.hlt()
        }),
        ("tiles", |a| {
            spin(a)?;
            a.mov(rdi, USER_DATA)?;
            // TILELOADD tmm1, [rdi + rcx]
            a.db(&[0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x0f])?;
            spin(a)?;
            a.hlt()
        }),
        ("R16", |a| {
            spin(a)?;
            // MOV r16, -1
            a.db(&[0xd5, 0x18, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff])?;
            spin(a)?;
            a.hlt()
        }),
    ];
    for (what, write) in cases {
        for (trap, _) in both(*write) {
            assert_eq!(trap.vector, 6, "{what} {trap:?}");
        }
    }
}

/// What one program left there is not seen by the next one, and direct execution goes on.
#[test]
fn a_program_that_used_them_is_followed_by_others() {
    for direct in [false, true] {
        let mut machine = with_system_calls(
            direct,
            |a| {
                a.mov(r8, DATA)?;
                a.add(qword_ptr(r8), 1)
            },
            |a| {
                spin(a)?;
                a.db(&[0x62, 0xf3, 0x75, 0x48, 0x25, 0xc9, 0xff])?;
                spin(a)?;
                a.hlt()
            },
        );
        assert_eq!(machine.trap().vector, 6);
        let before = machine.cpu.counters().direct_runs;
        // Another program in its place.
        machine.restart(|a| {
            spin(a)?;
            a.vpxor(ymm2, ymm2, ymm2)?;
            a.vpcmpeqd(ymm3, ymm3, ymm3)?;
            spin(a)?;
            a.syscall()?;
            a.hlt()
        });
        assert_eq!(machine.trap().vector, 13);
        assert_eq!(machine.word(DATA), 1);
        assert_eq!(machine.cpu.xmm[1], 0, "no part of ZMM1 is left");
        assert_eq!(machine.cpu.counters().direct_runs > before, direct && available());
    }
}

#[test]
fn segment_registers_are_the_programs() {
    let cases: &[(&str, Write, u64)] = &[
        (
            "bases",
            |a| {
                a.mov(rbx, USER_DATA)?;
                a.wrfsbase(rbx)?;
                a.add(rbx, 0x100)?;
                a.wrgsbase(rbx)?;
                spin(a)?;
                a.mov(qword_ptr(0).fs(), rax)?;
                a.mov(qword_ptr(8).gs(), rax)?;
                a.add(rbx, 0x100)?;
                a.wrgsbase(rbx)?;
                a.mov(qword_ptr(8).gs(), rax)?;
                spin(a)?;
                a.rdfsbase(rsi)?;
                a.rdgsbase(rdi)?;
                a.hlt()
            },
            13,
        ),
        (
            "a base in the kernel's half",
            |a| {
                a.mov(rbx, 0xffff_8000_0000_0000u64)?;
                spin(a)?;
                a.wrgsbase(rbx)?;
                spin(a)?;
                a.rdgsbase(rdi)?;
                spin(a)?;
                a.mov(rax, qword_ptr(8).gs())
            },
            14,
        ),
        (
            "a base that is none",
            |a| {
                spin(a)?;
                a.mov(rbx, 1u64 << 62)?;
                a.wrgsbase(rbx)
            },
            13,
        ),
        (
            "selectors",
            |a| {
                a.mov(rbx, USER_DATA)?;
                spin(a)?;
                a.mov(eax, 0x2b)?;
                a.mov(ds, eax)?;
                a.mov(fs, eax)?;
                spin(a)?;
                a.mov(esi, ds)?;
                a.mov(edi, fs)?;
                a.xor(eax, eax)?;
                a.mov(es, eax)?;
                a.mov(fs, eax)?;
                a.hlt()
            },
            13,
        ),
        (
            "a selector of the host alone",
            |a| {
                spin(a)?;
                a.mov(eax, 0x73)?;
                a.mov(gs, eax)?;
                a.hlt()
            },
            13,
        ),
    ];
    for (what, write, vector) in cases {
        let (trap, _) = same(*write);
        assert_eq!(trap.vector, *vector, "{what}");
    }
}
