//! The state of the code in one page of guest RAM: from which parts of it blocks were decoded, how often
//! such a part was written to, and whether stores to the page may skip these checks.
//!
//! The state is one word, so that it changes atomically:
//! - Whoever relies on bytes of the page (a decoder, or a block that is looked up again) first calls
//!   [`CodePage::rely`], which marks their granules and returns the version; then it reads the bytes.
//! - Whoever stores to the page first stores, then calls [`CodePage::stored`], which changes the version
//!   where a granule was marked.
//!
//! Each does its second step after its first one is visible to all processors, so either the reader sees the
//! new bytes, or the version that it has is no longer the page's. A store that marks nothing as changed
//! leaves every version as it is.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::core::page::PAGE;

/// Bytes of a granule, as a power of two.
const GRANULE_SHIFT: u32 = 7;
/// Granules of a page; they are the word's low bits.
const GRANULES: u32 = (PAGE >> GRANULE_SHIFT) as u32;
const MARKS: u64 = (1 << GRANULES) - 1;
/// A processor may have a translation by which stores pass without a call of [`CodePage::stored`].
const DIRECT: u64 = 1 << GRANULES;
/// The lowest bit of the version, which is the rest of the word.
const VERSION_SHIFT: u32 = GRANULES + 1;
const VERSION: u64 = 1 << VERSION_SHIFT;

/// Code of a page; see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct CodePage(AtomicU64);

/// What [`CodePage::rely`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reliance {
    /// The page's version before the bytes are read.
    pub version: u32,
    /// Processors may still store past the marks: see [`CodePage::settle`].
    pub direct: bool,
}

/// What [`CodePage::stored`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Code: blocks with the version before are to be looked at again.
    Code,
    /// No code, but the page has some elsewhere.
    BesideCode,
    /// The page holds no code.
    NoCode,
}

/// The granules of `len` bytes from `offset` on; what is beyond the page is left out.
#[inline(always)]
pub(crate) fn granules(offset: u64, len: u64) -> u64 {
    let first = offset >> GRANULE_SHIFT;
    let last = (offset + len.max(1) - 1).min(PAGE - 1) >> GRANULE_SHIFT;
    (2 << last) - (1 << first)
}

impl CodePage {
    /// So many pages without code. They are zero: the host gives memory for those that are looked at.
    pub fn none(count: u64) -> Box<[CodePage]> {
        let pages = Box::new_zeroed_slice(count as usize);
        // SAFETY: a page is one atomic number, for which all bytes zero are valid.
        unsafe { pages.assume_init() }
    }

    /// The version now.
    #[inline(always)]
    pub fn version(&self) -> u32 {
        (self.0.load(Ordering::Acquire) >> VERSION_SHIFT) as u32
    }

    /// Marks `granules`. To be called before their bytes are read.
    pub fn rely(&self, granules: u64) -> Reliance {
        let mut word = self.0.load(Ordering::Acquire);
        while word & granules != granules {
            let new = word | granules;
            match self
                .0
                .compare_exchange_weak(word, new, Ordering::SeqCst, Ordering::Acquire)
            {
                Ok(_) => {
                    // The bytes are read after the mark shows.
                    fence(Ordering::SeqCst);
                    word = new;
                }
                Err(found) => word = found,
            }
        }
        Reliance {
            version: (word >> VERSION_SHIFT) as u32,
            direct: word & DIRECT != 0,
        }
    }

    /// Says that `granules` were written to. On a machine with several processors the caller makes the store
    /// visible first.
    #[inline]
    pub fn stored(&self, granules: u64) -> Stored {
        let mut word = self.0.load(Ordering::SeqCst);
        while word & granules != 0 {
            let new = (word & !granules).wrapping_add(VERSION);
            match self
                .0
                .compare_exchange_weak(word, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return Stored::Code,
                Err(found) => word = found,
            }
        }
        if word & MARKS == 0 {
            Stored::NoCode
        } else {
            Stored::BesideCode
        }
    }

    /// Whether stores of the processor that asks may pass without a call of [`CodePage::stored`] until
    /// [`CodePage::rely`] says otherwise. Where the page held code before, only with `force`.
    pub fn open(&self, force: bool) -> bool {
        let mut word = self.0.load(Ordering::SeqCst);
        loop {
            if word & MARKS != 0 {
                return false;
            }
            if word & DIRECT != 0 {
                return true;
            }
            if word >> VERSION_SHIFT != 0 && !force {
                return false;
            }
            match self
                .0
                .compare_exchange_weak(word, word | DIRECT, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
    }

    /// Whether the page holds code, so that [`CodePage::open`] would refuse.
    pub fn holds_code(&self) -> bool {
        self.0.load(Ordering::SeqCst) & MARKS != 0
    }

    /// Says that no processor has a translation any more by which stores pass that it had when
    /// [`CodePage::rely`] returned `version`. `false` and without effect where the page has another version
    /// now: it may have been opened since.
    pub fn settle(&self, version: u32) -> bool {
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                let same = (word >> VERSION_SHIFT) as u32 == version && word & MARKS != 0;
                same.then_some(word & !DIRECT)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_of_a_range() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(127, 1), 1);
        assert_eq!(granules(127, 2), 3);
        assert_eq!(granules(128, 128), 2);
        assert_eq!(granules(PAGE - 1, 1), 1 << 31);
        assert_eq!(granules(PAGE - 1, 15), 1 << 31, "the rest is in the next page");
        assert_eq!(granules(0, PAGE), MARKS);
    }

    #[test]
    fn only_a_store_to_marked_granules_changes_the_version() {
        let page = CodePage::default();
        let before = page.rely(0b110);
        assert_eq!(page.stored(0b1001), Stored::BesideCode);
        assert_eq!(page.version(), before.version);
        assert_eq!(page.stored(0b0011), Stored::Code);
        assert_ne!(page.version(), before.version);
        assert_eq!(page.stored(0b0011), Stored::BesideCode, "its mark is gone");
        assert_eq!(page.stored(0b0100), Stored::Code);
        assert_eq!(page.stored(0b0100), Stored::NoCode);
    }

    #[test]
    fn a_page_is_open_only_while_it_has_no_code() {
        let page = CodePage::default();
        assert!(page.open(false));
        let first = page.rely(1);
        assert!(first.direct, "somebody may store past the mark");
        assert!(!page.open(true));
        assert!(page.settle(first.version));
        assert!(!page.rely(2).direct);
        page.stored(3);
        assert!(!page.open(false), "it is likely to have code again");
        assert!(page.open(true));
        assert!(!page.settle(page.version()));
        assert!(page.rely(1).direct, "open without code is nothing to settle");
    }

    #[test]
    fn a_page_that_was_opened_since_is_not_settled() {
        let page = CodePage::default();
        page.open(false);
        let first = page.rely(1);
        page.stored(1);
        assert!(
            page.open(false),
            "the other processor has such a translation again"
        );
        page.rely(1);
        assert!(!page.settle(first.version));
        assert!(page.rely(1).direct);
    }

    #[test]
    fn the_version_wraps_round_within_its_bits() {
        let page = CodePage(AtomicU64::new(u64::MAX << VERSION_SHIFT));
        page.rely(1 << 31);
        assert_eq!(page.stored(1 << 31), Stored::Code);
        assert_eq!((page.version(), page.holds_code()), (0, false));
    }
}
