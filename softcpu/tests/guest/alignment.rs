//! Alignment checks (Intel SDM vol. 3, §6.15, interrupt 17): data of user code, where CR0.AM and RFLAGS.AC
//! are set, and nothing else.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, End, Machine, USER, USER_CODE64, USER_DATA, USER_SS, USER_STACK, done};

const AC: u64 = 1 << 18;
const AM: u32 = 18;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// User code with the given flags, under a kernel that sets CR0.AM or not. It ends with UD2.
fn user(am: bool, rflags: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(rax, cr0)?;
        if am {
            a.bts(rax, AM)?;
        }
        a.mov(cr0, rax)?;
        for word in [
            i32::from(USER_SS),
            USER_STACK as i32,
            rflags as i32 | 2,
            i32::from(USER_CODE64),
            USER as i32,
        ] {
            a.push(word)?;
        }
        a.iretq()
    });
    machine.assemble(USER, 64, |a| {
        a.mov(rbx, USER_DATA)?;
        write(a)?;
        a.ud2()
    });
    machine
}

#[test]
fn only_unaligned_accesses_fault_and_only_with_am_and_ac_in_user_mode() {
    let cases: [(&str, bool, Write); 12] = [
        ("an aligned load", false, |a| a.mov(eax, dword_ptr(rbx + 4))),
        ("a load of 8", true, |a| a.mov(rax, qword_ptr(rbx + 4))),
        ("a load of 4", true, |a| a.mov(eax, dword_ptr(rbx + 2))),
        ("a load of 2", true, |a| a.mov(ax, word_ptr(rbx + 1))),
        ("a byte", false, |a| a.mov(al, byte_ptr(rbx + 1))),
        ("a store", true, |a| a.mov(dword_ptr(rbx + 1), eax)),
        ("a change", true, |a| a.add(dword_ptr(rbx + 1), eax)),
        ("an atomic change", true, |a| {
            a.lock().add(dword_ptr(rbx + 1), eax)
        }),
        ("an aligned atomic change", false, |a| {
            a.lock().add(dword_ptr(rbx + 4), 5)?;
            a.lock().add(dword_ptr(rbx + 4), 5)
        }),
        ("a push", true, |a| {
            a.sub(rsp, 4)?;
            a.push(rax)
        }),
        ("a string", true, |a| {
            a.lea(rsi, qword_ptr(rbx + 1))?;
            a.lea(rdi, qword_ptr(rbx + 64))?;
            a.mov(ecx, 2)?;
            a.rep().movsd()
        }),
        ("16 bytes, which have a rule of their own", false, |a| {
            a.movups(xmm0, xmmword_ptr(rbx + 1))
        }),
    ];
    for (what, raises, write) in cases {
        for (am, rflags) in [(true, AC), (false, AC), (true, 0)] {
            let mut machine = user(am, rflags, |a| {
                // The page's translation is known before.
                a.mov(qword_ptr(rbx), rax)?;
                a.mov(rdx, qword_ptr(rbx))?;
                write(a)
            });
            let expected = if raises && am && rflags != 0 { 17 } else { 6 };
            let trap = machine.trap();
            assert_eq!(
                (trap.vector, trap.code),
                (expected, 0),
                "{what}, {am}, {rflags:#x}"
            );
            if what == "an aligned atomic change" {
                assert_eq!(machine.word(USER_DATA + 4) as u32, 10);
            }
        }
    }
}

#[test]
fn ac_can_be_set_and_cleared() {
    let mut machine = user(true, 0, |a| {
        a.mov(eax, dword_ptr(rbx + 1))?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), AC as i32)?;
        a.popfq()?;
        a.mov(eax, dword_ptr(rbx + 4))?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !(AC as i32))?;
        a.popfq()?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rbx + 1), eax)?;
        a.mov(eax, dword_ptr(rbx + 1))
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, machine.cpu.gpr[reg::RCX] as u32), (6, 1));
}

#[test]
fn a_kernel_is_not_checked_and_a_lost_page_is_found_out() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.mov(rax, cr0)?;
        a.bts(rax, AM)?;
        a.mov(cr0, rax)?;
        a.push(AC as i32 | 2)?;
        a.popfq()?;
        a.mov(rbx, DATA)?;
        a.mov(eax, dword_ptr(rbx + 1))?;
        done(a)
    });
    assert_eq!(machine.run(), End::Done);

    // The second store finds that the page was taken away, although the first one knew it.
    let mut machine = user(true, AC, |a| {
        a.lock().add(dword_ptr(rbx), 1)?;
        a.ud2()
    });
    assert_eq!(machine.trap().vector, 6);
    machine.map(USER_DATA, 0);
    machine.kernel(|a| {
        a.mov(rbx, USER_DATA)?;
        a.invlpg(byte_ptr(rbx))?;
        a.push(i32::from(USER_SS))?;
        a.push(USER_STACK as i32)?;
        a.push(AC as i32 | 2)?;
        a.push(i32::from(USER_CODE64))?;
        a.push(USER as i32)?;
        a.iretq()
    });
    machine.cpu.rip = crate::machine::KERNEL;
    assert_eq!(machine.trap().vector, 14);
}
