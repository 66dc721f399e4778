//! What happened to a processor's translations, for those who keep copies of them.

// Only direct execution keeps copies.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

/// Pages that are listed one by one; where more are dropped, all are.
const MOST: usize = 64;

/// Changes of the translations that programs have.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// How often all of them, but for global ones, were dropped.
    pub flushes: u64,
    /// Pages that were dropped since, one by one.
    pub dropped: Vec<u64>,
    /// Addresses that were translated lately.
    pub found: Vec<u64>,
    /// How often pages of code began to be watched.
    pub watches: u64,
}

impl Changes {
    /// All were dropped, but perhaps for global ones.
    pub fn flush(&mut self) {
        self.flushes += 1;
        self.dropped.clear();
        self.found.clear();
    }

    /// The page of `addr` was dropped.
    pub fn drop_page(&mut self, addr: u64) {
        if self.dropped.len() == MOST {
            self.flush();
        } else {
            self.dropped.push(addr);
        }
    }

    /// A translation of `addr` was found.
    pub fn find(&mut self, addr: u64) {
        if self.found.len() < MOST {
            self.found.push(addr);
        }
    }
}
