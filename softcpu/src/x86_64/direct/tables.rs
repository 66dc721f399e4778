//! What the guest's page tables say of a program's pages, without an access to them.

use std::sync::atomic::Ordering;

use crate::core::page::PAGE_MASK;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::paging::{narrowed, pte};

/// A page as a program may have it in a TLB.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserPage {
    /// Guest-physical address of the page.
    pub phys: u64,
    /// It may be written to, and its entry says that it was.
    pub writable: bool,
    /// Code may be fetched.
    pub executable: bool,
}

impl Cpu {
    /// What a processor may take into its TLB of the page at `addr` without an access to it: nothing where an
    /// entry has not been accessed before. Changes nothing.
    pub(super) fn peek(&self, addr: u64) -> Option<UserPage> {
        self.look_up(addr, pte::PRESENT | pte::USER | pte::ACCESSED)
    }

    /// Whether programs have a page at `addr`, accessed or not.
    pub(super) fn is_present(&self, addr: u64) -> bool {
        self.look_up(addr, pte::PRESENT | pte::USER).is_some()
    }

    /// The page at `addr`, where each entry on the way has the bits that are `needed`. Changes nothing.
    fn look_up(&self, addr: u64, needed: u64) -> Option<UserPage> {
        let mut table = self.cr3 & pte::ADDRESS;
        let mut rights = pte::WRITE | pte::USER;
        for level in (0..4).rev() {
            let word = self.ram.word(table + (addr >> (12 + 9 * level) & 511) * 8)?;
            let entry = word.load(Ordering::Acquire);
            let leaf = level == 0 || (level < 3 && entry & pte::LARGE != 0);
            if entry & needed != needed || entry & self.reserved_bits(12 + 9 * level, level, leaf) != 0 {
                return None;
            }
            rights = narrowed(rights, entry);
            if leaf {
                let inside = (1u64 << (12 + 9 * level)) - 1;
                return Some(UserPage {
                    phys: (entry & pte::ADDRESS & !inside | addr & inside) & PAGE_MASK,
                    writable: rights & pte::WRITE != 0 && entry & pte::DIRTY != 0,
                    executable: rights & pte::NX == 0,
                });
            }
            table = entry & pte::ADDRESS;
        }
        None
    }
}
