//! What a processor refuses with #GP: reserved bits, addresses that are not canonical, changes of mode that
//! do not exist, instructions that are too long (Intel SDM vol. 3, §2.5, §6.14, §11.12; vol. 2, §2.3.11).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::reg;

use crate::machine::{CODE64, DATA, End, GDT, IDT, KERNEL, Machine, assembled, done, wrmsr};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The lowest address that is not canonical.
const HOLE: u64 = 1 << 47;
const APIC_BASE: u32 = 0x1b;
const APIC: u64 = 0xfee0_0100;
const XAPIC: u64 = APIC | 1 << 11;
const X2APIC: u64 = APIC | 3 << 10;

/// Whether the kernel's code ends without an exception; the only one that it may end with is #GP(0).
fn passes(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> bool {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        write(a)?;
        done(a)
    });
    match machine.run() {
        End::Done => true,
        End::Trap(trap) => {
            assert_eq!((trap.vector, trap.code), (13, 0));
            false
        }
        end => panic!("{end:?}"),
    }
}

#[test]
fn registers_that_hold_addresses_take_canonical_ones() {
    // SYSENTER_ESP, SYSENTER_EIP, LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE.
    for number in [
        0x175,
        0x176,
        0xc000_0082,
        0xc000_0083,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
    ] {
        for (value, allowed) in [
            (HOLE - 1, true),
            (HOLE, false),
            (!HOLE, false),
            (!(HOLE - 1), true),
        ] {
            assert_eq!(
                passes(|a| wrmsr(a, number, value)),
                allowed,
                "{number:#x}, {value:#x}"
            );
        }
    }
}

#[test]
fn reserved_bits_of_model_specific_registers_are_refused() {
    let cases = [
        // The extended feature register.
        (0xc000_0080, 0xd01, true),
        (0xc000_0080, 0xd03, false),
        // SFMASK and TSC_AUX have 32 bits.
        (0xc000_0084, 1 << 32, false),
        (0xc000_0103, 1 << 32, false),
        // IBRS, STIBP and SSBD; the barrier.
        (0x48, 7, true),
        (0x48, 8, false),
        (0x49, 1, true),
        (0x49, 2, false),
        // Page attributes: types 2 and 3 do not exist.
        (0x277, 0x0007_0406_0007_0406, true),
        (0x277, 0x0007_0406_0007_0402, false),
        (0x277, 8 << 56, false),
        // Memory types: by default, of a range, its mask, and of fixed ranges.
        (0x2ff, 0xc06, true),
        (0x2ff, 0xc07, false),
        (0x2ff, 0x1c06, false),
        (0x200, 6, true),
        (0x200, 0x106, false),
        (0x200, 1 << 46 | 6, false),
        (0x201, 0x3fff_ffff_f800, true),
        (0x201, 0x400, false),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x250, 0x0206_0606_0606_0606, false),
        // Branch single-step, and last branches, which are not recorded.
        (0x1d9, 2, true),
        (0x1d9, 1, false),
        // The limit of CPUID's leaves, and the end of NX.
        (0x1a0, 0x1801, true),
        (0x1a0, 1 << 22, false),
        (0x1a0, 1 << 34, false),
        // Read only.
        (0xfe, 0x508, false),
        (0x10a, 0, false),
        (0x3a, 1, false),
        (0x17, 0, false),
        // Nothing is there.
        (0x33, 0, false),
        (0x179, 0, false),
    ];
    for (number, value, allowed) in cases {
        assert_eq!(
            passes(|a| wrmsr(a, number, value)),
            allowed,
            "{number:#x}, {value:#x}"
        );
    }
}

#[test]
fn reserved_bits_of_control_registers_are_refused() {
    let cases: [(&str, bool, Write); 8] = [
        ("CR0 above 32 bits", false, |a| {
            a.mov(rax, cr0)?;
            a.bts(rax, 32)?;
            a.mov(cr0, rax)
        }),
        ("NW without CD", false, |a| {
            a.mov(rax, cr0)?;
            a.bts(rax, 29)?;
            a.mov(cr0, rax)
        }),
        ("NW with CD", true, |a| {
            a.mov(rax, cr0)?;
            a.bts(rax, 29)?;
            a.bts(rax, 30)?;
            a.mov(cr0, rax)
        }),
        ("paging without protection", false, |a| {
            a.mov(rax, cr0)?;
            a.btr(rax, 0)?;
            a.mov(cr0, rax)
        }),
        ("a page table at 2^46", false, |a| {
            a.mov(rax, cr3)?;
            a.bts(rax, 46)?;
            a.mov(cr3, rax)
        }),
        ("no PAE in long mode", false, |a| {
            a.mov(rax, cr4)?;
            a.btr(rax, 5)?;
            a.mov(cr4, rax)
        }),
        ("CR4 above 32 bits", false, |a| {
            a.mov(rax, cr4)?;
            a.bts(rax, 32)?;
            a.mov(cr4, rax)
        }),
        ("a priority above 15", false, |a| {
            a.mov(eax, 16)?;
            a.mov(cr8, rax)
        }),
    ];
    for (what, allowed, write) in cases {
        assert_eq!(passes(write), allowed, "{what}");
    }
}

#[test]
fn the_apic_changes_its_mode_in_steps() {
    let cases: [(&str, &[u64], bool); 9] = [
        ("to x2APIC", &[X2APIC], true),
        ("off", &[APIC], true),
        ("off and on", &[APIC, XAPIC], true),
        ("off, on, x2APIC", &[APIC, XAPIC, X2APIC], true),
        ("x2APIC and off", &[X2APIC, APIC], true),
        ("x2APIC and back", &[X2APIC, XAPIC], false),
        ("off and x2APIC", &[APIC, X2APIC], false),
        ("x2APIC while off", &[APIC | 1 << 10], false),
        ("the same again", &[X2APIC, X2APIC], true),
    ];
    for (what, values, allowed) in cases {
        let all = |a: &mut CodeAssembler| values.iter().try_for_each(|value| wrmsr(a, APIC_BASE, *value));
        assert_eq!(passes(all), allowed, "{what}");
    }
    for bit in (0..8).chain([9]).chain(46..64) {
        assert!(!passes(|a| wrmsr(a, APIC_BASE, XAPIC | 1 << bit)), "bit {bit}");
    }
}

#[test]
fn x2apic_registers_refuse_what_they_do_not_have() {
    let write = |number: u32, value: u64| {
        passes(|a| {
            wrmsr(a, APIC_BASE, X2APIC)?;
            wrmsr(a, number, value)
        })
    };
    for (number, value, allowed) in [
        // Identity, version, priority, destination: read only.
        (0x802, 0, false),
        (0x803, 0, false),
        (0x80a, 0, false),
        (0x80d, 0, false),
        // The destination format is not there.
        (0x80e, 0, false),
        (0x808, 0xff, true),
        (0x808, 0x100, false),
        (0x80b, 0, true),
        (0x80b, 1, false),
        (0x80f, 0x1ff, true),
        (0x80f, 1 << 32, false),
        (0x828, 0, true),
        (0x828, 1, false),
        (0x830, 1 << 20, false),
        // The upper half of the command is part of it.
        (0x831, 0, false),
        (0x832, 1 << 16, true),
        (0x832, 1 << 19, false),
        (0x838, 0, true),
        (0x838, 1 << 32, false),
        (0x839, 0, false),
        (0x83e, 0xb, true),
        (0x83e, 4, false),
        (0x83f, 0x100, false),
        (0x840, 0, false),
    ] {
        assert_eq!(write(number, value), allowed, "write of {number:#x}, {value:#x}");
    }
    for (number, allowed) in [
        (0x800, false),
        (0x802, true),
        (0x803, true),
        (0x80a, true),
        (0x80b, false),
        (0x80d, true),
        (0x80e, false),
        (0x817, true),
        (0x827, true),
        (0x82f, false),
        (0x830, true),
        (0x831, false),
        (0x839, true),
        (0x83a, false),
        (0x83f, false),
        (0x8ff, false),
    ] {
        let read = passes(|a| {
            wrmsr(a, APIC_BASE, X2APIC)?;
            a.mov(ecx, number)?;
            a.rdmsr()
        });
        assert_eq!(read, allowed, "read of {number:#x}");
    }
}

#[test]
fn tables_and_segments_have_canonical_bases() {
    for lidt in [false, true] {
        for (base, allowed) in [(HOLE - 1, true), (HOLE, false)] {
            let passed = passes(|a| {
                a.sidt(ptr(DATA))?;
                a.sgdt(ptr(DATA + 16))?;
                // The limit stays; the other table stays whole.
                let at = if lidt { DATA } else { DATA + 16 };
                a.mov(rax, base)?;
                a.mov(qword_ptr(at + 2), rax)?;
                if lidt { a.lidt(ptr(at)) } else { a.lgdt(ptr(at)) }
            });
            assert_eq!(passed, allowed, "IDT {lidt}, {base:#x}");
        }
    }
}

/// Loads a system segment whose descriptor of 16 bytes lies at the end of the table.
fn system_segment(low: u64, high: u64, task: bool) -> End {
    let mut machine = Machine::new();
    machine.set_word(GDT + 0x30, low);
    machine.set_word(GDT + 0x38, high);
    machine.kernel(|a| {
        a.mov(eax, 0x30)?;
        if task {
            a.ltr(ax)?
        } else {
            a.lldt(ax)?
        }
        done(a)
    });
    machine.run()
}

#[test]
fn system_descriptors_have_canonical_bases_and_no_second_type() {
    const TASK: u64 = 0x0000_8900_0000_0067;
    const LDT: u64 = 0x0000_8200_0000_0fff;
    for (low, task) in [(TASK, true), (LDT, false)] {
        for (high, allowed) in [
            (0, true),
            (0x7fff, true),
            (0x8000, false),
            (0xffff_8000, true),
            (1 << 40, false),
        ] {
            match system_segment(low, high, task) {
                End::Done => assert!(allowed, "{high:#x}"),
                End::Trap(trap) => {
                    assert!(!allowed, "{high:#x}");
                    assert_eq!((trap.vector, trap.code), (13, 0x30));
                }
                end => panic!("{end:?}"),
            }
        }
    }
}

#[test]
fn gates_and_far_jumps_lead_to_canonical_addresses() {
    let mut machine = Machine::new();
    machine.set_word(IDT + 16 * 0x55 + 8, HOLE >> 32);
    machine.kernel(|a| a.int(0x55));
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, KERNEL));

    let mut machine = Machine::new();
    machine.set_word(DATA, HOLE);
    machine.set_word(DATA + 8, u64::from(CODE64));
    machine.kernel(|a| {
        // JMP FAR with an operand size of 64 bits, through RBX.
        a.mov(ebx, DATA as u32)?;
        a.db(&[0x48, 0xff, 0x2b])
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, KERNEL + 5));
}

#[test]
fn a_return_from_a_nested_task_is_refused_in_long_mode() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 1 << 14)?;
        a.popfq()?;
        a.iretq()
    });
    let trap = machine.trap();
    assert_eq!((trap.vector, trap.code), (13, 0));
}

#[test]
fn an_instruction_has_fifteen_bytes_at_most() {
    // Prefixes before NOP, in the middle of a page and across two.
    for (at, prefixes) in [
        (0, 14),
        (0, 15),
        (0xff8, 14),
        (0xff8, 15),
        (0xff1, 14),
        (0xff1, 15),
        (0xff0, 15),
    ] {
        let start = KERNEL + at;
        let mut machine = Machine::new();
        let mut code = vec![0x66; prefixes];
        code.push(0x90);
        code.extend(assembled(0, 64, done));
        assert!(machine.ram.write(start, &code));
        machine.cpu.rip = start;
        match machine.run() {
            End::Done => assert_eq!(prefixes, 14, "at {at:#x}"),
            End::Trap(trap) => {
                assert_eq!(prefixes, 15, "at {at:#x}");
                assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, start));
            }
            end => panic!("{end:?}"),
        }
    }
}

#[test]
fn a_performance_counter_is_not_there() {
    assert!(!passes(|a| a.rdpmc()));
}

#[test]
fn an_apic_that_is_turned_off_forgets() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, APIC_BASE, X2APIC)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        wrmsr(a, 0x808, 0x20)?;
        wrmsr(a, APIC_BASE, APIC)?;
        wrmsr(a, APIC_BASE, XAPIC)?;
        wrmsr(a, APIC_BASE, X2APIC)?;
        a.mov(ecx, 0x80f)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.mov(ecx, 0x808)?;
        a.rdmsr()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 0xff);
    assert_eq!(machine.cpu.gpr[reg::RAX], 0);
}

/// The last page below the hole, which these machines find at this place in RAM.
const LAST_PAGE: u64 = HOLE - 0x1000;
const LAST_PAGE_IN_RAM: u64 = 0x1f_f000;
/// Where the code begins in it: the shortest branches reach beyond.
const START: u64 = 0xfc0;

/// A machine whose kernel lies at the end of the last page below the hole.
fn at_the_end(write: Write) -> (Machine, u64) {
    const PML4: u64 = 0x1000;
    const RIGHTS: u64 = 0b11;
    let mut machine = Machine::new();
    // Each table's last entry leads on; that of the first page table is the page's.
    for (table, entry, next) in [(PML4, 255, 0x2000), (0x2000, 511, 0x3000), (0x3000, 511, 0x4000)] {
        machine.set_word(table + 8 * entry, next | RIGHTS);
    }
    let start = LAST_PAGE + START;
    let code = assembled(start, 64, write);
    assert!(machine.ram.write(LAST_PAGE_IN_RAM + START, &code));
    let mut decoder = iced_x86::Decoder::with_ip(64, &code, start, 0);
    let last = decoder.iter().map(|instruction| instruction.ip()).last().unwrap();
    machine.cpu.rip = start;
    (machine, last)
}

#[test]
fn relative_branches_lead_to_canonical_addresses() {
    const BEYOND: u64 = HOLE + 0x10;
    let cases: [(&str, bool, Write); 9] = [
        ("jmp", true, |a| a.jmp(BEYOND)),
        ("call", true, |a| a.call(BEYOND)),
        ("jcc", true, |a| {
            a.xor(eax, eax)?;
            a.nop()?;
            a.je(BEYOND)
        }),
        ("a comparison and jcc", true, |a| {
            a.cmp(rax, rax)?;
            a.je(BEYOND)
        }),
        ("loop", true, |a| a.loop_(BEYOND)),
        ("jrcxz", true, |a| {
            a.mov(rdx, rcx)?;
            a.xor(ecx, ecx)?;
            a.jrcxz(BEYOND)
        }),
        ("a comparison and jcc that is not taken", false, |a| {
            a.cmp(rax, rax)?;
            a.jne(BEYOND)?;
            a.ud2()
        }),
        ("loop that ends", false, |a| {
            a.mov(ecx, 1)?;
            a.loop_(BEYOND)?;
            a.ud2()
        }),
        ("jmp to the last byte", false, |a| {
            a.jmp(HOLE - 2)?;
            a.ud2()
        }),
    ];
    for (what, refused, write) in cases {
        for single_step in [false, true] {
            let (mut machine, last) = at_the_end(write);
            assert!(machine.ram.write(LAST_PAGE_IN_RAM + 0xffe, &[0x0f, 0x0b]));
            machine.cpu.gpr[reg::RCX] = 5;
            let stack = machine.cpu.gpr[reg::RSP];
            if single_step {
                machine.cpu.set_rflags(1 << 8);
                // The handler of #DB returns at once.
                let handler = 0x6_0000;
                machine.assemble(handler, 64, |a| a.iretq());
                machine.set_gate(1, handler, 0, 0);
            }
            let trap = machine.trap();
            if refused {
                assert_eq!((trap.vector, trap.code, trap.rip), (13, 0, last), "{what}");
                assert_eq!(trap.rsp, stack, "{what}");
                let count = if what == "jrcxz" { 0 } else { 5 };
                assert_eq!(machine.cpu.gpr[reg::RCX], count, "{what}");
            } else {
                assert_eq!(trap.vector, 6, "{what}");
            }
        }
    }
}
