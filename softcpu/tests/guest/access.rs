//! Every combination of page rights, processor settings and accesses, against the rules of the Intel SDM
//! (vol. 3, §4.6 and §4.7) written down once more.

use iced_x86::code_asm::*;
use softcpu::Segment;
use softcpu::x86_64::state::{cr0, cr4, efer, reg, seg};

use crate::machine::{
    CODE64, DATA, DATA_SELECTOR, End, GDT, KERNEL, Machine, STACK, USER, USER_CODE64, USER_SS, done, page,
};

/// The page in question: alone in its page table, so that the entry above it has rights of its own.
const TARGET: u64 = 0x40_0000;
const DIRECTORY_ENTRY: u64 = 0x3000 + 8 * 2;
const TABLE: u64 = 0x5_0000;
const FRAME: u64 = 0x6_0000;
const PML4: u64 = 0x1000;
/// A bit above physical addresses.
const RESERVED: u64 = 1 << 50;
const AC: u64 = 1 << 18;

/// The combinations are many: one in so many is tried, all of them over the kinds of one concept.
const STRIDE: usize = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    leaf: u64,
    above: u64,
    user: bool,
    access: Access,
    write_protect: bool,
    no_execute: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

impl Case {
    /// Takes its bits from a number.
    fn new(number: usize) -> Case {
        let bit = |n: usize| number >> n & 1 != 0;
        let flag = |n: usize, flag: u64| if bit(n) { flag } else { 0 };
        Case {
            leaf: flag(0, page::PRESENT)
                | flag(1, page::WRITE)
                | flag(2, page::USER)
                | flag(3, page::NO_EXECUTE)
                | flag(4, page::ACCESSED)
                | flag(5, page::DIRTY)
                | flag(6, RESERVED),
            above: page::PRESENT | flag(7, page::WRITE) | flag(8, page::USER) | flag(9, page::NO_EXECUTE),
            user: bit(10),
            write_protect: bit(11),
            no_execute: bit(12),
            smep: bit(13),
            smap: bit(14),
            ac: bit(15),
            access: [Access::Read, Access::Write, Access::Fetch][number >> 16],
        }
    }

    /// The page fault's error code; `None` where the access is allowed.
    fn expected(&self) -> Option<u64> {
        let (write, fetch) = (self.access == Access::Write, self.access == Access::Fetch);
        let mut code = u64::from(write) << 1 | u64::from(self.user) << 2;
        if fetch && (self.no_execute || self.smep) {
            code |= 1 << 4;
        }
        let reserved =
            |entry: u64| entry & RESERVED != 0 || (entry & page::NO_EXECUTE != 0 && !self.no_execute);
        if reserved(self.above) {
            return Some(code | 9);
        }
        if self.leaf & page::PRESENT == 0 {
            return Some(code);
        }
        if reserved(self.leaf) {
            return Some(code | 9);
        }
        let both = self.leaf & self.above;
        let (writable, user_page) = (both & page::WRITE != 0, both & page::USER != 0);
        let executable = (self.leaf | self.above) & page::NO_EXECUTE == 0;
        let allowed = if self.user {
            user_page && (!write || writable) && (!fetch || executable)
        } else if fetch {
            executable && !(user_page && self.smep)
        } else {
            let read_only = !writable && self.write_protect;
            let out_of_bounds = user_page && self.smap && !self.ac;
            !(write && read_only || out_of_bounds)
        };
        (!allowed).then_some(code | 1)
    }
}

fn segment(selector: u16, access: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: !0,
        access,
    }
}

/// Where the code of an access is, for the kernel and for users.
fn code_at(base: u64, access: Access) -> u64 {
    base + 0x100 * access as u64
}

fn prepare(machine: &mut Machine) {
    machine.set_word(FRAME, 0x0b0f);
    for base in [KERNEL, USER] {
        machine.assemble(code_at(base, Access::Read), 64, |a| {
            a.mov(rax, qword_ptr(rbx))?;
            a.ud2()
        });
        machine.assemble(code_at(base, Access::Write), 64, |a| {
            a.mov(byte_ptr(rbx), 0x0f)?;
            a.ud2()
        });
        machine.assemble(code_at(base, Access::Fetch), 64, |a| a.jmp(rbx));
    }
}

fn start(machine: &mut Machine, case: &Case) {
    machine.set_word(TABLE, FRAME | case.leaf);
    machine.set_word(DIRECTORY_ENTRY, TABLE | case.above);
    let set = |on: bool, bit: u64| if on { bit } else { 0 };
    let cpu = &mut machine.cpu;
    cpu.set_control(
        cr0::PE | cr0::PG | cr0::NE | set(case.write_protect, cr0::WP),
        PML4,
        cr4::PAE | cr4::OSFXSR | set(case.smep, cr4::SMEP) | set(case.smap, cr4::SMAP),
        efer::LME | efer::LMA | set(case.no_execute, efer::NXE),
    );
    if case.user {
        cpu.set_segment(seg::SS, segment(USER_SS, 0xc0f3));
        cpu.set_segment(seg::CS, segment(USER_CODE64, 0xa0fb));
    } else {
        cpu.set_segment(seg::SS, segment(DATA_SELECTOR, 0xc093));
        cpu.set_segment(seg::CS, segment(CODE64, 0xa09b));
    }
    cpu.set_rflags(2 | set(case.ac, AC));
    cpu.gpr[reg::RSP] = STACK;
    cpu.gpr[reg::RBX] = TARGET;
    cpu.rip = code_at(if case.user { USER } else { KERNEL }, case.access);
}

#[test]
fn rights_are_what_the_manual_says() {
    let mut machine = Machine::new();
    prepare(&mut machine);
    for number in (0..3 << 16).step_by(STRIDE) {
        let case = Case::new(number);
        start(&mut machine, &case);
        let trap = machine.trap();
        let found = match trap.vector {
            // What comes behind the access, or what the page itself holds.
            6 => None,
            14 => {
                assert_eq!(trap.cr2, TARGET, "{case:x?}");
                Some(trap.code)
            }
            _ => panic!("{trap:x?} of {case:x?}"),
        };
        assert_eq!(found, case.expected(), "{case:x?}");
        let marks = match (found, case.access) {
            (Some(_), _) => 0,
            (None, Access::Write) => page::ACCESSED | page::DIRTY,
            (None, _) => page::ACCESSED,
        };
        assert_eq!(machine.word(TABLE), FRAME | case.leaf | marks, "{case:x?}");
    }
}

#[test]
fn smap_holds_the_processors_own_accesses_whatever_ac_says() {
    let mut machine = Machine::new();
    // The descriptor table moves to a page of the users'.
    let table = crate::machine::USER_DATA;
    for offset in (0..0x40).step_by(8) {
        let word = machine.word(GDT + offset);
        machine.set_word(table + offset, word);
    }
    machine.kernel(|a| {
        a.sgdt(ptr(DATA))?;
        a.mov(rax, table)?;
        a.mov(qword_ptr(DATA + 2), rax)?;
        a.lgdt(ptr(DATA))?;
        a.mov(eax, i32::from(DATA_SELECTOR))?;
        a.mov(es, eax)?;
        a.mov(rbx, cr4)?;
        a.bts(rbx, 21)?;
        a.mov(cr4, rbx)?;
        a.stac()?;
        a.mov(rcx, qword_ptr(table + u64::from(CODE64)))?;
        a.mov(es, eax)?;
        done(a)
    });
    // The code segment of every handler is there as well.
    assert_eq!(machine.run(), End::Shutdown);
    assert_ne!(machine.cpu.gpr[reg::RCX], 0, "AC holds for the program's own");
}
