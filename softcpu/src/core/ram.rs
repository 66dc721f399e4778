//! Guest RAM: host memory at guest-physical addresses, and for each page what code was decoded from it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::core::code_page::{CodePage, granules};
use crate::core::page::{PAGE, PAGE_MASK};
use crate::core::ram_access;

/// Memory at one range of guest-physical addresses.
struct Region {
    start: u64,
    len: u64,
    /// Exposed address of the host memory.
    host: usize,
    /// Where it begins in the file behind it, if there is one.
    file: Option<u64>,
    pages: Box<[CodePage]>,
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
    /// Where this memory begins in the file that is mapped there shared; `None` where it is another kind of
    /// memory. All regions have the same file.
    pub file: Option<u64>,
}

impl Ram {
    /// Describes guest RAM.
    ///
    /// # Safety
    /// Each `host..host + len` must stay mapped, readable and writable for as long as the `Ram` lives, be
    /// aligned to [`PAGE`], and nobody may hold a Rust reference into it: the guest writes whenever it likes.
    /// Other threads may access it by atomic or volatile accesses; see [`ram_access`].
    pub unsafe fn new(specs: &[RegionSpec]) -> Ram {
        let mut regions: Vec<Region> = specs
            .iter()
            .map(|spec| Region {
                start: spec.start,
                len: spec.len & PAGE_MASK,
                host: spec.host.expose_provenance(),
                file: spec.file,
                pages: CodePage::none(spec.len / PAGE),
            })
            .collect();
        // The region that is used most is found first.
        regions.sort_by_key(|region| std::cmp::Reverse(region.len));
        Ram { regions }
    }

    /// RAM of `len` bytes (whole pages) from address 0 on, which is never given back: for programs that have
    /// one machine and end with it. `None` where the host has no room.
    pub fn leaked(len: usize) -> Option<Ram> {
        let layout = Layout::from_size_align(len, PAGE as usize).ok()?;
        if len == 0 || !(len as u64).is_multiple_of(PAGE) {
            return None;
        }
        // SAFETY: the layout is not empty.
        let host = unsafe { alloc_zeroed(layout) };
        let region = RegionSpec {
            start: 0,
            len: len as u64,
            host,
            file: None,
        };
        // SAFETY: the memory is aligned, never freed, and nobody else has its address.
        (!host.is_null()).then(|| unsafe { Ram::new(&[region]) })
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

    /// Where the page at `phys` is in the file behind RAM.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn in_file(&self, phys: u64) -> Option<u64> {
        let (region, offset) = self.region(phys & PAGE_MASK)?;
        Some(region.file? + offset)
    }

    /// What is known of the code in the page at `phys`.
    #[inline]
    pub(crate) fn page(&self, phys: u64) -> Option<&CodePage> {
        self.region(phys)
            .map(|(region, offset)| &region.pages[(offset / PAGE) as usize])
    }

    /// An aligned 64-bit word, as page table walks need it.
    #[inline]
    pub(crate) fn word(&self, phys: u64) -> Option<&AtomicU64> {
        debug_assert!(phys.is_multiple_of(8));
        let host = self.host(phys)?;
        // SAFETY: `new` promises mapped memory without references into it; it is aligned, since regions start
        // at page boundaries on both sides.
        Some(unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(host)) })
    }

    /// An aligned 32-bit word, as walks of 32-bit page tables need it.
    #[inline]
    pub(crate) fn half_word(&self, phys: u64) -> Option<&AtomicU32> {
        debug_assert!(phys.is_multiple_of(4));
        let host = self.host(phys)?;
        // SAFETY: as in `word`.
        Some(unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(host)) })
    }

    /// Copies out of RAM; `false` and nothing done where a byte is missing.
    pub fn read(&self, phys: u64, data: &mut [u8]) -> bool {
        self.pieces(phys, data.len(), |host, from, len| {
            // SAFETY: `pieces` gives ranges inside a region, which `new` promises to be mapped.
            unsafe { ram_access::copy_out(host, &mut data[from..from + len]) };
        })
    }

    /// Copies into RAM; `false` and nothing done where a byte is missing.
    pub fn write(&self, phys: u64, data: &[u8]) -> bool {
        let done = self.pieces(phys, data.len(), |host, from, len| {
            // SAFETY: as in `read`.
            unsafe { ram_access::copy_in(host, &data[from..from + len]) };
        });
        fence(Ordering::SeqCst);
        let end = phys.saturating_add(data.len() as u64);
        let mut at = phys;
        while at < end {
            let next = ((at & PAGE_MASK).saturating_add(PAGE)).min(end);
            if let Some(page) = self.page(at) {
                page.stored(granules(at % PAGE, next - at));
            }
            at = next;
        }
        done
    }

    /// Whether the bytes at `phys`, all of one page, are these.
    pub(crate) fn equals(&self, phys: u64, bytes: &[u8]) -> bool {
        debug_assert!(phys % PAGE + bytes.len() as u64 <= PAGE);
        let Some(host) = self.host(phys) else {
            return false;
        };
        let mut chunk = [0; 64];
        bytes.chunks(chunk.len()).enumerate().all(|(n, wanted)| {
            let found = &mut chunk[..wanted.len()];
            // SAFETY: `host` is a mapped address, as `new` promises, and so is the rest of its page.
            unsafe { ram_access::copy_out(host + 64 * n, found) };
            found == wanted
        })
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
