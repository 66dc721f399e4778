//! Guest RAM in a file: as long as the RAM, region after region, with holes where pages hold nothing but
//! zeros.
//!
//! Which pages hold data is kept beside the file, so that nobody has to look for its holes and a copy of the
//! file may have lost them. A page that the guest has given back (balloon, free page reporting) reads as zeros
//! and is a hole like any other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::{GuestAddress, Memory, PAGE, Part, PartError};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes that are looked at and written in one go.
const CHUNK: u64 = 1 << 20;
/// Pages of zeros that two mapped pieces of the file are apart at least: between nearer ones the holes are
/// mapped, too, because each mapping costs a system call and memory of the host's kernel.
const GAP: u64 = 64;
/// Pages between two that are read ahead in one request.
const NEAR: u64 = 16;
/// Pieces that are mapped at most; a process has 65,530 mappings in all (Linux, `vm.max_map_count`). Where
/// there are more, nearer pieces become one.
const MAX_PIECES: usize = 4096;

/// A page of zeros.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Neighbouring pages of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Number of the first, in units of [`PAGE`] from where the RAM begins in the file.
    pub start: u64,
    /// How many.
    pub count: u64,
}

impl PageRun {
    fn end(self) -> Option<u64> {
        self.start.checked_add(self.count)
    }
}

/// Has the host read these pages of `file` into its page cache, in the background: before a guest goes on from
/// them, which would read them one after the other. Where it cannot, nothing is lost.
pub fn read_ahead(runs: &[PageRun], file: &Part) {
    for run in runs.iter().take(MAX_PIECES) {
        file.read_ahead(run.start.saturating_mul(PAGE), run.count.saturating_mul(PAGE));
    }
}

/// Runs of these pages, which are in order, with pages between them where that makes fewer runs: a device reads
/// a few pages more in the time that another request takes.
pub fn runs_of(pages: impl IntoIterator<Item = u64>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if page < last.start + last.count + NEAR => {
                last.count = last.count.max(page + 1 - last.start);
            }
            _ => runs.push(PageRun {
                start: page,
                count: 1,
            }),
        }
    }
    runs
}

/// Whether these are in order, apart from each other, not empty, and within `pages`.
pub fn are_valid(runs: &[PageRun], pages: u64) -> bool {
    let mut next = 0;
    runs.iter().all(|run| {
        let valid = run.count > 0 && run.start >= next && run.end().is_some_and(|end| end <= pages);
        next = run.start.saturating_add(run.count).saturating_add(1);
        valid
    })
}

/// Writes all of RAM that is not zero to `file` from byte `at` on, where it reads as zeros. Nobody writes to
/// RAM meanwhile. Returns the pages that were written.
///
/// # Errors
/// What the file's host says.
pub fn save(memory: &Memory, file: &File, at: u64) -> io::Result<Vec<PageRun>> {
    let mut runs = Vec::new();
    let mut chunk = vec![0; CHUNK as usize];
    let mut region_start = 0;
    for region in memory.iter() {
        let mut done = 0;
        while done < region.len() {
            let len = CHUNK.min(region.len() - done);
            let bytes = &mut chunk[..len as usize];
            region
                .read_slice(bytes, vm_memory::MemoryRegionAddress(done))
                .map_err(io::Error::other)?;
            save_chunk(bytes, (region_start + done) / PAGE, file, at, &mut runs)?;
            done += len;
        }
        region_start += region.len();
    }
    Ok(runs)
}

/// Writes the pages of `bytes`, the first of which has the number `first`.
fn save_chunk(bytes: &[u8], first: u64, file: &File, at: u64, runs: &mut Vec<PageRun>) -> io::Result<()> {
    let page = PAGE as usize;
    let pages = bytes.len() / page;
    // A comparison of memory, which costs a quarter of looking at bytes.
    let is_zero = |n: usize| bytes[n * page..(n + 1) * page] == ZEROS;
    let mut n = 0;
    while n < pages {
        if is_zero(n) {
            n += 1;
            continue;
        }
        let begin = n;
        while n < pages && !is_zero(n) {
            n += 1;
        }
        let run = PageRun {
            start: first + begin as u64,
            count: (n - begin) as u64,
        };
        file.write_all_at(&bytes[begin * page..n * page], at + run.start * PAGE)?;
        match runs.last_mut() {
            Some(last) if last.start + last.count == run.start => last.count += run.count,
            _ => runs.push(run),
        }
    }
    Ok(())
}

/// Puts the saved pages of `file`, which has the length of all RAM, into RAM that is zero; how is the part's
/// [`Placement`](super::Placement).
///
/// # Errors
/// When the file cannot be read or mapped.
pub fn restore(memory: &Memory, runs: &[PageRun], file: &Part) -> Result<(), PartError> {
    let mut region_start = 0;
    for region in memory.iter() {
        let (first, last) = (region_start / PAGE, (region_start + region.len()) / PAGE);
        for piece in pieces(runs, first, last) {
            let offset = piece.start * PAGE;
            let guest = GuestAddress(region.start_addr().0 + offset - region_start);
            file.slice(offset, piece.count * PAGE)?.place(memory, guest.0)?;
        }
        region_start += region.len();
    }
    Ok(())
}

/// The runs between two pages, with neighbours put together.
fn pieces(runs: &[PageRun], first: u64, last: u64) -> Vec<PageRun> {
    let inside = |run: &PageRun| {
        let start = run.start.max(first);
        let end = (run.start + run.count).min(last);
        (start < end).then(|| PageRun {
            start,
            count: end - start,
        })
    };
    let mut gap = GAP;
    loop {
        let mut pieces: Vec<PageRun> = Vec::new();
        for run in runs.iter().filter_map(inside) {
            match pieces.last_mut() {
                Some(last) if run.start - (last.start + last.count) < gap => {
                    last.count = run.start + run.count - last.start;
                }
                _ => pieces.push(run),
            }
        }
        if pieces.len() <= MAX_PIECES {
            return pieces;
        }
        gap *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Placement, allocate};
    use std::os::unix::fs::MetadataExt;

    const HIGH: u64 = 4 << 30;

    fn ram() -> Memory {
        allocate(&[(0, 2 << 20), (HIGH, 1 << 20)]).unwrap()
    }

    /// All of RAM.
    fn content(memory: &Memory) -> Vec<u8> {
        let mut all = vec![0; 3 << 20];
        memory.read_slice(&mut all[..2 << 20], GuestAddress(0)).unwrap();
        memory
            .read_slice(&mut all[2 << 20..], GuestAddress(HIGH))
            .unwrap();
        all
    }

    #[test]
    fn ram_is_the_same_after_either_way_back() {
        let memory = ram();
        for (value, at) in [
            (1u8, 0),
            (2, 8191),
            (3, 0x1_0000),
            (4, (2 << 20) - 1),
            (5, HIGH),
            (6, HIGH + 0xf_ffff),
        ] {
            memory.write_obj(value, GuestAddress(at)).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let at = 8192;
        let runs = save(&memory, file.as_file(), at).unwrap();
        let expected = [(0, 2), (16, 1), (511, 2), (767, 1)].map(|(start, count)| PageRun { start, count });
        assert_eq!(runs, expected);
        assert!(are_valid(&runs, 768));
        file.as_file().set_len(at + (3 << 20)).unwrap();
        // Seven pages at most, and what the file system needs to know where they are.
        assert!(file.as_file().metadata().unwrap().blocks() * 512 <= 64 << 10);
        let whole = Part::open(file.path()).unwrap();
        for placement in [Placement::Map, Placement::Copy] {
            let restored = ram();
            let part = whole.slice(at, 3 << 20).unwrap().placed_by(placement);
            restore(&restored, &runs, &part).unwrap();
            assert!(content(&restored) == content(&memory), "{placement:?}");
            // What the guest writes stays its own.
            restored.write_obj(9u8, GuestAddress(0)).unwrap();
            assert!(content(&restored) != content(&memory));
        }
        let again = ram();
        restore(&again, &runs, &whole.slice(at, 3 << 20).unwrap()).unwrap();
        assert!(content(&again) == content(&memory));
    }

    #[test]
    fn what_is_read_ahead_has_few_runs_and_all_pages() {
        let run = |start, count| PageRun { start, count };
        assert_eq!(runs_of([]), []);
        let runs = runs_of([3, 4, 4, 20, 37, 38, 100, u64::MAX >> 1]);
        assert_eq!(runs, [run(3, 18), run(37, 2), run(100, 1), run(u64::MAX >> 1, 1)]);
        assert!(are_valid(&runs, u64::MAX));
        // Beyond the file, and of a file that ends early, nothing happens.
        let file = tempfile::NamedTempFile::new().unwrap();
        read_ahead(&runs, &Part::open(file.path()).unwrap());
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let run = |start, count| PageRun { start, count };
        assert!(are_valid(&[], 0));
        assert!(are_valid(&[run(0, 1), run(2, 2)], 4));
        for bad in [
            &[run(0, 5)][..],
            &[run(0, 0)],
            &[run(0, 2), run(1, 1)],
            &[run(2, 1), run(0, 1)],
            // These are one run.
            &[run(0, 1), run(1, 1)],
            &[run(u64::MAX, 2)],
            &[run(1, u64::MAX)],
        ] {
            assert!(!are_valid(bad, 4), "{bad:?}");
        }
    }

    #[test]
    fn ram_that_is_full_of_holes_costs_few_mappings() {
        let runs: Vec<_> = (0..10_000)
            .map(|n| PageRun {
                start: n * 200,
                count: 1,
            })
            .collect();
        let pieces = pieces(&runs, 0, 2_000_000);
        assert!(pieces.len() <= MAX_PIECES);
        assert!(are_valid(&pieces, 2_000_000));
        let covered = |run: &PageRun| {
            pieces
                .iter()
                .any(|piece| piece.start <= run.start && run.start < piece.start + piece.count)
        };
        assert!(runs.iter().all(covered));
    }
}
