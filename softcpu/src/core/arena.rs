//! Memory that is given out from front to back and taken back all at once. Much smaller pieces than pages come
//! and go with what a guest executes: here they lie side by side, cost no search for room, and their pages go
//! back to the host.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes that are mapped at once. The host gives memory for those that are used.
const CHUNK: usize = 32 << 20;
/// What every piece is aligned to.
const ALIGN: usize = 16;

/// Bytes that are mapped, until this is dropped.
struct Chunk(NonNull<u8>);

impl Chunk {
    fn new() -> Chunk {
        let (rights, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), CHUNK, rights, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            handle_alloc_error(Layout::new::<[u8; CHUNK]>());
        }
        // SAFETY: advice about the size of pages changes no content, and the range is the mapping. A cache of
        // some hundred blocks is not to take a page of 2 MiB.
        unsafe { libc::madvise(start, CHUNK, libc::MADV_NOHUGEPAGE) };
        match NonNull::new(start.cast()) {
            Some(start) => Chunk(start),
            None => handle_alloc_error(Layout::new::<[u8; CHUNK]>()),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped it, and nothing of it is used any more (`Arena::clear`).
        unsafe { libc::munmap(self.0.as_ptr().cast(), CHUNK) };
    }
}

// SAFETY: plain memory, owned like a box.
unsafe impl Send for Chunk {}

/// All pieces of one owner.
#[derive(Default)]
pub(crate) struct Arena {
    /// The last one has room.
    chunks: Vec<Chunk>,
    /// Bytes of the last one that are used.
    used: usize,
}

impl Arena {
    /// Bytes that were given out since all was taken back, and what was left of chunks.
    pub fn len(&self) -> usize {
        self.chunks.len().saturating_sub(1) * CHUNK + self.used
    }

    /// A copy of `values`, until [`clear`](Arena::clear). Nothing of it is dropped then.
    pub fn copy<T: Copy>(&mut self, values: &[T]) -> NonNull<T> {
        let place = self.place(Layout::for_value(values)).cast();
        // SAFETY: `place` is for as many values, new and so apart from them.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place.as_ptr(), values.len()) };
        place
    }

    /// Moves `value` here, until [`clear`](Arena::clear). It is not dropped then.
    pub fn put<T>(&mut self, value: T) -> NonNull<T> {
        let place = self.place(Layout::new::<T>()).cast();
        // SAFETY: `place` is for such a value and holds none.
        unsafe { place.write(value) };
        place
    }

    /// Room that is nobody's.
    fn place(&mut self, layout: Layout) -> NonNull<u8> {
        assert!(layout.align() <= ALIGN && layout.size() <= CHUNK);
        let size = layout.size().next_multiple_of(ALIGN);
        if self.chunks.is_empty() || self.used + size > CHUNK {
            self.chunks.push(Chunk::new());
            self.used = 0;
        }
        let at = self.used;
        self.used += size;
        match self.chunks.last() {
            // SAFETY: the chunk has room for `size` bytes from there on, as was just checked.
            Some(chunk) => unsafe { chunk.0.add(at) },
            None => unreachable!(),
        }
    }

    /// Takes everything back. Nobody uses a piece any more.
    pub fn clear(&mut self) {
        let Arena { chunks, used } = self;
        chunks.clear();
        *used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_apart_from_each_other_and_hold_what_was_put() {
        let mut arena = Arena::default();
        for _ in 0..2 {
            assert_eq!(arena.len(), 0);
            let mut pieces: Vec<(NonNull<u64>, u64)> = Vec::new();
            // More than a chunk has.
            for number in 0..600 {
                pieces.push((arena.copy(&[number; 8000]), number));
                let one = arena.put(number as u8);
                assert_eq!(one.as_ptr() as usize % ALIGN, 0);
            }
            assert!(arena.len() > CHUNK && arena.chunks.len() == 2);
            for (piece, number) in pieces {
                // SAFETY: as many values were copied there, and nothing was taken back.
                let piece = unsafe { NonNull::slice_from_raw_parts(piece, 8000).as_ref() };
                assert!(piece.iter().all(|value| *value == number));
            }
            let none: NonNull<u32> = arena.copy(&[]);
            assert_eq!(none.as_ptr() as usize % ALIGN, 0);
            arena.clear();
        }
    }
}
