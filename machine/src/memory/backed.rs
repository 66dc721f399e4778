//! Guest RAM that is mapped from a file, and RAM that the guest gives back. A page that is given back reads as
//! zeros when it is touched again, wherever it came from: a page of a file would read as the file again, and a
//! snapshot would store it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use vm_memory::VolatileSlice;

use super::{advise_huge_pages, host_page};

/// Pieces of files in this process's guest RAM at most, each of which is a mapping; Linux allows 65,530 in all
/// (`vm.max_map_count`). Giving back the middle of one makes two of it. Beyond that number what is given back
/// reads as the file, which costs a snapshot space.
const MAX_PIECES: usize = 16_384;

/// The pieces: first address of this process, and the first behind. A leaf.
static PIECES: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn pieces() -> std::sync::MutexGuard<'static, BTreeMap<usize, usize>> {
    PIECES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that these bytes of RAM are mapped from a file.
pub(super) fn note(start: *const u8, len: usize) {
    let (start, end) = (start as usize, start as usize + len);
    let mut pieces = pieces();
    cut(&mut pieces, start, end);
    pieces.insert(start, end);
}

/// Notes that they are not, or not any more.
pub(super) fn forget(start: *const u8, len: usize) {
    cut(&mut pieces(), start as usize, start as usize + len);
}

/// Takes `start..end` out of the pieces; returns whether there was anything of it.
fn cut(pieces: &mut BTreeMap<usize, usize>, start: usize, end: usize) -> bool {
    let overlapping: Vec<_> = pieces
        .range(..end)
        .rev()
        .map(|(from, to)| (*from, *to))
        .take_while(|(_, to)| *to > start)
        .collect();
    for &(from, to) in &overlapping {
        pieces.remove(&from);
        if from < start {
            pieces.insert(from, start);
        }
        if end < to {
            pieces.insert(end, to);
        }
    }
    !overlapping.is_empty()
}

/// Gives the whole host pages of `slice`, which is guest RAM, back to the host.
///
/// # Errors
/// What the host says: it keeps the pages, and what is in them.
pub fn give_back(slice: &VolatileSlice<'_>) -> io::Result<()> {
    let page = host_page() as usize;
    let guard = slice.ptr_guard_mut();
    let skip = guard.as_ptr().align_offset(page);
    let len = guard.len().saturating_sub(skip) / page * page;
    if len == 0 {
        return Ok(());
    }
    let at = guard.as_ptr().wrapping_add(skip);
    let mut pieces = pieces();
    if pieces.len() < MAX_PIECES && cut(&mut pieces, at as usize, at as usize + len) {
        // SAFETY: the range is whole pages inside of `slice`, guest memory that stays mapped, readable and
        // writable throughout. Its content changes, as the guest has agreed to by offering it; nobody holds a
        // reference to it.
        let mapped = unsafe {
            libc::mmap(
                at.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        advise_huge_pages(at, len);
        return Ok(());
    }
    drop(pieces);
    // The first is for RAM in a file of its own, which other memory refuses.
    for advice in [libc::MADV_REMOVE, libc::MADV_DONTNEED] {
        // SAFETY: as above.
        if unsafe { libc::madvise(at.cast(), len, advice) } == 0 {
            return Ok(());
        }
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress, GuestMemoryBackend, allocate, part_of, saved};

    #[test]
    fn pieces_are_cut() {
        let cut_of = |pieces: &[(usize, usize)], start, end| {
            let mut map = pieces.iter().copied().collect();
            let any = cut(&mut map, start, end);
            (any, map.into_iter().collect::<Vec<_>>())
        };
        let two = [(10, 20), (30, 40)];
        assert_eq!(cut_of(&two, 20, 30), (false, two.to_vec()));
        assert_eq!(cut_of(&two, 12, 15), (true, vec![(10, 12), (15, 20), (30, 40)]));
        assert_eq!(cut_of(&two, 15, 35), (true, vec![(10, 15), (35, 40)]));
        assert_eq!(cut_of(&two, 0, 50), (true, vec![]));
    }

    #[test]
    fn what_is_given_back_is_zero_and_not_stored_though_it_came_from_a_file() {
        const LEN: u64 = 1 << 20;
        let (_file, part) = part_of(&[7; LEN as usize]);
        let memory = allocate(&[(0, 2 * LEN)]).unwrap();
        part.place(&memory, 0).unwrap();
        memory.write_obj(8u8, GuestAddress(LEN)).unwrap();
        assert_eq!(part.placed().0, LEN, "it is mapped");
        let give = |at: u64, len: usize| {
            let slice = GuestMemoryBackend::get_slice(&*memory, GuestAddress(at), len).unwrap();
            give_back(&slice).unwrap();
        };
        // Whole pages only.
        let page = host_page();
        give(4 * page, page as usize);
        give(8 * page + 1, 2 * page as usize);
        give(LEN, page as usize);
        let first = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        let read = [3, 4, 5, 8, 9, 10].map(|number| first(number * page));
        assert_eq!(read, [7, 0, 7, 7, 0, 7]);
        assert_eq!(first(LEN), 0, "no file's, either");
        let stored = saved::save(&memory, &tempfile::tempfile().unwrap(), 0).unwrap();
        let count: u64 = stored.iter().map(|run| run.count).sum();
        assert_eq!(count * crate::memory::PAGE, LEN - 2 * page);
        // RAM that is made where a file was is none.
        drop(memory);
        let again = allocate(&[(0, 2 * LEN)]).unwrap();
        let region = GuestMemoryBackend::get_slice(&*again, GuestAddress(0), 2 * LEN as usize).unwrap();
        let start = region.ptr_guard().as_ptr() as usize;
        assert!(!cut(&mut pieces(), start, start + 2 * LEN as usize));
    }
}
