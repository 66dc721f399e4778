//! Which blocks are in the volume file: one bit each, made where it is needed.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of one leaf: 128 MiB of 4 KiB blocks in one page of memory.
const LEAF: u64 = 32768;

type Leaf = Box<[AtomicU64; LEAF as usize / 64]>;

/// A set of block numbers. A leaf exists once a bit in it was set, so that the map of a large, empty volume
/// costs neither time nor memory.
#[derive(Debug)]
pub struct Map {
    leaves: Vec<OnceLock<Leaf>>,
}

impl Map {
    /// An empty set of numbers below `blocks`.
    pub fn new(blocks: u64) -> Self {
        let leaves = usize::try_from(blocks.div_ceil(LEAF)).unwrap_or(usize::MAX);
        Map {
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Whether `block` is in the set.
    pub fn contains(&self, block: u64) -> bool {
        let (leaf, word, bit) = place(block);
        let leaf = self.leaves.get(leaf).and_then(OnceLock::get);
        leaf.is_some_and(|leaf| leaf[word].load(Ordering::Acquire) & bit != 0)
    }

    /// Whether all of `blocks` are in the set.
    pub fn contains_all(&self, mut blocks: Range<u64>) -> bool {
        blocks.all(|block| self.contains(block))
    }

    /// Adds `blocks`.
    pub fn insert(&self, blocks: Range<u64>) {
        for block in blocks {
            let (leaf, word, bit) = place(block);
            if let Some(leaf) = self.leaves.get(leaf) {
                let leaf = leaf.get_or_init(|| Box::new([const { AtomicU64::new(0) }; LEAF as usize / 64]));
                leaf[word].fetch_or(bit, Ordering::Release);
            }
        }
    }

    /// Removes `blocks`.
    pub fn remove(&self, blocks: Range<u64>) {
        for block in blocks {
            let (leaf, word, bit) = place(block);
            if let Some(leaf) = self.leaves.get(leaf).and_then(OnceLock::get) {
                leaf[word].fetch_and(!bit, Ordering::Release);
            }
        }
    }

    /// The end of the run of blocks from `start` on that are all in the set or all not, `end` at most.
    pub fn run_end(&self, start: u64, end: u64) -> u64 {
        let first = self.contains(start);
        (start + 1..end)
            .find(|&block| self.contains(block) != first)
            .unwrap_or(end)
    }
}

/// Leaf, word and bit of a block.
fn place(block: u64) -> (usize, usize, u64) {
    (
        (block / LEAF) as usize,
        (block % LEAF / 64) as usize,
        1 << (block % 64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_state_changes() {
        let map = Map::new(3 * LEAF);
        map.insert(LEAF - 2..LEAF + 3);
        assert!(!map.contains(LEAF - 3) && map.contains(LEAF) && !map.contains(LEAF + 3));
        assert_eq!(map.run_end(0, 3 * LEAF), LEAF - 2);
        assert_eq!(map.run_end(LEAF - 2, 3 * LEAF), LEAF + 3);
        map.remove(LEAF..LEAF + 1);
        assert!(!map.contains_all(LEAF - 2..LEAF + 3));
        assert_eq!(map.run_end(LEAF - 2, LEAF + 3), LEAF);
        assert_eq!(map.run_end(5, 6), 6);
        assert!(!map.contains(1 << 40));
    }
}
