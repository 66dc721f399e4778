//! 64-bit mode with RAM mapped to itself, as loaders of 64-bit kernels leave it: for those who start a
//! processor without a machine around it.

use crate::core::ram::Ram;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::state::{Segment, cr0, cr4, efer, seg};

/// Selectors of code and data, as Linux's boot protocol has them.
pub const CODE: u16 = 0x10;
/// See [`CODE`].
pub const DATA: u16 = 0x18;
/// Descriptors for the two.
pub const DESCRIPTORS: [u64; 2] = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Entries of a page table.
const ENTRIES: u64 = 512;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Writes page tables of three pages at `at` that map the first GiB to itself, in pages of 2 MiB. `false`
/// where RAM has no room.
pub fn map(ram: &Ram, at: u64) -> bool {
    let [directories, pages] = [at + 0x1000, at + 0x2000];
    let write = |at: u64, entry: u64| ram.write(at, &entry.to_le_bytes());
    write(at, directories | PRESENT_WRITABLE)
        && write(directories, pages | PRESENT_WRITABLE)
        && (0..ENTRIES).all(|n| write(pages + 8 * n, n << 21 | LARGE | PRESENT_WRITABLE))
}

/// Puts `cpu` into 64-bit mode at privilege level 0 with page tables at `tables`, as [`map`] writes them, and
/// lets it run.
pub fn enter(cpu: &mut Cpu, tables: u64) {
    let flat = |selector, access| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    };
    let cr4 = cr4::PAE | cr4::OSFXSR;
    cpu.set_control(cr0::PE | cr0::PG, tables, cr4, efer::LME | efer::LMA);
    for number in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        cpu.set_segment(number, flat(DATA, 0xc093));
    }
    cpu.set_segment(seg::CS, flat(CODE, 0xa09b));
    cpu.set_rflags(rflag::FIXED);
    cpu.unpark();
}
