//! Translations in software: which guest page lies where in host memory, and what may be done to it.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::ram::PAGE_MASK;

/// Entries of a bank; a power of two.
const ENTRIES: usize = 1024;
/// Entries of all banks.
const SLOTS: usize = 3 * ENTRIES;
/// Entries for instruction fetch; a power of two.
const EXEC_ENTRIES: usize = 512;
/// A tag that no page has.
const NONE: u64 = 1;
/// Page numbers that a non-global flush visits one by one before it clears everything instead.
const LIST: usize = 4096;

/// Whose rights a data translation has. Each bank holds what is allowed to it, so that a hit needs no check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2 with RFLAGS.AC clear: user pages are out of reach under SMAP.
    Supervisor = 1,
    /// CPL 0 to 2 with RFLAGS.AC set.
    SupervisorAc = 2,
}

/// A data translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    /// Linear page that may be read.
    pub read: u64,
    /// Linear page that may be written: its dirty bit is set and no code was decoded from it.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest-physical page; bit 0 is set for global pages.
    pub phys: u64,
}

/// A translation for instruction fetch.
#[derive(Clone, Copy)]
pub(crate) struct ExecEntry {
    /// Linear page.
    pub tag: u64,
    /// Guest-physical page; bit 0 is set for global pages.
    pub phys: u64,
}

const EMPTY: Entry = Entry {
    read: NONE,
    write: NONE,
    addend: 0,
    phys: 0,
};
const EXEC_EMPTY: ExecEntry = ExecEntry { tag: NONE, phys: 0 };

/// Place of an address in its bank.
#[inline(always)]
fn index(addr: u64) -> usize {
    (addr >> 12) as usize % ENTRIES
}

/// All translations of one processor.
pub(crate) struct Tlb {
    /// The first of `SLOTS` data entries, on the heap.
    data: NonNull<Entry>,
    exec: Box<[ExecEntry; 2 * EXEC_ENTRIES]>,
    /// The first entry of the bank in use.
    bank: NonNull<Entry>,
    /// First entry of the fetch bank in use.
    exec_bank: usize,
    /// Data entries filled with non-global pages since the last flush.
    local: Vec<u16>,
    /// The same of fetch entries.
    exec_local: Vec<u16>,
    /// A large non-global page is cached in pieces: invalidating one of its addresses has to find them all.
    large_local: bool,
    /// What [`Tlb::key`] gives: the times that translations were forgotten, above the mode.
    key: u64,
    /// Base of the code segment, which belongs to the mode.
    code_base: u64,
}

/// Bits of [`Tlb::key`] that name the mode: user or not, and the code size.
const MODE_BITS: u32 = 3;

// SAFETY: plain data, owned like a box.
unsafe impl Send for Tlb {}

impl Drop for Tlb {
    fn drop(&mut self) {
        let all = std::ptr::slice_from_raw_parts_mut(self.data.as_ptr(), SLOTS);
        // SAFETY: `new` made it from a boxed slice of this length, and it is dropped once.
        drop(unsafe { Box::from_raw(all) });
    }
}

impl Tlb {
    pub fn new() -> Tlb {
        let data = NonNull::from(Box::leak(vec![EMPTY; SLOTS].into_boxed_slice())).cast();
        Tlb {
            data,
            exec: vec![EXEC_EMPTY; 2 * EXEC_ENTRIES]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            bank: data,
            exec_bank: EXEC_ENTRIES,
            local: Vec::with_capacity(LIST),
            exec_local: Vec::with_capacity(LIST),
            large_local: false,
            key: 1 << MODE_BITS,
            code_base: 0,
        }
    }

    /// Chooses whose rights count from now on.
    #[inline]
    pub fn select(&mut self, bank: Bank) {
        // SAFETY: there are as many entries as the banks have.
        self.bank = unsafe { self.data.add(bank as usize * ENTRIES) };
        self.exec_bank = if bank == Bank::User { 0 } else { EXEC_ENTRIES };
    }

    /// Changes the mode in which code is fetched.
    #[inline]
    pub fn enter(&mut self, user: bool, code_size: u64, code_base: u64) {
        self.key = self.key >> MODE_BITS << MODE_BITS | code_size << 1 | user as u64;
        if self.code_base != code_base {
            self.code_base = code_base;
            self.forget();
        }
    }

    /// While this number is the same, what was fetched from a linear address (outside of long mode: from an instruction
    /// pointer) may be fetched from there again: mode and translations are the same.
    #[inline(always)]
    pub fn key(&self) -> u64 {
        self.key
    }

    fn forget(&mut self) {
        self.key += 1 << MODE_BITS;
    }

    /// The only entry that can hold the page of `addr`.
    #[inline(always)]
    pub fn entry(&self, addr: u64) -> &Entry {
        // SAFETY: `bank` is the first of as many entries, and nobody changes one while `self` is borrowed.
        unsafe { self.bank.add(index(addr)).as_ref() }
    }

    fn all(&mut self) -> &mut [Entry] {
        // SAFETY: all entries are initialised and belong to `self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), SLOTS) }
    }

    /// The only fetch entry that can hold the page of `addr`.
    #[inline(always)]
    pub fn exec_entry(&self, addr: u64) -> ExecEntry {
        self.exec[(self.exec_bank + (addr >> 12) as usize % EXEC_ENTRIES) % (2 * EXEC_ENTRIES)]
    }

    /// Remembers a translation of the bank in use.
    pub fn fill(&mut self, addr: u64, write: bool, host: usize, phys: u64, global: bool, large: bool) {
        let page = addr & PAGE_MASK;
        // SAFETY: both point into the same entries, the bank not before their start.
        let slot = unsafe { self.bank.offset_from_unsigned(self.data) } + index(addr);
        self.all()[slot] = Entry {
            read: page,
            write: if write { page } else { NONE },
            addend: (host as u64 & PAGE_MASK).wrapping_sub(page),
            phys: phys & PAGE_MASK | global as u64,
        };
        if !global {
            self.large_local |= large;
            self.local.push(slot as u16);
            if self.local.len() == LIST {
                self.flush_local();
            }
        }
    }

    /// Remembers a translation for fetch.
    pub fn fill_exec(&mut self, addr: u64, phys: u64, global: bool, large: bool) {
        let slot = self.exec_bank + (addr >> 12) as usize % EXEC_ENTRIES;
        self.exec[slot] = ExecEntry {
            tag: addr & PAGE_MASK,
            phys: phys & PAGE_MASK | global as u64,
        };
        if !global {
            self.large_local |= large;
            self.exec_local.push(slot as u16);
            if self.exec_local.len() == LIST {
                self.flush_local();
            }
        }
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        self.forget();
        self.all().fill(EMPTY);
        self.exec.fill(EXEC_EMPTY);
        self.local.clear();
        self.exec_local.clear();
        self.large_local = false;
    }

    /// Forgets all but global pages.
    pub fn flush_local(&mut self) {
        self.forget();
        let local = std::mem::take(&mut self.local);
        for slot in &local {
            let entry = &mut self.all()[*slot as usize];
            if entry.phys & 1 == 0 {
                *entry = EMPTY;
            }
        }
        self.local = local;
        self.local.clear();
        for slot in self.exec_local.drain(..) {
            let entry = &mut self.exec[slot as usize];
            if entry.phys & 1 == 0 {
                *entry = EXEC_EMPTY;
            }
        }
        self.large_local = false;
    }

    /// Forgets the page of `addr`, global or not.
    pub fn flush_page(&mut self, addr: u64) {
        self.forget();
        if self.large_local {
            self.flush_local();
        }
        let page = addr & PAGE_MASK;
        for bank in 0..3 {
            let entry = &mut self.all()[bank * ENTRIES + index(addr)];
            if entry.read == page {
                *entry = EMPTY;
            }
        }
        for bank in 0..2 {
            let entry = &mut self.exec[bank * EXEC_ENTRIES + (addr >> 12) as usize % EXEC_ENTRIES];
            if entry.tag == page {
                *entry = EXEC_EMPTY;
            }
        }
    }

    /// Takes the right to write away from every translation to the physical page `phys`, or to all pages.
    pub fn protect(&mut self, phys: Option<u64>) {
        for entry in self.all() {
            if phys.is_none_or(|phys| entry.phys & PAGE_MASK == phys & PAGE_MASK) {
                entry.write = NONE;
            }
        }
    }
}
