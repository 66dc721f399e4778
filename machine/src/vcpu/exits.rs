//! Counts exits by kind and address, always: one hash, one compare and one store each, no lock and no
//! allocation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::accel::Exit;

/// Different (kind, address) pairs that one vCPU's table distinguishes. A boot makes about forty; the guest
/// can make any number, and those that find no slot are counted together.
const SLOTS: usize = 256;
/// Slots looked at before an exit goes to the common counter.
const PROBES: usize = 8;

/// What kind of exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Port input.
    PortIn = 1,
    /// Port output.
    PortOut = 2,
    /// Load from a device's address.
    MmioRead = 3,
    /// Store to a device's address.
    MmioWrite = 4,
    /// Power-off or reset asked for without a device register.
    System = 5,
    /// All that found no slot in the table.
    Other = 6,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::PortIn,
        Kind::PortOut,
        Kind::MmioRead,
        Kind::MmioWrite,
        Kind::System,
        Kind::Other,
    ];

    /// A short word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::PortIn => "in",
            Kind::PortOut => "out",
            Kind::MmioRead => "read",
            Kind::MmioWrite => "write",
            Kind::System => "system",
            Kind::Other => "other",
        }
    }
}

/// How often one kind of exit happened at one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitCount {
    /// Its kind.
    pub kind: Kind,
    /// Port or guest-physical address; 0 for kinds without.
    pub addr: u64,
    /// Number of exits.
    pub count: u64,
}

#[derive(Default)]
struct Slot {
    /// Kind in the top byte, address below; 0 is a free slot.
    key: AtomicU64,
    count: AtomicU64,
}

/// The counters of one vCPU. Only its thread counts; any thread may read, and sees each counter at some
/// recent moment.
pub struct ExitTable {
    slots: [Slot; SLOTS],
    other: AtomicU64,
}

impl Default for ExitTable {
    fn default() -> Self {
        ExitTable {
            slots: std::array::from_fn(|_| Slot::default()),
            other: AtomicU64::new(0),
        }
    }
}

impl ExitTable {
    /// Counts `exit`.
    pub fn count(&self, exit: &Exit<'_>) {
        let (kind, addr) = match *exit {
            Exit::PortIn { port, .. } => (Kind::PortIn, port.into()),
            Exit::PortOut { port, .. } => (Kind::PortOut, port.into()),
            Exit::MmioRead { addr, .. } => (Kind::MmioRead, addr),
            Exit::MmioWrite { addr, .. } => (Kind::MmioWrite, addr),
            Exit::System(_) => (Kind::System, 0),
            // The guest did nothing.
            Exit::Poll => return,
        };
        increment(self.slot(key(kind, addr)));
    }

    /// The counter for `key`: its own, a free one that it takes, or the common one.
    fn slot(&self, key: u64) -> &AtomicU64 {
        // Fibonacci hashing: the top bits of the product depend on all bits of the key.
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize;
        for slot in (first..first + PROBES).map(|n| &self.slots[n % SLOTS]) {
            match slot.key.load(Relaxed) {
                found if found == key => return &slot.count,
                0 => {
                    slot.key.store(key, Relaxed);
                    return &slot.count;
                }
                _ => {}
            }
        }
        &self.other
    }

    fn counts(&self) -> impl Iterator<Item = ExitCount> {
        let named = self.slots.iter().filter_map(|slot| {
            let (kind, addr) = split(slot.key.load(Relaxed))?;
            Some(ExitCount {
                kind,
                addr,
                count: slot.count.load(Relaxed),
            })
        });
        named.chain(std::iter::once(ExitCount {
            kind: Kind::Other,
            addr: 0,
            count: self.other.load(Relaxed),
        }))
    }
}

/// There is one writer, so that reading, adding and storing lose nothing and need no locked instruction.
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed) + 1, Relaxed);
}

fn key(kind: Kind, addr: u64) -> u64 {
    (kind as u64) << 56 | addr & (u64::MAX >> 8)
}

fn split(key: u64) -> Option<(Kind, u64)> {
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u64 == key >> 56)?;
    Some((kind, key & (u64::MAX >> 8)))
}

/// The sum over all vCPUs, most frequent first.
pub fn totals<'a>(tables: impl IntoIterator<Item = &'a ExitTable>) -> Vec<ExitCount> {
    let mut sums = BTreeMap::new();
    for exit in tables.into_iter().flat_map(ExitTable::counts) {
        *sums.entry((exit.kind, exit.addr)).or_insert(0) += exit.count;
    }
    let mut totals: Vec<_> = sums
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .map(|((kind, addr), count)| ExitCount { kind, addr, count })
        .collect();
    totals.sort_by_key(|exit| std::cmp::Reverse(exit.count));
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(table: &ExitTable, port: u16) {
        table.count(&Exit::PortOut { port, data: &[0] });
    }

    #[test]
    fn exits_are_counted_by_kind_and_address_over_all_processors() {
        let tables = [ExitTable::default(), ExitTable::default()];
        for table in &tables {
            out(table, 0x3f8);
            out(table, 0x3f8);
            table.count(&Exit::PortIn {
                port: 0x3f8,
                data: &mut [0],
            });
        }
        tables[1].count(&Exit::MmioRead {
            addr: 0xc000_1000,
            data: &mut [0; 4],
        });
        let expected = [
            (Kind::PortOut, 0x3f8, 4),
            (Kind::PortIn, 0x3f8, 2),
            (Kind::MmioRead, 0xc000_1000, 1),
        ];
        let seen: Vec<_> = totals(&tables)
            .iter()
            .map(|e| (e.kind, e.addr, e.count))
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_guest_that_touches_everything_fills_the_table_and_no_more() {
        let table = ExitTable::default();
        for port in 0..=u16::MAX {
            out(&table, port);
        }
        let totals = totals([&table]);
        assert!(totals.len() <= SLOTS + 1);
        assert_eq!(totals.iter().map(|exit| exit.count).sum::<u64>(), 65536);
        assert_eq!(totals[0].kind, Kind::Other);
    }
}
