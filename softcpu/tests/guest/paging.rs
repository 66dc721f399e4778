//! Paging: error codes, access rights, accessed and dirty bits (Intel SDM vol. 3, chapter 4).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, End, KERNEL, Machine, Trap, USER, USER_DATA, done, page::*};

const SMEP: i32 = 1 << 20;
const SMAP: i32 = 1 << 21;
const PAGE_FAULT: u64 = 14;

fn read(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(at))
}

fn write(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    a.mov(qword_ptr(at), rax)
}

fn expect(trap: Trap, code: u64, address: u64, what: &str) {
    assert_eq!(
        (trap.vector, trap.code, trap.cr2),
        (PAGE_FAULT, code, address),
        "{what}: {trap:x?}"
    );
}

fn set_cr4(a: &mut CodeAssembler, bits: i32) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.or(rax, bits)?;
    a.mov(cr4, rax)
}

#[test]
fn the_kernels_error_codes() {
    for (what, bits, store, code) in [
        ("read, not present", 0, false, 0),
        ("write, not present", 0, true, 2),
        ("write, read-only", PRESENT, true, 3),
        ("read, reserved bit", PRESENT | 1 << 51, false, 9),
        ("write, reserved bit", PRESENT | WRITE | 1 << 51, true, 11),
    ] {
        let mut machine = Machine::new();
        machine.map(DATA, bits);
        machine.kernel(|a| {
            if store {
                write(a, DATA + 8)
            } else {
                read(a, DATA + 8)
            }
        });
        let trap = machine.trap();
        expect(trap, code, DATA + 8, what);
        assert_eq!(trap.rip, KERNEL, "{what}");
    }
}

#[test]
fn a_users_error_codes() {
    for (what, bits, store, code) in [
        ("read, not present", 0, false, 4),
        ("write, not present", 0, true, 6),
        ("read, the kernel's", PRESENT | WRITE, false, 5),
        ("write, the kernel's", PRESENT | WRITE, true, 7),
        ("write, read-only", PRESENT | USER_BIT, true, 7),
        ("read, reserved bit", PRESENT | USER_BIT | 1 << 51, false, 13),
    ] {
        let mut machine = Machine::new();
        machine.map(USER_DATA, bits);
        machine.user(|a| {
            if store {
                write(a, USER_DATA)
            } else {
                read(a, USER_DATA)
            }
        });
        expect(machine.trap(), code, USER_DATA, what);
    }
}

/// [`USER`] is an address here.
const USER_BIT: u64 = crate::machine::page::USER;

#[test]
fn an_access_across_two_pages_names_the_byte_that_faults() {
    for (store, code) in [(false, 0), (true, 2)] {
        let mut machine = Machine::new();
        machine.map(DATA + 0x1000, 0);
        machine.set_word(DATA + 0xff8, 0x1111_1111_1111_1111);
        machine.kernel(|a| {
            if store {
                write(a, DATA + 0xffc)
            } else {
                read(a, DATA + 0xffc)
            }
        });
        expect(machine.trap(), code, DATA + 0x1000, "across");
        assert_eq!(
            machine.word(DATA + 0xff8),
            0x1111_1111_1111_1111,
            "nothing is written by halves"
        );
    }
}

#[test]
fn write_protection_holds_the_kernel_only_with_wp() {
    let mut machine = Machine::new();
    machine.map(DATA, PRESENT);
    machine.kernel(|a| {
        a.mov(rax, cr0)?;
        a.btr(rax, 16)?;
        a.mov(cr0, rax)?;
        a.mov(rcx, 7u64)?;
        a.mov(qword_ptr(DATA), rcx)?;
        a.bts(rax, 16)?;
        a.mov(cr0, rax)?;
        a.mov(qword_ptr(DATA), rax)
    });
    expect(machine.trap(), 3, DATA, "with WP again");
    assert_eq!(machine.word(DATA), 7);
}

#[test]
fn what_must_not_be_executed_is_not() {
    let mut machine = Machine::new();
    machine.map(DATA, PRESENT | WRITE | NO_EXECUTE);
    machine.kernel(|a| {
        a.mov(rax, DATA)?;
        a.jmp(rax)
    });
    let trap = machine.trap();
    expect(trap, 0x11, DATA, "the kernel");
    assert_eq!(trap.rip, DATA);

    let mut machine = Machine::new();
    machine.map(USER_DATA, PRESENT | WRITE | USER_BIT | NO_EXECUTE);
    machine.user(|a| {
        a.mov(rax, USER_DATA)?;
        a.jmp(rax)
    });
    expect(machine.trap(), 0x15, USER_DATA, "a user");
}

#[test]
fn smep_keeps_the_kernel_from_running_user_pages() {
    for (bits, faults) in [(SMEP, true), (0, false)] {
        let mut machine = Machine::new();
        machine.assemble(USER, 64, done);
        machine.kernel(|a| {
            set_cr4(a, bits)?;
            a.mov(rax, USER)?;
            a.jmp(rax)
        });
        match machine.run() {
            End::Trap(trap) if faults => expect(trap, 0x11, USER, "SMEP"),
            end => assert!(!faults && end == End::Done, "{end:?}"),
        }
    }
}

#[test]
fn smap_keeps_the_kernel_from_user_data_but_with_ac() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        set_cr4(a, SMAP)?;
        a.stac()?;
        read(a, USER_DATA)?;
        write(a, USER_DATA)?;
        a.clac()?;
        write(a, USER_DATA)
    });
    expect(machine.trap(), 3, USER_DATA, "a write");

    let mut machine = Machine::new();
    machine.kernel(|a| {
        set_cr4(a, SMAP)?;
        read(a, USER_DATA)
    });
    expect(machine.trap(), 1, USER_DATA, "a read");
}

#[test]
fn reading_sets_accessed_and_writing_sets_dirty_too() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        read(a, DATA)?;
        write(a, DATA + 0x1000)?;
        done(a)
    });
    assert_eq!(machine.entry(DATA) & (ACCESSED | DIRTY), 0);
    machine.done();
    assert_eq!(machine.entry(DATA) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(
        machine.entry(DATA + 0x1000) & (ACCESSED | DIRTY),
        ACCESSED | DIRTY
    );
    assert_eq!(machine.entry(DATA + 0x2000) & (ACCESSED | DIRTY), 0);
    for entry in machine.upper_entries(DATA) {
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED);
    }
}

#[test]
fn a_page_that_was_read_is_marked_dirty_when_it_is_written() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        read(a, DATA)?;
        read(a, DATA)?;
        write(a, DATA)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.entry(DATA) & DIRTY, DIRTY);
}

#[test]
fn what_faults_marks_nothing_dirty_and_changes_nothing() {
    let mut machine = Machine::new();
    machine.map(DATA, PRESENT);
    machine.set_word(DATA, 5);
    machine.kernel(|a| {
        a.mov(rcx, 1u64)?;
        a.xadd(qword_ptr(DATA), rcx)
    });
    expect(machine.trap(), 3, DATA, "xadd");
    assert_eq!((machine.word(DATA), machine.cpu.gpr[reg::RCX]), (5, 1));
    assert_eq!(machine.entry(DATA) & DIRTY, 0);
}

#[test]
fn a_changed_entry_counts_after_invlpg() {
    let mut machine = Machine::new();
    let entry = 0x4000 + DATA / 4096 * 8;
    machine.set_word(DATA, 1);
    machine.set_word(DATA + 0x1000, 2);
    machine.kernel(|a| {
        a.mov(rbx, qword_ptr(DATA))?;
        a.mov(rax, (DATA + 0x1000) | PRESENT)?;
        a.mov(qword_ptr(entry), rax)?;
        a.invlpg(ptr(DATA))?;
        a.mov(rcx, qword_ptr(DATA))?;
        done(a)
    });
    machine.done();
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RCX]), (1, 2));
}

#[test]
fn one_address_invalidates_a_whole_large_page() {
    const LARGE: u64 = 1 << 7;
    const PAGE_DIRECTORY_ENTRY: u64 = 0x3008;
    for global in [0, 1 << 8] {
        let mut machine = Machine::new();
        let bits = PRESENT | WRITE | LARGE | global;
        machine.set_word(PAGE_DIRECTORY_ENTRY, USER | bits);
        machine.set_word(USER + 0x5_1000, 1);
        machine.set_word(0x5_1000, 2);
        machine.kernel(|a| {
            a.mov(rax, cr4)?;
            a.or(eax, 1 << 7)?; // PGE
            a.mov(cr4, rax)?;
            // Two pieces of the large page; then it is mapped elsewhere.
            a.mov(rbx, qword_ptr(USER + 0x5_1000))?;
            a.mov(rcx, qword_ptr(USER + 0x7_0000))?;
            a.mov(dword_ptr(PAGE_DIRECTORY_ENTRY), bits as i32)?;
            a.invlpg(ptr(USER + 0x7_0000))?;
            a.mov(rcx, qword_ptr(USER + 0x5_1000))?;
            done(a)
        });
        machine.done();
        let found = (machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RCX]);
        assert_eq!(found, (1, 2), "global: {global:#x}");
    }
}
