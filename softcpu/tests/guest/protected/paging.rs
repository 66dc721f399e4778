//! Page tables of two levels and of PAE: error codes, rights, large pages, and the registers of PAE (Intel
//! SDM vol. 3, §4.3 and §4.4).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use super::{BOTH, PAE_DIRECTORY, Paging, Protected, TABLES, TOP, Trap32};
use crate::machine::page::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, WRITE};
use crate::machine::{DATA, End, KERNEL, USER, USER_DATA, done, wrmsr};

const USER_BIT: u64 = crate::machine::page::USER;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const PSE: i32 = 1 << 4;
const PGE: i32 = 1 << 7;
const SMEP: i32 = 1 << 20;
const SMAP: i32 = 1 << 21;
const EFER: u32 = 0xc000_0080;

fn expect(trap: Trap32, code: u32, address: u64, what: &str) {
    assert_eq!(
        (trap.vector, trap.code, trap.cr2),
        (14, code, address),
        "{what}: {trap:x?}"
    );
}

fn access(a: &mut CodeAssembler, at: u64, store: bool) -> Result<(), IcedError> {
    if store {
        a.mov(dword_ptr(at), eax)
    } else {
        a.mov(eax, dword_ptr(at))
    }
}

fn set_cr4(a: &mut CodeAssembler, bits: i32) -> Result<(), IcedError> {
    a.mov(eax, cr4)?;
    a.or(eax, bits)?;
    a.mov(cr4, eax)
}

#[test]
fn the_kernels_error_codes() {
    for paging in BOTH {
        for (what, bits, store, code) in [
            ("read, not present", 0, false, 0),
            ("write, not present", 0, true, 2),
            ("write, read-only", PRESENT, true, 3),
        ] {
            let mut protected = Protected::new(paging);
            protected.map(DATA, bits);
            protected.kernel(|a| access(a, DATA + 8, store));
            let trap = protected.trap();
            expect(trap, code, DATA + 8, what);
            assert_eq!(trap.eip, KERNEL, "{paging:?}, {what}");
        }
    }
}

#[test]
fn a_users_error_codes() {
    for paging in BOTH {
        for (what, bits, store, code) in [
            ("read, not present", 0, false, 4),
            ("write, not present", 0, true, 6),
            ("read, the kernel's", PRESENT | WRITE, false, 5),
            ("write, the kernel's", PRESENT | WRITE, true, 7),
            ("write, read-only", PRESENT | USER_BIT, true, 7),
        ] {
            let mut protected = Protected::new(paging);
            protected.map(USER_DATA, bits);
            protected.user(|a| access(a, USER_DATA, store));
            expect(protected.trap(), code, USER_DATA, what);
        }
    }
}

#[test]
fn the_directory_has_rights_too() {
    for (paging, at) in [(Paging::TwoLevels, TOP), (Paging::Pae, PAE_DIRECTORY)] {
        let mut protected = Protected::new(paging);
        let entry = protected.entry(at);
        protected.set_entry(at, entry & !WRITE);
        protected.kernel(|a| access(a, DATA, true));
        let End::Shutdown = protected.machine.run() else {
            panic!("the frame of the fault cannot be written, either");
        };
        assert_eq!(protected.entry(paging.entry_at(DATA)) & DIRTY, 0);
    }
}

#[test]
fn reading_marks_accessed_and_writing_dirty_too() {
    for paging in BOTH {
        let mut protected = Protected::new(paging);
        protected.kernel(|a| {
            access(a, DATA, false)?;
            access(a, DATA + 0x1000, true)?;
            done(a)
        });
        protected.machine.done();
        let marks = |at| protected.entry(at) & (ACCESSED | DIRTY);
        assert_eq!(marks(paging.entry_at(DATA)), ACCESSED);
        assert_eq!(marks(paging.entry_at(DATA + 0x1000)), ACCESSED | DIRTY);
        assert_eq!(marks(paging.entry_at(DATA + 0x2000)), 0);
        match paging {
            Paging::TwoLevels => assert_eq!(marks(TOP), ACCESSED),
            // The four entries have no such bit.
            Paging::Pae => assert_eq!((marks(TOP), marks(PAE_DIRECTORY)), (0, ACCESSED)),
        }
    }
}

/// The second directory entry maps what lies at 0 a second time, by one page of 4 MiB.
#[test]
fn four_mebibytes_are_one_page_with_pse_only() {
    for enabled in [true, false] {
        let mut protected = Protected::new(Paging::TwoLevels);
        protected.set_entry(TOP + 4, PRESENT | WRITE | LARGE);
        protected.machine.set_word(DATA, 7);
        protected.kernel(|a| {
            if enabled {
                set_cr4(a, PSE)?;
            }
            access(a, (4 << 20) + DATA, false)?;
            done(a)
        });
        match protected.machine.run() {
            // Without, the entry names a page table, of whose entries this one is not present.
            End::Trap(trap) if !enabled => assert_eq!(trap.cr2, (4 << 20) + DATA),
            end => {
                assert_eq!((end, enabled), (End::Done, true));
                assert_eq!(protected.machine.cpu.gpr[reg::RAX], 7);
                assert_eq!(protected.entry(TOP + 4) & (ACCESSED | DIRTY), ACCESSED);
            }
        }
    }
}

#[test]
fn reserved_bits_are_refused() {
    // (kind, where the entry is, what is set, whether that counts)
    for (paging, at, bits, refused) in [
        (Paging::TwoLevels, TOP + 4, LARGE | 1 << 12, false),
        (Paging::TwoLevels, TOP + 4, LARGE | 1 << 13, true),
        (Paging::TwoLevels, TOP + 4, LARGE | 1 << 21, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 12, false),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 13, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 20, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 51, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 52, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | 1 << 62, true),
        (Paging::Pae, PAE_DIRECTORY + 16, LARGE | NO_EXECUTE, false),
    ] {
        let mut protected = Protected::new(paging);
        protected.set_entry(at, PRESENT | WRITE | bits);
        protected.kernel(|a| {
            set_cr4(a, PSE)?;
            access(a, (4 << 20) + DATA, false)?;
            done(a)
        });
        match protected.machine.run() {
            End::Trap(trap) => {
                assert!(refused, "{bits:#x}");
                expect(super::narrow(trap), 9, (4 << 20) + DATA, "reserved");
            }
            end => assert_eq!((end, refused), (End::Done, false), "{bits:#x}"),
        }
    }
}

#[test]
fn pae_forbids_execution_where_that_is_enabled() {
    for enabled in [true, false] {
        let mut protected = Protected::new(Paging::Pae);
        protected.map(DATA, PRESENT | WRITE | NO_EXECUTE);
        protected.kernel(|a| {
            wrmsr(a, EFER, if enabled { 1 << 11 } else { 0 })?;
            a.mov(eax, DATA as i32)?;
            a.jmp(eax)
        });
        // Where it is not, the bit is reserved, and faults do not say that they were fetches.
        expect(
            protected.trap(),
            if enabled { 0x11 } else { 0x09 },
            DATA,
            "execution",
        );
    }
}

#[test]
fn smep_and_smap_keep_the_kernel_from_user_pages() {
    for paging in BOTH {
        let mut protected = Protected::new(paging);
        protected.kernel(|a| {
            set_cr4(a, SMEP)?;
            a.mov(eax, USER as i32)?;
            a.jmp(eax)
        });
        expect(protected.trap(), 0x11, USER, "SMEP");
        let mut protected = Protected::new(paging);
        protected.kernel(|a| {
            set_cr4(a, SMAP)?;
            a.stac()?;
            access(a, USER_DATA, true)?;
            a.clac()?;
            access(a, USER_DATA, true)
        });
        expect(protected.trap(), 3, USER_DATA, "SMAP");
    }
}

#[test]
fn an_access_across_the_last_address_goes_on_at_the_first() {
    for paging in BOTH {
        let mut protected = Protected::new(paging);
        match paging {
            Paging::TwoLevels => protected.set_entry(TOP + 4 * 1023, TABLES | PRESENT | WRITE),
            Paging::Pae => {
                protected.set_entry(TOP + 8 * 3, PAE_DIRECTORY | PRESENT);
                protected.set_entry(PAE_DIRECTORY + 8 * 511, (TABLES + 4096) | PRESENT | WRITE);
            }
        }
        // The last page, which is the last of RAM.
        protected.machine.set_word((4 << 20) - 8, 0x1122_3344_5566_7788);
        protected.machine.set_word(0, 0x99aa_bbcc);
        protected.kernel(|a| {
            a.mov(ebx, -2)?;
            a.mov(eax, dword_ptr(ebx))?;
            done(a)
        });
        protected.machine.done();
        assert_eq!(protected.machine.cpu.gpr[reg::RAX], 0xbbcc_1122, "{paging:?}");
    }
}

#[test]
fn global_pages_outlive_a_load_of_cr3() {
    for paging in BOTH {
        for (bits, kept) in [(GLOBAL, true), (0, false)] {
            let mut protected = Protected::new(paging);
            protected.map(DATA, PRESENT | WRITE | bits);
            protected.machine.set_word(DATA, 1);
            protected.machine.set_word(DATA + 0x1000, 2);
            let entry = paging.entry_at(DATA);
            protected.kernel(|a| {
                set_cr4(a, PGE)?;
                access(a, DATA, false)?;
                a.mov(dword_ptr(entry), ((DATA + 0x1000) | PRESENT) as i32)?;
                a.mov(ecx, cr3)?;
                a.mov(cr3, ecx)?;
                a.mov(ebx, dword_ptr(DATA))?;
                a.invlpg(ptr(DATA))?;
                a.mov(ecx, dword_ptr(DATA))?;
                done(a)
            });
            protected.machine.done();
            let found = [reg::RBX, reg::RCX].map(|number| protected.machine.cpu.gpr[number]);
            assert_eq!(found, [if kept { 1 } else { 2 }, 2], "{paging:?}");
        }
    }
}

/// The four entries at CR3 are registers: what is written to them in memory counts after CR3 is loaded.
#[test]
fn pae_reads_its_four_entries_when_cr3_is_loaded() {
    let mut protected = Protected::new(Paging::Pae);
    protected.machine.set_word(DATA, 5);
    protected.kernel(|a| {
        a.mov(eax, cr3)?;
        a.mov(cr3, eax)?;
        a.mov(dword_ptr(TOP + 8), (PAE_DIRECTORY | PRESENT) as i32)?;
        // Not present yet, although no translation of it was cached.
        a.mov(ebx, dword_ptr((1u64 << 30) + DATA))?;
        a.nop()
    });
    expect(protected.trap(), 0, (1 << 30) + DATA, "before");

    let mut protected = Protected::new(Paging::Pae);
    protected.machine.set_word(DATA, 5);
    protected.kernel(|a| {
        a.mov(dword_ptr(TOP + 8), (PAE_DIRECTORY | PRESENT) as i32)?;
        a.mov(eax, cr3)?;
        a.mov(cr3, eax)?;
        a.mov(ebx, dword_ptr((1u64 << 30) + DATA))?;
        done(a)
    });
    protected.machine.done();
    assert_eq!(protected.machine.cpu.gpr[reg::RBX], 5);
}

#[test]
fn a_load_of_cr3_refuses_reserved_bits_of_the_four_entries() {
    for (bits, refused) in [
        (0, false),
        // Not present: nothing counts.
        (0x1e6 & !PRESENT, false),
        (PRESENT | 1 << 1, true),
        (PRESENT | 1 << 2, true),
        (PRESENT | 1 << 3, false),
        (PRESENT | 1 << 5, true),
        (PRESENT | 1 << 8, true),
        (PRESENT | 1 << 9, false),
        (PRESENT | 1 << 46, true),
        (PRESENT | 1 << 52, true),
        (PRESENT | NO_EXECUTE, true),
    ] {
        let mut protected = Protected::new(Paging::Pae);
        let begin = |a: &mut CodeAssembler| {
            a.mov(dword_ptr(TOP + 24), bits as i32)?;
            a.mov(dword_ptr(TOP + 28), (bits >> 32) as i32)?;
            a.mov(eax, cr3)
        };
        protected.kernel(|a| {
            begin(a)?;
            a.mov(cr3, eax)?;
            done(a)
        });
        match protected.machine.run() {
            End::Trap(trap) => {
                let trap = super::narrow(trap);
                assert_eq!((trap.vector, trap.code, refused), (13, 0, true), "{bits:#x}");
                assert_eq!(trap.eip, KERNEL + super::length(begin));
            }
            end => assert_eq!((end, refused), (End::Done, false), "{bits:#x}"),
        }
    }
}

/// Where nothing was changed behind its back, a processor goes on from what a snapshot has of it.
#[test]
fn a_snapshot_goes_on_with_the_same_tables() {
    for paging in BOTH {
        let mut protected = Protected::new(paging);
        protected.map_to(DATA, (DATA + 0x1000) | PRESENT | WRITE);
        protected.machine.set_word(DATA + 0x1000, 9);
        protected.kernel(|a| {
            done(a)?;
            access(a, DATA, false)?;
            done(a)
        });
        protected.machine.done();
        let state = protected.machine.cpu.save();
        let mut other = protected.machine.processor(0, 0);
        other.restore(&state).unwrap();
        protected.machine.cpu = other;
        protected.machine.done();
        assert_eq!(protected.machine.cpu.gpr[reg::RAX], 9, "{paging:?}");
    }
}
