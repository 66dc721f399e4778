//! A program that tries to reach the host: every number of every kind of system call, and what its helper has
//! of its own.

use std::fs;
use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::direct::{Helper, When};

use super::{SYSTEM_CALL, answer_system_calls, available, check_ran, machine, spin};
use crate::machine::{DATA, Machine, USER_DATA};

/// A machine that has one helper: its process and the addresses that it keeps for itself, for the program.
fn hostile(
    write: impl FnOnce(&mut CodeAssembler, u64) -> Result<(), IcedError>,
) -> (Machine, Option<(u32, Range<u64>)>) {
    let mut machine = machine(false, spin);
    let helper = available().then(|| Helper::start(machine.file()).unwrap());
    let process = helper.as_ref().map(|helper| (helper.id(), helper.own()));
    machine
        .cpu
        .run_directly_in(helper.into_iter().collect(), When::Always);
    let own = process.as_ref().map_or(0x1234_5678_9000, |(_, own)| own.start);
    machine.assemble(crate::machine::USER, 64, |a| write(a, own));
    (machine, process)
}

/// Checks that a helper has what it had and nothing else.
fn check_helper(process: Option<(u32, Range<u64>)>) {
    let Some((id, own)) = process else { return };
    let read = |what: &str| fs::read_to_string(format!("/proc/{id}/{what}")).unwrap();
    let status = read("status");
    for line in ["Threads:\t1", "Seccomp:\t2", "NoNewPrivs:\t1", "State:\tt"] {
        assert!(status.contains(line), "{line} {status}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{id}/task")).unwrap().count(), 1);
    let files: Vec<_> = fs::read_dir(format!("/proc/{id}/fd"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let ram = fs::read_link(&files[0]).unwrap();
    assert!(ram.to_string_lossy().starts_with("/memfd:guest"), "{ram:?}");
    let mut kept = 0;
    for line in read("maps").lines() {
        let (begin, rest) = line.split_once('-').unwrap();
        let begin = u64::from_str_radix(begin, 16).unwrap();
        let rights = rest.split(' ').nth(1).unwrap();
        if own.contains(&begin) {
            kept += 1;
            assert!(["r-xp", "r--s"].contains(&rights), "{line}");
        } else {
            let known = line.contains("/memfd:guest") || line.ends_with("[vsyscall]");
            assert!(known && !rights.contains("wx"), "{line}");
        }
    }
    assert_eq!(kept, 2);
}

/// Numbers that are tried: all that there are, those of x32, and negative ones.
const NUMBERS: [i32; 3] = [0, 0x4000_0000, -1024];
const EACH: u32 = 1024;

/// Calls all of them by `call`, with arguments of calls that change memory: the helper's own pages, and rights.
fn call_all(a: &mut CodeAssembler, own: u64, call: &[u8]) -> Result<(), IcedError> {
    for first in NUMBERS {
        let mut again = a.create_label();
        a.mov(r12, i64::from(first))?;
        a.mov(r13d, EACH)?;
        a.set_label(&mut again)?;
        a.mov(rax, r12)?;
        a.mov(rdi, own)?;
        a.mov(esi, 0x5000)?;
        a.mov(edx, 7)?;
        a.mov(r10d, 0x31)?;
        a.mov(r8, -1i64)?;
        a.xor(r9d, r9d)?;
        a.mov(ebx, edi)?;
        a.db(call)?;
        a.inc(r12)?;
        a.dec(r13d)?;
        a.jnz(again)?;
    }
    Ok(())
}

#[test]
fn every_system_call_is_the_guests() {
    let (mut machine, process) = hostile(|a, own| {
        spin(a)?;
        call_all(a, own, &[0x0f, 0x05])?;
        spin(a)?;
        call_all(a, own, &[0xcd, 0x80])?;
        a.hlt()
    });
    // Each kind adds its number to a word of its own. The gate's part is beside the other's.
    answer_system_calls(&mut machine, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.mov(rcx, DATA)?;
        a.add(qword_ptr(rcx), rax)?;
        a.pop(rcx)?;
        a.pop(rax)
    });
    let gate = SYSTEM_CALL + 0x800;
    machine.assemble(gate, 64, |a| {
        a.push(rcx)?;
        a.mov(ecx, eax)?;
        a.add(qword_ptr(DATA + 8), rcx)?;
        a.pop(rcx)?;
        a.iretq()
    });
    machine.set_gate(0x80, gate, 0, 3);
    assert_eq!(machine.trap().vector, 13);
    check_ran(&machine, true, "system calls");
    let numbers = NUMBERS
        .into_iter()
        .flat_map(|first| (0..EACH as i32).map(move |n| first + n));
    let sum = numbers.clone().fold(0u64, |sum, n| sum.wrapping_add(n as u64));
    let narrow = numbers.fold(0u64, |sum, n| sum + u64::from(n as u32));
    assert_eq!([machine.word(DATA), machine.word(DATA + 8)], [sum, narrow]);
    check_helper(process);
}

#[test]
fn a_program_does_not_change_what_its_helper_has_of_its_own() {
    /// Where SYSCALL is in the stub; other places of it are tried, too.
    const PLACES: [u64; 4] = [0, 34, 35, 60];
    type Attempt = fn(&mut CodeAssembler, u64) -> Result<(), IcedError>;
    let attempts: &[Attempt] = &[
        |a, own| {
            a.mov(rdi, own)?;
            a.mov(byte_ptr(rdi), 0xc3)
        },
        |a, own| {
            a.mov(rdi, own + 0x1000)?;
            a.mov(qword_ptr(rdi), 60)
        },
        |a, own| {
            a.mov(rdi, own + 0x4ff8)?;
            a.lock().inc(qword_ptr(rdi))
        },
        |a, own| {
            a.mov(rdi, own + 0x1000)?;
            a.jmp(rdi)
        },
        |a, own| call_stub(a, own, PLACES[0]),
        |a, own| call_stub(a, own, PLACES[1]),
        |a, own| call_stub(a, own, PLACES[2]),
        |a, own| call_stub(a, own, PLACES[3]),
    ];
    for (n, attempt) in attempts.iter().enumerate() {
        let (mut machine, process) = hostile(|a, own| {
            spin(a)?;
            attempt(a, own)?;
            a.hlt()
        });
        let trap = machine.trap();
        check_ran(&machine, true, "attempts");
        // The interpreter knows no page there. INT3 lies behind the stub, as a gate of the kernel's only.
        let page_fault = trap.vector == 14 && trap.code & 4 != 0;
        assert!(page_fault || (trap.vector == 13 && n > 4), "{n} {trap:?}");
        check_helper(process);
    }
}

/// Jumps into the stub, with a table of the program's own: it unmaps all, maps RAM over the stub, and ends the
/// process.
fn call_stub(a: &mut CodeAssembler, own: u64, place: u64) -> Result<(), IcedError> {
    let calls: [[u64; 7]; 3] = [
        [11, 0, own, 0, 0, 0, 0],
        [9, own, 0x1000, 7, 0x11, 0, 0],
        [60, 1, 0, 0, 0, 0, 0],
    ];
    a.mov(rdi, USER_DATA)?;
    for (at, word) in calls.iter().flatten().enumerate() {
        a.mov(rax, *word)?;
        a.mov(qword_ptr(rdi + 8 * at as i32), rax)?;
    }
    a.mov(r12, rdi)?;
    a.mov(r13d, 3)?;
    a.mov(rbx, own + place)?;
    a.mov(eax, 60)?;
    a.jmp(rbx)
}

/// The guest's kernel may put a page there: then nothing runs directly.
#[test]
fn a_page_of_the_guest_where_the_helper_has_its_own_is_the_guests() {
    for page in 0..5 {
        let (mut machine, process) = hostile(|a, own| {
            a.mov(rdi, own + page * 0x1000)?;
            spin(a)?;
            a.mov(rbx, qword_ptr(rdi))?;
            a.hlt()
        });
        let Some((_, own)) = &process else { return };
        // Tables for it, in pages that nobody uses.
        let at = own.start + page * 0x1000;
        let tables = [0x1000, 0x7_0000, 0x7_1000, 0x7_2000, USER_DATA];
        for (level, two) in tables.windows(2).enumerate() {
            let index = at >> (39 - 9 * level) & 511;
            machine.set_word(two[0] + 8 * index, two[1] | 7);
        }
        machine.set_word(USER_DATA, 0x1122_3344);
        assert_eq!(machine.trap().vector, 13);
        assert_eq!(machine.cpu.gpr[3], 0x1122_3344, "{page}");
        assert_eq!(machine.cpu.counters().direct_runs, 0);
    }
}
