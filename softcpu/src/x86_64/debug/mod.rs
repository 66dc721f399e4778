//! Debug registers: breakpoints on instructions, on data and on ports, and the trap after each instruction
//! that TF asks for (Intel SDM vol. 3, chapter 18).
//!
//! A breakpoint slows down only accesses to its page. A page with a data breakpoint stays out of the TLB,
//! so every access to it takes the slow path and is checked here. An instruction that hits runs again,
//! alone; the trap follows it. Accesses of the processor's own (descriptor tables, task state, interrupt
//! frames) are not watched.

mod processor;

use crate::core::page::PAGE_MASK;

/// Bits of DR6.
mod dr6 {
    /// The breakpoints that were hit.
    pub const HITS: u64 = 0xf;
    /// A debug register was accessed under general detect.
    pub const BD: u64 = 1 << 13;
    /// A single step.
    pub const BS: u64 = 1 << 14;
    /// What software can change; BT is one of them.
    pub const WRITABLE: u64 = HITS | BD | BS | 1 << 15;
    /// What reads as one.
    pub const FIXED: u64 = 0xffff_0ff0;
}

/// Bits of DR7.
mod dr7 {
    /// General detect.
    pub const GD: u64 = 1 << 13;
    /// What software can change.
    pub const WRITABLE: u64 = 0xffff_23ff;
    /// What reads as one.
    pub const FIXED: u64 = 1 << 10;
}

/// Kinds of breakpoints, as DR7 has them.
mod kind {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const PORT: u64 = 2;
}

/// Branch trap flag of IA32_DEBUGCTL: TF traps after branches only.
const BTF: u64 = 1 << 1;

/// The debug registers and what follows from them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Debug {
    addresses: [u64; 4],
    dr6: u64,
    dr7: u64,
    /// IA32_DEBUGCTL.
    control: u64,
    /// Breakpoints on instructions, one bit each. This and the next two follow from `dr7`.
    #[serde(skip)]
    code: u8,
    /// Breakpoints that a write hits, and those that a read hits.
    #[serde(skip)]
    data: [u8; 2],
    /// Breakpoints on ports.
    #[serde(skip)]
    ports: u8,
    /// Bits of DR6 for the trap that comes before the next instruction.
    pending: u64,
    /// The instruction has cleared TF on its way into a handler, so that it is not followed by a trap.
    entered: bool,
}

impl Debug {
    /// As after reset.
    pub fn new() -> Debug {
        Debug {
            addresses: [0; 4],
            dr6: 0,
            dr7: 0,
            control: 0,
            code: 0,
            data: [0; 2],
            ports: 0,
            pending: 0,
            entered: false,
        }
    }

    /// Whether all of it can have come about by instructions.
    pub fn is_valid(&self) -> bool {
        let Debug {
            addresses: _,
            dr6,
            dr7,
            control,
            code: _,
            data: _,
            ports: _,
            pending,
            entered: _,
        } = self;
        let reset = Debug::new();
        let dr6_bits = dr6::WRITABLE | dr6::FIXED | reset.dr6;
        let dr7_bits = dr7::WRITABLE | dr7::FIXED | reset.dr7;
        dr6 & !dr6_bits == 0 && dr7 & !dr7_bits == 0 && control & !BTF == 0 && pending & !dr6::WRITABLE == 0
    }

    /// Whether the loop has to look for instructions with a breakpoint.
    #[inline(always)]
    pub fn watches_code(&self) -> bool {
        self.code != 0
    }

    /// Whether any data or port is watched.
    #[inline(always)]
    pub fn watches_accesses(&self) -> bool {
        self.data[0] | self.ports != 0
    }

    /// Whether a trap waits.
    pub fn is_pending(&self) -> bool {
        self.pending != 0
    }

    /// An instruction has entered a handler that runs without TF.
    pub fn enter(&mut self) {
        self.entered = true;
    }

    /// IA32_DEBUGCTL.
    pub fn control(&self) -> u64 {
        self.control
    }

    /// Sets IA32_DEBUGCTL; `false` where the value has a bit that this processor does not.
    pub fn set_control(&mut self, value: u64) -> bool {
        let known = value & !BTF == 0;
        if known {
            self.control = value;
        }
        known
    }

    /// Sorts the enabled breakpoints by kind. Without CR4.DE there are none on ports.
    fn sort(&mut self, extended: bool) {
        (self.code, self.data, self.ports) = (0, [0; 2], 0);
        for n in 0..4 {
            if self.dr7 >> (2 * n) & 3 == 0 {
                continue;
            }
            match self.dr7 >> (16 + 4 * n) & 3 {
                kind::EXECUTE => self.code |= 1 << n,
                kind::WRITE => self.data[0] |= 1 << n,
                kind::PORT if extended => self.ports |= 1 << n,
                kind::PORT => {}
                _ => self.data.iter_mut().for_each(|set| *set |= 1 << n),
            }
        }
    }

    /// First byte and length of what breakpoint `n` is about. Its address is aligned to its length.
    fn range(&self, n: usize) -> (u64, u64) {
        let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
        (self.addresses[n] & !(len - 1), len)
    }

    /// Which breakpoints of a set overlap `size` bytes at `at`.
    fn overlapping(&self, set: u8, at: u64, size: u64) -> u64 {
        (0..4)
            .filter(|n| set >> n & 1 != 0)
            .filter(|n| {
                let (start, len) = self.range(*n);
                start.wrapping_sub(at) < size || at.wrapping_sub(start) < len
            })
            .fold(0, |hits, n| hits | 1 << n)
    }

    /// Which breakpoints on instructions lie in `size` bytes from `at` on.
    fn in_code(&self, at: u64, size: u64) -> u64 {
        (0..4)
            .filter(|n| self.code >> n & 1 != 0 && self.addresses[*n].wrapping_sub(at) < size)
            .fold(0, |hits, n| hits | 1 << n)
    }

    /// Whether the page of `addr` has data that is watched.
    pub fn watches_page(&self, addr: u64) -> bool {
        self.data[0] != 0 && self.overlapping(self.data[0], addr & PAGE_MASK, !PAGE_MASK + 1) != 0
    }

    /// Notes why a debug exception is raised: bits of earlier breakpoints go, all others stay until software
    /// clears them.
    fn note(&mut self, why: u64) {
        self.dr6 = self.dr6 & !dr6::HITS | why;
        self.dr7 &= !dr7::GD;
        self.control &= !BTF;
    }
}
