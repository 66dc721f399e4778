//! Counters of expensive events, for tests and benchmarks. They are exact, and the same in each run of one
//! processor that counts instructions as time.

use crate::core::page::PAGE;

/// Counts since power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks of instructions that were decoded.
    pub blocks_decoded: u64,
    /// Look-ups of a block by its physical address, whether it was decoded before or not: the two fast ways
    /// did not know it.
    pub blocks_looked_up: u64,
    /// Stores to bytes that a block may have been decoded from.
    pub code_stores: u64,
    /// Pages of code to which stores passed without being watched, so that all processors' translations had
    /// to change.
    pub pages_watched: u64,
    /// Walks of the page tables.
    pub walks: u64,
    /// How often a program ran directly.
    pub direct_runs: u64,
}

/// Stores in a row to pages that held code and hold none now, by page: after enough of them the page is
/// watched no longer. Pages share counts, which only makes the decision a little early.
#[derive(Debug, Default)]
pub(crate) struct NonCodeStores([u8; 16]);

impl NonCodeStores {
    /// Stores after which watching does not pay. Watching again costs as much as some hundred watched stores.
    const ENOUGH: u8 = 128;

    /// Counts a store to the page of `phys`; returns whether that is enough.
    pub fn count(&mut self, phys: u64) -> bool {
        let count = &mut self.0[(phys / PAGE % 16) as usize];
        *count += 1;
        let enough = *count >= NonCodeStores::ENOUGH;
        if enough {
            *count = 0;
        }
        enough
    }
}
