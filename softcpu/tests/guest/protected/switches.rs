//! From mode to mode, as loaders and kernels go: real mode, protected mode, both kinds of paging, long
//! mode, and back (Intel SDM vol. 3, §9.8 and §9.9).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Clock;
use softcpu::x86_64::state::reg;

use super::{CODE32, PAE_DIRECTORY, Paging, Protected, TABLES, TOP};
use crate::machine::page::{PRESENT, WRITE};
use crate::machine::{CODE64, DATA, DATA_SELECTOR, GDT, KERNEL, Machine, START, done, wrmsr};

const EFER: u32 = 0xc000_0080;
const LME: u64 = 1 << 8;
const PG: i32 = 1 << 31;
const PAE: i32 = 1 << 5;

/// Sets or clears bits of CR0.
fn change_cr0(a: &mut CodeAssembler, set: i32, clear: i32) -> Result<(), IcedError> {
    a.mov(eax, cr0)?;
    a.or(eax, set)?;
    a.and(eax, !clear)?;
    a.mov(cr0, eax)
}

/// Far return to `to`, from 32-bit code.
fn far(a: &mut CodeAssembler, selector: u16, to: u64) -> Result<(), IcedError> {
    a.push(i32::from(selector))?;
    a.push(to as i32)?;
    a.retf()
}

/// Tables of two levels at [`TOP`] and the first entries of PAE's beside them map DATA to two different
/// pages; what is read there says which paging is in force. Long mode has the machine's own tables.
#[test]
fn from_long_mode_through_both_kinds_of_paging_and_back() {
    const PAE_TOP: u64 = TOP + 0x8000;
    let (second, third, last) = (KERNEL + 0x1000, KERNEL + 0x2000, KERNEL + 0x3000);
    let mut machine = Machine::new();
    machine.set_word(GDT + u64::from(CODE32), 0x00cf_9b00_0000_ffff);
    let bits = PRESENT | WRITE;
    for number in 0..512u64 {
        let page = number * 4096;
        let [narrow, wide] = [1, 2].map(|n| if page == DATA { page + n * 4096 } else { page });
        assert!(
            machine
                .ram
                .write(TABLES + 4 * number, &((narrow | bits) as u32).to_le_bytes())
        );
        machine.set_word(TABLES + 0x2000 + 8 * number, wide | bits);
    }
    assert!(machine.ram.write(TOP, &((TABLES | bits) as u32).to_le_bytes()));
    machine.set_word(PAE_TOP, PAE_DIRECTORY | PRESENT);
    machine.set_word(PAE_DIRECTORY, (TABLES + 0x2000) | bits);
    for n in 0..3 {
        machine.set_word(DATA + 4096 * n, 10 + n);
    }

    // Out of long mode: by compatibility mode, where paging is turned off.
    machine.kernel(|a| {
        a.mov(r8d, dword_ptr(DATA))?;
        a.push(i32::from(CODE32))?;
        a.push(second as i32)?;
        a.db(&[0x48, 0xcb])
    });
    machine.assemble(second, 32, |a| {
        change_cr0(a, 0, PG)?;
        wrmsr(a, EFER, 0)?;
        // Without paging.
        a.mov(ebx, dword_ptr(DATA))?;
        a.mov(eax, cr4)?;
        a.and(eax, !PAE)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TOP as i32)?;
        a.mov(cr3, eax)?;
        change_cr0(a, PG, 0)?;
        a.mov(esi, dword_ptr(DATA))?;
        far(a, CODE32, third)
    });
    machine.assemble(third, 32, |a| {
        change_cr0(a, 0, PG)?;
        a.mov(eax, cr4)?;
        a.or(eax, PAE)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PAE_TOP as i32)?;
        a.mov(cr3, eax)?;
        change_cr0(a, PG, 0)?;
        a.mov(edi, dword_ptr(DATA))?;
        // And into long mode again.
        change_cr0(a, 0, PG)?;
        a.mov(eax, 0x1000)?;
        a.mov(cr3, eax)?;
        wrmsr(a, EFER, LME)?;
        change_cr0(a, PG, 0)?;
        far(a, CODE64, last)
    });
    machine.assemble(last, 64, |a| {
        a.mov(r9, qword_ptr(DATA))?;
        done(a)
    });
    machine.done();
    let gpr = &machine.cpu.gpr;
    let found = [gpr[8], gpr[reg::RBX], gpr[reg::RSI], gpr[reg::RDI], gpr[9]];
    assert_eq!(found, [10, 10, 11, 12, 10]);
}

/// As kernels of 32 bits start their other processors.
#[test]
fn a_second_processor_goes_from_real_mode_to_pae() {
    let tables = Protected::new(Paging::Pae);
    // The processor that starts the other one is in long mode, with tables of its own.
    let mut machine = Machine::with(Clock::Host, 2);
    for at in (0..0x1_0000).step_by(8) {
        let word = tables.machine.word(TOP + at);
        machine.set_word(TOP + at, word);
    }
    machine.set_word(GDT + u64::from(CODE32), 0x00cf_9b00_0000_ffff);
    machine.set_word(DATA, 77);
    // What LGDT reads, within reach of real mode.
    machine.set_word(START + 0x800, GDT << 16 | 0x3f);
    let target = START + 0x100;
    machine.assemble(target, 32, |a| {
        a.mov(eax, i32::from(DATA_SELECTOR))?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, PAE)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TOP as i32)?;
        a.mov(cr3, eax)?;
        change_cr0(a, PG, 0)?;
        a.mov(ebx, dword_ptr(DATA))?;
        a.mov(dword_ptr(DATA + 8), 1)?;
        done(a)
    });
    machine.kernel(|a| {
        let mut again = a.create_label();
        wrmsr(a, 0x1b, 0xfee0_0d00)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        wrmsr(a, 0x830, 1 << 32 | 0x4500)?;
        wrmsr(a, 0x830, 1 << 32 | 0x4600 | START >> 12)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(DATA + 8), 0)?;
        a.je(again)?;
        done(a)
    });
    let second = machine.second(|a| {
        a.mov(ax, cs)?;
        a.mov(ds, ax)?;
        a.lgdt(ptr(0x800))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp far CODE32:target, with an operand size of 32 bits.
        a.db(&[0x66, 0xea])?;
        a.db(&(target as u32).to_le_bytes())?;
        a.db(&CODE32.to_le_bytes())
    });
    let second = machine.done_beside(second);
    assert_eq!(second.gpr[reg::RBX], 77);
}

#[test]
fn from_protected_mode_to_real_mode() {
    const LOW: u64 = 0xb000;
    let mut protected = Protected::new(Paging::TwoLevels);
    // 16-bit code and data, and the vector table of real mode, whose entry 0x20 is a handler in segment
    // 0xb00.
    protected.machine.set_word(GDT + 8, 0x0000_9300_0000_ffff);
    protected.machine.set_word(GDT + 0x28, 0x0000_9b00_0000_ffff);
    protected.machine.set_word(4 * 0x20, 0x0b00_0080);
    protected.machine.set_word(DATA, 0x3ff);
    protected.kernel(|a| {
        change_cr0(a, 0, PG)?;
        a.lidt(ptr(DATA))?;
        far(a, 0x28, LOW)
    });
    protected.machine.assemble(LOW, 16, |a| {
        a.mov(ax, 8)?;
        a.mov(ss, ax)?;
        a.mov(eax, cr0)?;
        a.and(eax, -2)?;
        a.mov(cr0, eax)?;
        // jmp far 0b00:0040
        a.db(&[0xea, 0x40, 0x00, 0x00, 0x0b])
    });
    protected.machine.assemble(LOW + 0x40, 16, |a| {
        a.xor(ax, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7000)?;
        a.int(0x20)?;
        a.inc(bx)?;
        done(a)
    });
    protected.machine.assemble(LOW + 0x80, 16, |a| {
        a.mov(bx, cs)?;
        a.iret()
    });
    protected.machine.done();
    assert_eq!(protected.machine.cpu.gpr[reg::RBX] & 0xffff, 0xb01);
}
