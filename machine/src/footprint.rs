//! The process's own memory: pages that only the launch has needed are returned to the host.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Unmaps the pages of the program's code and constants, and gives back what is free on the heap. Pages that
/// are used again come back from the page cache, sixteen at a time; what only the launch has used (the
/// command line, the image's manifest, loaders, tables) stays away. Where the host does not let us, nothing
/// is lost.
pub fn give_back() {
    for range in constant_ranges() {
        // SAFETY: the range is of a segment of this program that nothing writes, or has written when it was
        // loaded: its pages are the file's, and read the same when they come back.
        unsafe { libc::madvise(range.start as *mut c_void, range.len(), libc::MADV_DONTNEED) };
    }
    // SAFETY: the allocator locks its heap; only pages that nobody has are given back.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whole pages of the program's segments that are never written (`PT_LOAD` without `PF_W`; System V ABI,
/// chapter 5).
fn constant_ranges() -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    // SAFETY: the callback gets `ranges` and nobody else uses it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut ranges).cast()) };
    ranges
}

/// Called for each object of the process, the program first; takes that one and ends.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: usize, ranges: *mut c_void) -> c_int {
    const PAGE: usize = crate::memory::PAGE as usize;
    // SAFETY: the C library passes a description that lives until this returns, and what `constant_ranges`
    // passed on.
    let (info, ranges) = unsafe { (&*info, &mut *ranges.cast::<Vec<Range<usize>>>()) };
    // SAFETY: as many headers as the description says, which stay where they are.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let constant = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        // The last page of a segment may hold the first bytes of the next one, which may be written.
        let (first, end) = (
            start.next_multiple_of(PAGE),
            (start + header.p_memsz as usize) / PAGE * PAGE,
        );
        if constant && first < end {
            ranges.push(first..end);
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_are_found_and_read_the_same_afterwards() {
        static CONSTANT: [u8; 3 * 4096] = [0x5a; 3 * 4096];
        static mut VARIABLE: [u8; 3 * 4096] = [1; 3 * 4096];
        let ranges = constant_ranges();
        let holds = |address: usize| ranges.iter().any(|range| range.contains(&address));
        assert!(holds(give_back as *const () as usize), "{ranges:x?}");
        assert!(holds(CONSTANT.as_ptr() as usize + 4096), "{ranges:x?}");
        assert!(!holds((&raw const VARIABLE) as usize + 4096), "{ranges:x?}");
        let kept = vec![7_u8; 100_000];
        give_back();
        assert!(std::hint::black_box(&CONSTANT).iter().all(|&byte| byte == 0x5a));
        assert!(kept.iter().all(|&byte| byte == 7));
    }
}
