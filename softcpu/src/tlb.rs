//! Translations in software: which guest page lies where in host memory, and what may be done to it.

use crate::ram::PAGE_MASK;

/// Entries of a bank; a power of two.
const ENTRIES: usize = 1024;
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

/// All translations of one processor.
pub(crate) struct Tlb {
    data: Box<[Entry; 4 * ENTRIES]>,
    exec: Box<[ExecEntry; 2 * EXEC_ENTRIES]>,
    /// First entry of the bank in use.
    bank: usize,
    /// First entry of the fetch bank in use.
    exec_bank: usize,
    /// Data entries filled with non-global pages since the last flush.
    local: Vec<u16>,
    /// The same of fetch entries.
    exec_local: Vec<u16>,
    /// A large non-global page is cached in pieces: invalidating one of its addresses has to find them all.
    large_local: bool,
}

impl Tlb {
    pub fn new() -> Tlb {
        Tlb {
            data: vec![EMPTY; 4 * ENTRIES]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            exec: vec![EXEC_EMPTY; 2 * EXEC_ENTRIES]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            bank: ENTRIES,
            exec_bank: EXEC_ENTRIES,
            local: Vec::with_capacity(LIST),
            exec_local: Vec::with_capacity(LIST),
            large_local: false,
        }
    }

    /// Chooses whose rights count from now on.
    #[inline]
    pub fn select(&mut self, bank: Bank) {
        self.bank = bank as usize * ENTRIES;
        self.exec_bank = if bank == Bank::User { 0 } else { EXEC_ENTRIES };
    }

    #[inline(always)]
    fn slot(&self, addr: u64) -> usize {
        self.bank + (addr >> 12) as usize % ENTRIES
    }

    /// The only entry that can hold the page of `addr`.
    #[inline(always)]
    pub fn entry(&self, addr: u64) -> &Entry {
        &self.data[self.slot(addr) % (4 * ENTRIES)]
    }

    /// The only fetch entry that can hold the page of `addr`.
    #[inline(always)]
    pub fn exec_entry(&self, addr: u64) -> ExecEntry {
        self.exec[(self.exec_bank + (addr >> 12) as usize % EXEC_ENTRIES) % (2 * EXEC_ENTRIES)]
    }

    /// Remembers a translation of the bank in use.
    pub fn fill(&mut self, addr: u64, write: bool, host: usize, phys: u64, global: bool, large: bool) {
        let page = addr & PAGE_MASK;
        let slot = self.slot(addr);
        self.data[slot] = Entry {
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
        self.data.fill(EMPTY);
        self.exec.fill(EXEC_EMPTY);
        self.local.clear();
        self.exec_local.clear();
        self.large_local = false;
    }

    /// Forgets all but global pages.
    pub fn flush_local(&mut self) {
        for slot in self.local.drain(..) {
            let entry = &mut self.data[slot as usize];
            if entry.phys & 1 == 0 {
                *entry = EMPTY;
            }
        }
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
        if self.large_local {
            self.flush_local();
        }
        let page = addr & PAGE_MASK;
        for bank in 0..3 {
            let entry = &mut self.data[bank * ENTRIES + (addr >> 12) as usize % ENTRIES];
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
        for entry in self.data.iter_mut() {
            if phys.is_none_or(|phys| entry.phys & PAGE_MASK == phys & PAGE_MASK) {
                entry.write = NONE;
            }
        }
    }
}
