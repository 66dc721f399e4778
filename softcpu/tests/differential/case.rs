//! What a case is made of, shared by both executions.
//!
//! Everything here is plain data of fixed size, since the native child receives it through shared memory.

/// Where the code page is; `int3` fills what the instructions leave.
pub const CODE: u64 = 0x1000_0000;
/// The one writable page; its neighbours are unmapped. The stack is in its middle.
pub const DATA: u64 = 0x2000_0000;
/// A page that can be read only, its neighbours unmapped.
pub const CONSTANTS: u64 = 0x2100_0000;
/// Where a case's first instruction is.
pub const START: u64 = CODE + 0x40;
/// Size of each of them.
pub const PAGE: usize = 4096;
/// The base of GS, so that segment overrides have somewhere to point.
pub const GS_BASE: u64 = DATA + 0x100;
/// Selectors of user mode as Linux sets them; softcpu gets the same.
pub const CS64: u16 = 0x33;
/// The 32-bit code segment.
pub const CS32: u16 = 0x23;
/// Stack and data segments.
pub const SS: u16 = 0x2b;
/// Longest code of a case.
pub const CODE_MAX: usize = 192;

/// The status flags, the direction flag and ID: what user code can change without consequences.
pub const FLAGS: u64 = 0x20_0cd5;

/// Registers before or after a case.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// x87, MXCSR and XMM registers in FXSAVE's 64-bit layout.
    pub fx: [u8; 512],
    /// Upper halves of the YMM registers; zero at the end where the host has none.
    pub upper: [u128; 16],
}

impl State {
    /// All zero.
    pub const ZERO: State = State {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        fx: [0; 512],
        upper: [0; 16],
    };

    /// The 16 bytes at `at` of the FXSAVE image.
    pub fn slot(&self, at: usize) -> u128 {
        u128::from_le_bytes(std::array::from_fn(|i| self.fx[at + i]))
    }

    /// Replaces 16 bytes of the FXSAVE image.
    pub fn set_slot(&mut self, at: usize, value: u128) {
        self.fx[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    /// XMM register `i`.
    pub fn xmm(&self, i: usize) -> u128 {
        self.slot(160 + 16 * i)
    }

    /// The 16-bit word at `at` of the FXSAVE image.
    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.fx[24 + i]))
    }
}

/// One run: code, registers and the seed of the memory's content.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Case {
    /// 64 or 32.
    pub bitness: u32,
    /// Bytes of code.
    pub length: u32,
    /// The instructions.
    pub code: [u8; CODE_MAX],
    /// What [`fill_memory`] starts from.
    pub memory_seed: u64,
    /// Registers at the start.
    pub state: State,
}

/// What a run left behind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The exception that ended it; 3 for the `int3` at the end. 255 where the run was cut short.
    pub vector: u32,
    /// Its error code.
    pub error: u32,
    /// The faulting address of a page fault.
    pub address: u64,
    /// Registers at the end; for `int3`, RIP is the instruction's own address.
    pub state: State,
    /// The data page.
    pub memory: [u8; PAGE],
}

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// An integer that is an edge more often than not.
    pub fn integer(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            !0,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            0x0123_4567_89ab_cdef,
        ];
        match self.below(4) {
            0 => self.pick(&EDGES),
            1 => self.next() >> self.below(64),
            2 => !(self.next() >> self.below(64)),
            _ => self.next(),
        }
    }

    /// A double that is an edge more often than not.
    pub fn double(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        let fraction = match self.below(4) {
            0 => 0,
            1 => 1 << self.below(52),
            2 => !0 >> 12,
            _ => self.next() >> 12,
        };
        let exponent = match self.below(8) {
            0 => 0,
            1 => 0x7ff,
            2 => 1 + self.below(3),
            3 => 0x7fc + self.below(3),
            4 => 0x380 + self.below(24),
            5 => 0x470 + self.below(24),
            _ => 0x3f0 + self.below(60),
        };
        sign | exponent << 52 | fraction
    }

    /// A single that is an edge more often than not.
    pub fn single(&mut self) -> u32 {
        let fraction = match self.below(4) {
            0 => 0,
            1 => 1 << self.below(23),
            2 => !0 >> 9,
            _ => self.next() as u32 >> 9,
        };
        let exponent = match self.below(6) {
            0 => 0,
            1 => 0xff,
            2 => 1 + self.below(3) as u32,
            3 => 0xfc + self.below(3) as u32,
            _ => 0x70 + self.below(40) as u32,
        };
        (self.next() as u32 & 1 << 31) | exponent << 23 | fraction
    }

    /// An 80-bit number in the low bits; rarely an unsupported encoding.
    pub fn extended(&mut self) -> u128 {
        let sign = (self.next() & 0x8000) as u16;
        let exponent = match self.below(10) {
            0 => 0,
            1 => 0x7fff,
            2 => 1 + self.below(3),
            3 => 0x7ffc + self.below(3),
            4 => 0x3c00 + self.below(8),
            5 => 0x3f80 + self.below(8),
            _ => 0x3ff0 + self.below(80),
        } as u16;
        let integer_bit = match (exponent, self.below(16)) {
            (_, 0) => self.below(2),
            (0, _) => 0,
            _ => 1,
        };
        let fraction = match self.below(5) {
            0 => 0,
            1 => 1 << self.below(63),
            2 => !0 >> 1,
            3 => (self.next() >> 1) & !0 << 40,
            _ => self.next() >> 1,
        };
        ((sign | exponent) as u128) << 64 | (integer_bit << 63 | fraction) as u128
    }

    /// Sixteen bytes for a vector register: integers, singles or doubles.
    pub fn vector(&mut self) -> u128 {
        let pair = |low: u64, high: u64| (high as u128) << 64 | low as u128;
        match self.below(4) {
            0 => pair(self.integer(), self.integer()),
            1 => pair(self.double(), self.double()),
            2 => {
                let mut two = || (self.single() as u64) << 32 | self.single() as u64;
                pair(two(), two())
            }
            _ => pair(self.next(), self.next()),
        }
    }
}

/// Fills a page with what both executions shall find there.
pub fn fill_memory(seed: u64, page: &mut [u8; PAGE]) {
    let mut random = Random(seed);
    for (i, slot) in page.chunks_exact_mut(16).enumerate() {
        // The kinds alternate in runs, so that operands of every type meet edges.
        let value = match (i >> 2) % 4 {
            0 => random.vector(),
            1 => random.extended(),
            2 => (random.double() as u128) << 64 | random.double() as u128,
            _ => (random.next() as u128) << 64 | random.next() as u128,
        };
        slot.copy_from_slice(&value.to_le_bytes());
    }
}
