//! Page tables: the walk from a linear address to a page, the rights on the way, and accessed and dirty bits
//! (Intel SDM vol. 3, chapter 4).
//!
//! | mode | tables | entries |
//! |---|---|---|
//! | long | four levels | 8 bytes |
//! | PAE | four registers ([`Cpu::load_pdptes`]), then two levels | 8 bytes |
//! | 32-bit | two levels | 4 bytes |

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::core::ram::Ram;
use crate::core::tlb::Bank;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{PHYSICAL_BITS, cr0, cr4, efer};

/// Bits of page table entries. Those of 4 bytes have the lower half of them.
pub(crate) mod pte {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits above a physical address are reserved.
    pub const RESERVED: u64 = ADDRESS & !((1 << super::PHYSICAL_BITS) - 1);
    /// Bits that only long mode leaves to the system.
    pub const RESERVED_IN_PAE: u64 = 0x7ff0_0000_0000_0000;
    /// Bits that an entry of the four PAE registers must not have.
    pub const RESERVED_IN_PDPTE: u64 = RESERVED | RESERVED_IN_PAE | NX | 0x1e6;
}

/// Bits of a page fault's error code.
pub mod code {
    /// The page was there, but not for this.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// At CPL 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// The page that a walk led to.
pub(crate) struct Leaf {
    pub phys: u64,
    pub writable: bool,
    pub global: bool,
    pub large: bool,
}

/// An entry of a page table in RAM, which other processors may change meanwhile.
trait Entry: Sized {
    /// Bits of a linear address that choose an entry of a table.
    const INDEX_BITS: u32;
    /// Entry `index` of the table at `table`.
    fn find(ram: &Ram, table: u64, index: u64) -> Option<&Self>;
    fn read(&self) -> u64;
    /// Replaces `old`; `false` where another processor was first.
    fn replace(&self, old: u64, new: u64) -> bool;
}

impl Entry for AtomicU64 {
    const INDEX_BITS: u32 = 9;
    fn find(ram: &Ram, table: u64, index: u64) -> Option<&AtomicU64> {
        ram.word(table + index * 8)
    }
    fn read(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

impl Entry for AtomicU32 {
    const INDEX_BITS: u32 = 10;
    fn find(ram: &Ram, table: u64, index: u64) -> Option<&AtomicU32> {
        ram.half_word(table + index * 4)
    }
    fn read(&self) -> u64 {
        self.load(Ordering::Acquire).into()
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old as u32, new as u32, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// Sets bits of an entry; `false` where another processor was first.
#[inline]
fn mark(word: &impl Entry, entry: u64, bits: u64) -> bool {
    entry & bits == bits || word.replace(entry, entry | bits)
}

/// What is left of the `rights` of the entries above when `entry` follows them: all levels must allow writing and
/// users, and one is enough to forbid fetching.
#[inline]
pub(crate) fn narrowed(rights: u64, entry: u64) -> u64 {
    rights & entry & (pte::WRITE | pte::USER) | (rights | entry) & pte::NX
}

/// Whether these registers select PAE paging.
fn is_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

impl Cpu {
    /// Walks the tables until no other processor changes an entry meanwhile.
    pub(crate) fn walk(&mut self, addr: u64, access: Access, bank: Bank) -> Result<Leaf, Stop> {
        let long = self.efer & efer::LMA != 0;
        let wide = self.cr4 & cr4::PAE != 0;
        let mut error = if bank == Bank::User { code::USER } else { 0 };
        match access {
            Access::Write => error |= code::WRITE,
            Access::Fetch if (wide && self.efer & efer::NXE != 0) || self.cr4 & cr4::SMEP != 0 => {
                error |= code::FETCH;
            }
            _ => {}
        }
        self.counters.walks += 1;
        loop {
            let result = if long {
                self.walk_once::<AtomicU64>(self.cr3 & pte::ADDRESS, 3, addr, access, bank)
            } else if wide {
                match self.pdpte(addr) {
                    0 => Err(0),
                    entry => self.walk_once::<AtomicU64>(entry & pte::ADDRESS, 1, addr, access, bank),
                }
            } else {
                let directory = self.cr3 & pte::ADDRESS & u64::from(u32::MAX);
                self.walk_once::<AtomicU32>(directory, 1, addr, access, bank)
            };
            match result {
                Ok(Some(leaf)) => return Ok(leaf),
                Ok(None) => {}
                Err(why) => return self.page_fault(addr, error | why),
            }
        }
    }

    /// Walks from `table` of `level` (0 has the pages) down to the page, checks the rights and sets accessed
    /// and dirty bits. `None` where an entry changed meanwhile; an error is what the page fault's code says
    /// of the entries.
    #[inline]
    fn walk_once<E: Entry>(
        &self,
        mut table: u64,
        mut level: u32,
        addr: u64,
        access: Access,
        bank: Bank,
    ) -> Result<Option<Leaf>, u32> {
        let mut rights = pte::WRITE | pte::USER;
        loop {
            let shift = 12 + E::INDEX_BITS * level;
            let index = addr >> shift & ((1 << E::INDEX_BITS) - 1);
            let word = E::find(&self.ram, table, index).ok_or(0u32)?;
            let entry = word.read();
            if entry & pte::PRESENT == 0 {
                return Err(0);
            }
            let leaf = level == 0 || (self.has_large_pages(level) && entry & pte::LARGE != 0);
            if entry & self.reserved_bits(shift, level, leaf) != 0 {
                return Err(code::PRESENT | code::RESERVED);
            }
            rights = narrowed(rights, entry);
            if leaf {
                if self.denies(rights, access, bank) {
                    return Err(code::PRESENT);
                }
                let dirty = if access == Access::Write { pte::DIRTY } else { 0 };
                if !mark(word, entry, pte::ACCESSED | dirty) {
                    return Ok(None);
                }
                let inside = (1u64 << shift) - 1;
                return Ok(Some(Leaf {
                    phys: entry & pte::ADDRESS & !inside | addr & inside,
                    writable: !self.is_read_only(rights, bank) && (entry | dirty) & pte::DIRTY != 0,
                    global: entry & pte::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
                    large: level > 0,
                }));
            }
            if !mark(word, entry, pte::ACCESSED) {
                return Ok(None);
            }
            table = entry & pte::ADDRESS;
            level -= 1;
        }
    }

    /// Whether an entry of `level` may be a page: 32-bit tables need CR4.PSE for that, and the highest level
    /// of long mode has none.
    fn has_large_pages(&self, level: u32) -> bool {
        level < 3 && self.cr4 & (cr4::PAE | cr4::PSE) != 0
    }

    /// Bits that an entry of `level` must not have, each of which covers `1 << shift` bytes.
    pub(crate) fn reserved_bits(&self, shift: u32, level: u32, leaf: bool) -> u64 {
        let large = leaf && level > 0;
        // Bit 12 of a large page is PAT; the others below the page's size must be zero.
        let below = if large { ((1 << shift) - 1) & !0x1fff } else { 0 };
        if self.cr4 & cr4::PAE == 0 {
            return below;
        }
        let mut reserved = pte::RESERVED | below;
        if self.efer & efer::NXE == 0 {
            reserved |= pte::NX;
        }
        if self.efer & efer::LMA == 0 {
            reserved |= pte::RESERVED_IN_PAE;
        } else if level == 3 {
            reserved |= pte::LARGE;
        }
        reserved
    }

    fn is_read_only(&self, rights: u64, bank: Bank) -> bool {
        rights & pte::WRITE == 0 && (bank == Bank::User || self.cr0 & cr0::WP != 0)
    }

    /// Whether a page with such rights is out of bounds for an access (Intel SDM vol. 3, §4.6.1).
    fn denies(&self, rights: u64, access: Access, bank: Bank) -> bool {
        let user = bank == Bank::User;
        let user_page = rights & pte::USER != 0;
        let smep = self.cr4 & cr4::SMEP != 0;
        (user && !user_page)
            || match access {
                Access::Fetch => rights & pte::NX != 0 || (!user && user_page && smep),
                Access::Write if self.is_read_only(rights, bank) => true,
                _ => bank == Bank::Supervisor && user_page && self.cr4 & cr4::SMAP != 0,
            }
    }

    /// The PAE register for `addr`; 0 where its GiB is not present.
    fn pdpte(&mut self, addr: u64) -> u64 {
        let registers = match self.pdptes {
            Some(registers) => registers,
            None => {
                let found = self.read_pdptes(self.cr3).unwrap_or_default();
                *self.pdptes.insert(found)
            }
        };
        registers[(addr >> 30 & 3) as usize]
    }

    /// The four entries at `cr3`, as PAE paging keeps them in registers; `None` where one has a reserved bit.
    fn read_pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        let table = cr3 & 0xffff_ffe0;
        let mut registers = [0; 4];
        for (n, register) in registers.iter_mut().enumerate() {
            // What is not RAM reads as all ones.
            let word = self.ram.word(table + 8 * n as u64);
            let entry = word.map_or(u64::MAX, AtomicU64::read);
            if entry & pte::PRESENT != 0 {
                if entry & pte::RESERVED_IN_PDPTE != 0 {
                    return None;
                }
                *register = entry;
            }
        }
        Some(registers)
    }

    /// Loads the registers of PAE paging where these control registers, which are about to be set, select it.
    /// A reserved bit is #GP, and nothing changes then (Intel SDM vol. 3, §4.4.1).
    pub(crate) fn load_pdptes(&mut self, cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Flow {
        if is_pae(cr0, cr4, efer) {
            let Some(registers) = self.read_pdptes(cr3) else {
                return self.general_protection(0);
            };
            self.pdptes = Some(registers);
        }
        Ok(())
    }
}
