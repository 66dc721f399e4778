//! Translations in software: which guest page lies where in host memory, and what may be done to it.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::core::changes::Changes;
use crate::core::page::PAGE_MASK;
use crate::core::ram::Ram;

/// Entries of a bank; a power of two.
const ENTRIES: usize = 1024;
/// Entries of all banks.
const SLOTS: usize = 4 * ENTRIES;
/// The bank of user code whose data must be aligned, with the rights of [`Bank::User`]. No fast path takes
/// its entries: they serve atomic operations, which look at the alignment themselves.
const ALIGNED: usize = 3;
/// Entries for instruction fetch; a power of two.
const EXEC_ENTRIES: usize = 512;
/// A tag that no page has.
const NONE: u64 = 1;
/// Bit of a tag for writing: a store must be reported to the page's
/// [`CodePage`](crate::core::code_page::CodePage). No address of a page has it, so the fast path does not
/// take such an entry.
const WATCHED: u64 = 2;
/// Entries that a non-global flush visits one by one; where more were filled, it visits all.
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
    /// Linear page that may be written: its dirty bit is set and no code was decoded from it. With
    /// [`WATCHED`] where there may be code.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest-physical page; bit 0 is set for global pages.
    pub phys: u64,
}

impl Entry {
    /// The linear page, by whichever tag has it; no page where there is none.
    fn page(&self) -> u64 {
        if self.read == NONE {
            self.write & !WATCHED
        } else {
            self.read
        }
    }
}

/// How stores go to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// By a walk of the page tables, which faults or sets the dirty bit.
    Walk,
    /// To memory and then to the page's [`CodePage`](crate::core::code_page::CodePage).
    Watched,
    /// To memory alone.
    Direct,
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

/// A set of numbers that may seem to have more members than were put into it.
struct Filter<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Filter<WORDS> {
    const EMPTY: Filter<WORDS> = Filter([0; WORDS]);

    fn place(number: u64) -> (usize, u64) {
        ((number / 64) as usize % WORDS, 1 << (number % 64))
    }

    fn insert(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    fn contains(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }
}

/// What was fetched by one of the two fetch banks since its translations were forgotten last.
struct Fetched {
    /// The times that they were forgotten.
    generation: u64,
    /// Numbers of the pages.
    pages: Filter<32>,
    /// Some of them are not global.
    local: bool,
}

impl Fetched {
    const fn nothing(generation: u64) -> Fetched {
        Fetched {
            generation,
            pages: Filter::EMPTY,
            local: false,
        }
    }
}

/// The GiB in which large pages lie that are cached in pieces: invalidating one of their addresses has to
/// find them all.
struct LargePages {
    local: Filter<4>,
    global: Filter<4>,
}

impl LargePages {
    const SHIFT: u32 = 30;
    const NONE: LargePages = LargePages {
        local: Filter::EMPTY,
        global: Filter::EMPTY,
    };

    /// The number of its GiB for the filters: kernels have theirs in the upper half of the addresses, apart
    /// from users'.
    fn number(addr: u64) -> u64 {
        let gigabyte = addr >> LargePages::SHIFT;
        (gigabyte ^ gigabyte >> 7) & 0x7f | addr >> 63 << 7
    }

    fn insert(&mut self, addr: u64, global: bool) {
        let pages = if global { &mut self.global } else { &mut self.local };
        pages.insert(LargePages::number(addr));
    }

    fn contains(&self, addr: u64) -> bool {
        let number = LargePages::number(addr);
        self.local.contains(number) || self.global.contains(number)
    }
}

/// All translations of one processor.
pub(crate) struct Tlb {
    /// The first of `SLOTS` data entries, on the heap.
    data: NonNull<Entry>,
    exec: Box<[ExecEntry; 2 * EXEC_ENTRIES]>,
    /// The first entry of the bank in use.
    bank: NonNull<Entry>,
    /// Whether that is the bank of code whose data must be aligned.
    aligned: bool,
    /// First entry of the fetch bank in use.
    exec_bank: usize,
    /// Data entries filled with non-global pages since the last flush, as far as there is room.
    local: Vec<u16>,
    /// The same of fetch entries.
    exec_local: Vec<u16>,
    large: LargePages,
    /// Of the user's fetch bank and the supervisor's.
    fetched: [Fetched; 2],
    /// What [`Tlb::key`] gives: the generation of the fetch bank of the mode, above the mode.
    key: u64,
    /// Base of the code segment, which belongs to the mode.
    code_base: u64,
    /// What happens to users' translations, where somebody keeps copies of them.
    pub changes: Option<Box<Changes>>,
}

/// Bits of [`Tlb::key`] that name the mode: user or not, and the code size.
const MODE_BITS: u32 = 3;
/// Bit of the mode: user.
const USER_MODE: u64 = 1;

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
            aligned: false,
            exec_bank: EXEC_ENTRIES,
            local: Vec::with_capacity(LIST),
            exec_local: Vec::with_capacity(LIST),
            large: LargePages::NONE,
            fetched: [Fetched::nothing(0), Fetched::nothing(0)],
            // 0 is the key of nothing.
            key: 1 << MODE_BITS,
            code_base: 0,
            changes: None,
        }
    }

    /// Chooses whose rights count from now on, and whether data must be aligned.
    #[inline]
    pub fn select(&mut self, bank: Bank, aligned: bool) {
        self.aligned = aligned;
        let number = if aligned { ALIGNED } else { bank as usize };
        // SAFETY: there are as many entries as the banks have.
        self.bank = unsafe { self.data.add(number * ENTRIES) };
        self.exec_bank = if bank == Bank::User { 0 } else { EXEC_ENTRIES };
    }

    /// Changes the mode in which code is fetched.
    #[inline]
    pub fn enter(&mut self, user: bool, code_size: u64, code_base: u64) {
        self.set_key(code_size << 1 | user as u64);
        if self.code_base != code_base {
            self.code_base = code_base;
            self.forget(0);
            self.forget(1);
        }
    }

    /// While this number is the same, what was fetched from a linear address (outside of long mode: from an
    /// instruction pointer) may be fetched from there again: mode and translations are the same.
    #[inline(always)]
    pub fn key(&self) -> u64 {
        self.key
    }

    #[inline]
    fn set_key(&mut self, mode: u64) {
        let bank = (mode & USER_MODE == 0) as usize;
        self.key = (self.fetched[bank].generation + 1) << MODE_BITS | mode;
    }

    /// What was fetched by a bank has to be translated again.
    fn forget(&mut self, bank: usize) {
        self.fetched[bank] = Fetched::nothing(self.fetched[bank].generation + 1);
        self.set_key(self.key & ((1 << MODE_BITS) - 1));
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
    pub fn fill(&mut self, addr: u64, stores: Stores, host: usize, phys: u64, global: bool, large: bool) {
        let page = addr & PAGE_MASK;
        let stores = match stores {
            Stores::Direct if self.aligned => Stores::Watched,
            stores => stores,
        };
        // SAFETY: both point into the same entries, the bank not before their start.
        let slot = unsafe { self.bank.offset_from_unsigned(self.data) } + index(addr);
        self.all()[slot] = Entry {
            read: if self.aligned { NONE } else { page },
            write: match stores {
                Stores::Walk => NONE,
                Stores::Watched => page | WATCHED,
                Stores::Direct => page,
            },
            addend: (host as u64 & PAGE_MASK).wrapping_sub(page),
            phys: phys & PAGE_MASK | global as u64,
        };
        if large {
            self.large.insert(addr, global);
        }
        if !global && self.local.len() < LIST {
            self.local.push(slot as u16);
        }
        if let Some(changes) = &mut self.changes
            && slot < ENTRIES
        {
            changes.find(addr);
        }
    }

    /// Remembers a translation for fetch.
    pub fn fill_exec(&mut self, addr: u64, phys: u64, global: bool, large: bool) {
        let slot = self.exec_bank + (addr >> 12) as usize % EXEC_ENTRIES;
        self.exec[slot] = ExecEntry {
            tag: addr & PAGE_MASK,
            phys: phys & PAGE_MASK | global as u64,
        };
        let fetched = &mut self.fetched[self.exec_bank / EXEC_ENTRIES];
        fetched.pages.insert(addr >> 12);
        fetched.local |= !global;
        if large {
            self.large.insert(addr, global);
        }
        if !global && self.exec_local.len() < LIST {
            self.exec_local.push(slot as u16);
        }
        if let Some(changes) = &mut self.changes
            && slot < EXEC_ENTRIES
        {
            changes.find(addr);
        }
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        self.forget(0);
        self.forget(1);
        self.all().fill(EMPTY);
        self.exec.fill(EXEC_EMPTY);
        self.local.clear();
        self.exec_local.clear();
        self.large = LargePages::NONE;
        self.note(Changes::flush);
    }

    /// Lets those who keep copies know.
    fn note(&mut self, change: impl FnOnce(&mut Changes)) {
        if let Some(changes) = &mut self.changes {
            change(changes);
        }
    }

    /// Forgets all but global pages.
    pub fn flush_local(&mut self) {
        for bank in 0..2 {
            if self.fetched[bank].local {
                self.forget(bank);
            }
        }
        fn clear(entry: &mut Entry) {
            if entry.phys & 1 == 0 {
                *entry = EMPTY;
            }
        }
        fn clear_exec(entry: &mut ExecEntry) {
            if entry.phys & 1 == 0 {
                *entry = EXEC_EMPTY;
            }
        }
        let local = std::mem::take(&mut self.local);
        if local.len() < LIST {
            local
                .iter()
                .for_each(|slot| clear(&mut self.all()[*slot as usize]));
        } else {
            self.all().iter_mut().for_each(clear);
        }
        self.local = local;
        self.local.clear();
        if self.exec_local.len() < LIST {
            self.exec_local
                .iter()
                .for_each(|slot| clear_exec(&mut self.exec[*slot as usize]));
        } else {
            self.exec.iter_mut().for_each(clear_exec);
        }
        self.exec_local.clear();
        self.large.local = Filter::EMPTY;
        self.note(Changes::flush);
    }

    /// Forgets the page of `addr`, global or not.
    pub fn flush_page(&mut self, addr: u64) {
        self.note(|changes| changes.drop_page(addr));
        if self.large.contains(addr) {
            return self.flush_large(addr);
        }
        let page = addr & PAGE_MASK;
        for bank in 0..SLOTS / ENTRIES {
            let entry = &mut self.all()[bank * ENTRIES + index(addr)];
            if entry.page() == page {
                *entry = EMPTY;
            }
        }
        for bank in 0..2 {
            if self.fetched[bank].pages.contains(addr >> 12) {
                self.forget(bank);
            }
            let entry = &mut self.exec[bank * EXEC_ENTRIES + (addr >> 12) as usize % EXEC_ENTRIES];
            if entry.tag == page {
                *entry = EXEC_EMPTY;
            }
        }
    }

    /// Forgets all pages that may belong to the same large page as `addr`.
    #[cold]
    fn flush_large(&mut self, addr: u64) {
        self.note(Changes::flush);
        self.forget(0);
        self.forget(1);
        let near = |page: u64| (page ^ addr) >> LargePages::SHIFT == 0;
        for entry in self.all().iter_mut().filter(|entry| near(entry.page())) {
            *entry = EMPTY;
        }
        for entry in self.exec.iter_mut().filter(|entry| near(entry.tag)) {
            *entry = EXEC_EMPTY;
        }
    }

    /// The translation by which `size` bytes at `addr` may be written and have to be watched.
    #[inline]
    pub fn watched(&self, addr: u64, size: usize) -> Option<Entry> {
        let entry = *self.entry(addr);
        (entry.write == addr.wrapping_add(size as u64 - 1) & PAGE_MASK | WATCHED).then_some(entry)
    }

    /// Lets stores to the page of `addr`, which were watched, pass.
    pub fn open(&mut self, addr: u64) {
        // SAFETY: as in `entry`, and `self` is borrowed for changing it.
        let entry = unsafe { self.bank.add(index(addr)).as_mut() };
        if !self.aligned && entry.write == addr & PAGE_MASK | WATCHED {
            entry.write = addr & PAGE_MASK;
        }
    }

    /// Watches the stores by every translation to the physical page `phys`.
    pub fn watch(&mut self, phys: u64) {
        self.note(|changes| changes.watches += 1);
        for entry in self.all() {
            if entry.phys & PAGE_MASK == phys & PAGE_MASK && entry.write != NONE {
                entry.write |= WATCHED;
            }
        }
    }

    /// Watches the stores to all pages that hold code.
    pub fn watch_code(&mut self, ram: &Ram) {
        self.note(|changes| changes.watches += 1);
        for entry in self.all() {
            let direct = entry.write & (NONE | WATCHED) == 0;
            if direct
                && ram
                    .page(entry.phys & PAGE_MASK)
                    .is_none_or(|page| page.holds_code())
            {
                entry.write |= WATCHED;
            }
        }
    }
}
