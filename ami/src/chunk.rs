//! Digests of a part, one for each 1 MiB, so that content can be verified when it is first touched.
//!
//! BLAKE3 is a tree: the digests of the chunks are its inner nodes at 1 MiB, and merging them gives the
//! digest of the whole part, the same that `b3sum` prints. So the table needs no digest of its own: it is
//! right exactly when it merges to the part's digest. (A part of at most one chunk has that digest as its
//! only entry.)

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::Digest;

/// Bytes that one entry of the table covers. A power of two, as a subtree of BLAKE3 must be.
pub const CHUNK_SIZE: u64 = 1 << 20;
/// Bytes that [`ChunkTable::verify_from`] reads at a time: some dozens of BLAKE3's blocks, so that they are
/// digested side by side, and no more than the nearest caches hold.
const PIECE: usize = 64 << 10;

/// The digests of all chunks of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkTable {
    length: u64,
    entries: Vec<ChainingValue>,
}

impl ChunkTable {
    /// How many chunks a part of this many bytes has.
    pub fn count_for(length: u64) -> u64 {
        length.div_ceil(CHUNK_SIZE)
    }

    /// Digest a range of a file. Chunks are spread over the machine's processors; `progress` is called with
    /// the number of bytes done.
    pub fn compute(
        file: &File,
        offset: u64,
        length: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> io::Result<Self> {
        let count = Self::count_for(length) as usize;
        let mut entries = vec![[0; 32]; count];
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8)
            .min(count.max(1));
        let next = AtomicU64::new(0);
        // Each worker takes the next chunk and returns what it did; order does not matter, so nothing is
        // locked.
        let results: Vec<io::Result<Vec<(usize, ChainingValue)>>> = std::thread::scope(|scope| {
            let work = || -> io::Result<Vec<(usize, ChainingValue)>> {
                let mut buffer = vec![0; CHUNK_SIZE as usize];
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let start = index * CHUNK_SIZE;
                    if start >= length {
                        return Ok(done);
                    }
                    let bytes = &mut buffer[..CHUNK_SIZE.min(length - start) as usize];
                    file.read_exact_at(bytes, offset + start)?;
                    done.push((index as usize, digest(index, bytes, count == 1)));
                    progress(bytes.len() as u64);
                }
            };
            let handles: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            for handle in handles {
                results.push(
                    handle
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("a digest worker died"))),
                );
            }
            results
        });
        for result in results {
            for (index, value) in result? {
                entries[index] = value;
            }
        }
        Ok(Self { length, entries })
    }

    /// The table from its bytes in the file; nothing when they are not `32 × chunks` bytes.
    pub fn from_bytes(length: u64, bytes: &[u8]) -> Option<Self> {
        let (entries, rest) = bytes.as_chunks::<32>();
        (rest.is_empty() && entries.len() as u64 == Self::count_for(length)).then(|| Self {
            length,
            entries: entries.to_vec(),
        })
    }

    /// The table as it stands in the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.entries.concat()
    }

    /// How many chunks there are.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// True for an empty part.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True when `bytes` are the content of chunk `index`: [`CHUNK_SIZE`] bytes, fewer only in the last
    /// chunk.
    pub fn verify(&self, index: u64, mut bytes: &[u8]) -> bool {
        // Reading from memory does not fail.
        self.verify_from(index, &mut bytes).unwrap_or(false)
    }

    /// True when all that `from` gives is the content of chunk `index`. Little of it is held at a time.
    pub fn verify_from(&self, index: u64, from: &mut dyn Read) -> io::Result<bool> {
        let Some(entry) = usize::try_from(index).ok().and_then(|i| self.entries.get(i)) else {
            return Ok(false);
        };
        let mut left = CHUNK_SIZE.min(self.length - index * CHUNK_SIZE);
        let mut digest = ChunkDigest::new(index, self.entries.len() == 1);
        let mut piece = [0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return Ok(left == 0 && digest.finish() == *entry),
                Ok(count) if count as u64 > left => return Ok(false),
                Ok(count) => {
                    digest.update(&piece[..count]);
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The digest of the whole part.
    pub fn root(&self) -> Digest {
        match &self.entries[..] {
            [] => Digest::of(b""),
            [only] => Digest(*only),
            entries => {
                let (left, right) = split(entries, self.length);
                Digest(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
            }
        }
    }
}

/// The chaining values of the two halves of a tree over at least two chunks.
fn split(entries: &[ChainingValue], length: u64) -> (ChainingValue, ChainingValue) {
    let left_length = left_subtree_len(length);
    let (left, right) = entries.split_at((left_length / CHUNK_SIZE) as usize);
    (merge(left, left_length), merge(right, length - left_length))
}

/// Depth is the logarithm of the number of chunks: at most 20.
fn merge(entries: &[ChainingValue], length: u64) -> ChainingValue {
    match entries {
        [only] => *only,
        entries => {
            let (left, right) = split(entries, length);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

/// The digest of a chunk, from its bytes in order.
struct ChunkDigest {
    hasher: blake3::Hasher,
    /// The chunk is the whole part: its digest is the tree's root.
    only: bool,
}

impl ChunkDigest {
    fn new(index: u64, only: bool) -> ChunkDigest {
        let mut hasher = blake3::Hasher::new();
        if !only {
            hasher.set_input_offset(index * CHUNK_SIZE);
        }
        ChunkDigest { hasher, only }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn finish(self) -> ChainingValue {
        if self.only {
            *self.hasher.finalize().as_bytes()
        } else {
            self.hasher.finalize_non_root()
        }
    }
}

fn digest(index: u64, bytes: &[u8], only: bool) -> ChainingValue {
    let mut digest = ChunkDigest::new(index, only);
    digest.update(bytes);
    digest.finish()
}

/// The digest of a range of a file, computed on all processors.
pub fn digest_file(file: &File, offset: u64, length: u64) -> io::Result<Digest> {
    Ok(ChunkTable::compute(file, offset, length, &|_| {})?.root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn table(bytes: &[u8]) -> ChunkTable {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        ChunkTable::compute(&file, 0, bytes.len() as u64, &|_| {}).unwrap()
    }

    #[test]
    fn the_merged_table_is_the_plain_digest() {
        let content: Vec<u8> = (0..7 * CHUNK_SIZE as usize + 123)
            .map(|i| (i * 31 / 7) as u8)
            .collect();
        for length in [
            0,
            1,
            1023,
            1 << 20,
            (1 << 20) + 1,
            2 << 20,
            3 << 20,
            (3 << 20) + 1,
            5 << 20,
            content.len(),
        ] {
            let table = table(&content[..length]);
            assert_eq!(table.root(), Digest::of(&content[..length]), "{length} bytes");
            assert_eq!(
                ChunkTable::from_bytes(length as u64, &table.to_bytes()),
                Some(table)
            );
        }
    }

    #[test]
    fn a_chunk_verifies_only_as_itself() {
        let content: Vec<u8> = (0..3 * CHUNK_SIZE as usize + 9)
            .map(|i| (i % 251) as u8)
            .collect();
        let table = table(&content);
        let chunks: Vec<&[u8]> = content.chunks(CHUNK_SIZE as usize).collect();
        for (i, chunk) in chunks.iter().enumerate() {
            assert!(table.verify(i as u64, chunk));
            assert!(!table.verify(i as u64 + 1, chunk));
            let mut flipped = chunk.to_vec();
            flipped[chunk.len() / 2] ^= 1;
            assert!(!table.verify(i as u64, &flipped));
        }
        assert!(!table.verify(3, &chunks[3][..8]));
        assert!(!table.verify(u64::MAX, b""));
    }
}
