//! What is mapped in a helper, and the system calls that bring it up to date.

use std::collections::BTreeMap;
use std::ops::Range;

use super::stub::{Call, map, unmap};
use crate::core::page::{PAGE, PAGE_MASK};

/// A page as it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Where it is in the file of guest RAM.
    pub offset: u64,
    /// `PROT_READ` and its kin.
    pub protection: i32,
}

/// The pages of a helper by their linear address.
#[derive(Debug)]
pub(super) struct Mirror {
    pages: BTreeMap<u64, Page>,
    /// Addresses that are the helper's own.
    own: Range<u64>,
    /// What is to be changed, in order of the addresses.
    changes: BTreeMap<u64, Option<Page>>,
}

impl Mirror {
    /// One that is empty, of a helper that keeps these addresses.
    pub fn new(own: Range<u64>) -> Mirror {
        Mirror {
            pages: BTreeMap::new(),
            own,
            changes: BTreeMap::new(),
        }
    }

    /// How many pages are mapped.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// How many of them will still be.
    pub fn kept(&self) -> usize {
        let gone = self
            .changes
            .iter()
            .filter(|(at, page)| page.is_none() && self.pages.contains_key(at));
        self.pages.len() - gone.count()
    }

    /// The page at `addr` as it is or will be mapped.
    pub fn get(&self, addr: u64) -> Option<Page> {
        let page = addr & PAGE_MASK;
        match self.changes.get(&page) {
            Some(change) => *change,
            None => self.pages.get(&page).copied(),
        }
    }

    /// All pages that are mapped.
    pub fn addresses(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    /// Lets the page of `addr` be mapped so, or not at all.
    pub fn set(&mut self, addr: u64, page: Option<Page>) {
        let at = addr & PAGE_MASK;
        if self.pages.get(&at).copied() == page {
            self.changes.remove(&at);
        } else {
            self.changes.insert(at, page);
        }
    }

    /// Nothing is mapped any more.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.changes.clear();
    }

    /// The calls that make all changes: neighbours that lie in the file as they lie in memory are mapped by one,
    /// and what is to be unmapped is unmapped with all that is not mapped between.
    pub fn calls(&mut self) -> Vec<Call> {
        struct Run {
            at: u64,
            len: u64,
            page: Option<Page>,
        }
        let mut runs: Vec<Run> = Vec::new();
        for (at, page) in std::mem::take(&mut self.changes) {
            match page {
                Some(page) => self.pages.insert(at, page),
                None => self.pages.remove(&at),
            };
            if page.is_none()
                && let Some(last) = runs.last_mut()
                && last.page.is_none()
                && self.is_empty(last.at + last.len..at)
            {
                last.len = at + PAGE - last.at;
                continue;
            }
            if let Some(last) = runs.last_mut()
                && last.at + last.len == at
                && last.page.map(|first| Page {
                    offset: first.offset + last.len,
                    ..first
                }) == page
            {
                last.len += PAGE;
                continue;
            }
            runs.push(Run { at, len: PAGE, page });
        }
        let call = |run: Run| match run.page {
            Some(page) => map(run.at, run.len, page.offset, page.protection),
            None => unmap(run.at, run.len),
        };
        runs.into_iter().map(call).collect()
    }

    /// Whether nothing is mapped there.
    fn is_empty(&self, range: Range<u64>) -> bool {
        let own = self.own.start < range.end && range.start < self.own.end;
        !own && (range.is_empty() || self.pages.range(range).next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: i32 = libc::PROT_READ;

    fn page(offset: u64) -> Option<Page> {
        Some(Page {
            offset,
            protection: R,
        })
    }

    fn mirror() -> Mirror {
        Mirror::new(0x10_0000..0x10_2000)
    }

    #[test]
    fn unmapping_reaches_over_what_is_not_mapped() {
        let mut mirror = mirror();
        for at in [0, 0x2000, 0x5000, 0x9000, 0xf_f000, 0x10_2000] {
            mirror.set(at, page(0));
        }
        mirror.calls();
        for at in [0, 0x2000, 0x9000, 0xf_f000, 0x10_2000] {
            mirror.set(at, None);
        }
        assert_eq!(
            mirror.calls(),
            [
                unmap(0, 0x3000),
                unmap(0x9000, 0xf_7000),
                unmap(0x10_2000, 0x1000)
            ]
        );
    }

    #[test]
    fn neighbours_are_mapped_by_one_call() {
        let mut mirror = mirror();
        for n in [2, 0, 1] {
            mirror.set(0x1000 * n + 5, page(0x8000 + 0x1000 * n));
        }
        mirror.set(0x3000, page(0));
        assert_eq!(
            mirror.calls(),
            [map(0, 0x3000, 0x8000, R), map(0x3000, 0x1000, 0, R)]
        );
        assert_eq!(mirror.len(), 4);
        mirror.set(0x1000, None);
        mirror.set(0x2000, None);
        mirror.set(0x8000, page(0));
        assert_eq!((mirror.len(), mirror.kept()), (4, 2));
        mirror.set(0x8000, None);
        assert_eq!(mirror.get(0x2fff), None);
        assert_eq!(mirror.calls(), [unmap(0x1000, 0x2000)]);
        assert_eq!(mirror.calls(), Vec::<Call>::new());
    }

    #[test]
    fn what_is_as_it_was_is_no_change() {
        let mut mirror = mirror();
        mirror.set(0, page(0));
        mirror.calls();
        mirror.set(0, None);
        mirror.set(0, page(0));
        assert_eq!(mirror.calls(), Vec::<Call>::new());
    }
}
