//! Guest RAM: host memory at guest-physical addresses, and for each page whether code was decoded from it.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Mask of the page number in an address.
pub const PAGE_MASK: u64 = !(PAGE - 1);

/// Code was decoded from the page. The bits above count the times that such a page was written to, so that
/// a block that remembers the whole word knows whether its bytes may have changed.
const HOLDS_CODE: u32 = 1;

/// Memory at one range of guest-physical addresses.
struct Region {
    start: u64,
    len: u64,
    /// Exposed address of the host memory.
    host: usize,
    pages: Box<[AtomicU32]>,
}

/// All of guest RAM. Shared by every processor.
pub struct Ram {
    regions: Vec<Region>,
}

/// A region as the owner of the memory describes it.
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    /// Guest-physical address, a multiple of [`PAGE`].
    pub start: u64,
    /// Bytes, a multiple of [`PAGE`].
    pub len: u64,
    /// Host memory.
    pub host: *mut u8,
}

impl Ram {
    /// Describes guest RAM.
    ///
    /// # Safety
    /// Each `host..host + len` must stay mapped, readable and writable for as long as the `Ram` lives, be
    /// aligned to [`PAGE`], and nobody may hold a Rust reference into it: the guest writes whenever it likes.
    pub unsafe fn new(specs: &[RegionSpec]) -> Ram {
        let mut regions: Vec<Region> = specs
            .iter()
            .map(|spec| Region {
                start: spec.start,
                len: spec.len & PAGE_MASK,
                host: spec.host.expose_provenance(),
                pages: (0..spec.len / PAGE).map(|_| AtomicU32::new(0)).collect(),
            })
            .collect();
        // The region that is used most is found first.
        regions.sort_by_key(|region| std::cmp::Reverse(region.len));
        Ram { regions }
    }

    #[inline]
    fn region(&self, phys: u64) -> Option<(&Region, u64)> {
        self.regions
            .iter()
            .map(|region| (region, phys.wrapping_sub(region.start)))
            .find(|(region, offset)| *offset < region.len)
    }

    /// The host address of the byte at `phys`; the rest of its page follows.
    #[inline]
    pub(crate) fn host(&self, phys: u64) -> Option<usize> {
        self.region(phys)
            .map(|(region, offset)| region.host + offset as usize)
    }

    /// What is known of the page at `phys`.
    #[inline]
    pub(crate) fn page(&self, phys: u64) -> Option<&AtomicU32> {
        self.region(phys)
            .map(|(region, offset)| &region.pages[(offset / PAGE) as usize])
    }

    /// Says that code is about to be decoded from the page. Answers the word that a block of it remembers, and
    /// whether the page was none of code before.
    pub(crate) fn mark_code(&self, phys: u64) -> (u32, bool) {
        let Some(page) = self.page(phys) else {
            return (0, false);
        };
        let old = page.fetch_or(HOLDS_CODE, Ordering::SeqCst);
        (old | HOLDS_CODE, old & HOLDS_CODE == 0)
    }

    /// Whether stores to the page must be told.
    #[inline]
    pub(crate) fn holds_code(&self, phys: u64) -> bool {
        self.page(phys)
            .is_some_and(|page| page.load(Ordering::Acquire) & HOLDS_CODE != 0)
    }

    /// Says that the page was written to: every block of it is void.
    pub(crate) fn written(&self, phys: u64) {
        if let Some(page) = self.page(phys) {
            let _ = page.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                (old & HOLDS_CODE != 0).then(|| (old & !HOLDS_CODE).wrapping_add(2))
            });
        }
    }

    /// An aligned 64-bit word, as page table walks need it.
    #[inline]
    pub(crate) fn word(&self, phys: u64) -> Option<&AtomicU64> {
        debug_assert!(phys.is_multiple_of(8));
        let host = self.host(phys)?;
        // SAFETY: `new` promises mapped memory without references into it; it is aligned, since regions start at
        // page boundaries on both sides.
        Some(unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(host)) })
    }

    /// Copies out of RAM; `false` and nothing done where a byte is missing.
    pub fn read(&self, phys: u64, data: &mut [u8]) -> bool {
        self.pieces(phys, data.len(), |host, from, len| {
            // SAFETY: `pieces` gives ranges inside a region, which `new` promises to be mapped.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    std::ptr::with_exposed_provenance::<u8>(host),
                    data[from..from + len].as_mut_ptr(),
                    len,
                );
            }
        })
    }

    /// Copies into RAM; `false` and nothing done where a byte is missing.
    pub fn write(&self, phys: u64, data: &[u8]) -> bool {
        let done = self.pieces(phys, data.len(), |host, from, len| {
            // SAFETY: as in `read`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    data[from..from + len].as_ptr(),
                    std::ptr::with_exposed_provenance_mut::<u8>(host),
                    len,
                );
            }
        });
        let first = phys & PAGE_MASK;
        for page in (first..phys.saturating_add(data.len() as u64)).step_by(PAGE as usize) {
            self.written(page);
        }
        done
    }

    /// Whether the page at `phys` has exactly these bytes.
    pub(crate) fn equals(&self, phys: u64, bytes: &[u8]) -> bool {
        let mut same = true;
        let mut chunk = [0; 256];
        for (n, wanted) in bytes.chunks(chunk.len()).enumerate() {
            let found = &mut chunk[..wanted.len()];
            same &= self.read(phys + (n * 256) as u64, found) && found == wanted;
        }
        same
    }

    /// Calls `f(host address, offset in the data, length)` for each page of the range.
    fn pieces(&self, phys: u64, len: usize, mut f: impl FnMut(usize, usize, usize)) -> bool {
        let Some(end) = phys.checked_add(len as u64) else {
            return false;
        };
        let mut page = phys & PAGE_MASK;
        while page < end {
            if self.host(page).is_none() {
                return false;
            }
            page += PAGE;
        }
        let mut at = phys;
        while at < end {
            let next = ((at & PAGE_MASK) + PAGE).min(end);
            if let Some(host) = self.host(at) {
                f(host, (at - phys) as usize, (next - at) as usize);
            }
            at = next;
        }
        true
    }
}
