//! A decoded instruction as plain data, and what its handler may return.

/// Executes one operation, by itself. `C` is the processor, which is above this layer.
pub type Handler<C> = fn(&mut C, &Operation<C>) -> Flow;

/// Executes an operation and then, if that went well, those that follow it in its block. Where it does not
/// answer [`Stop::Branch`], the processor remembers which operation stopped.
///
/// # Safety
/// The pointer is to an operation of a block that is alive; the last operation of a block never returns `Ok`.
pub type Chained<C> = unsafe fn(&mut C, *const Operation<C>) -> Flow;

/// `Ok` goes on with the next operation of the block.
pub type Flow = Result<(), Stop>;

/// Why the operations of a block do not go on with the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// The block is complete and the instruction pointer says where to go on.
    Branch,
    /// The instruction raised the exception that the processor holds. It has changed nothing that shows.
    Fault,
    /// The instruction must run again, alone and freshly decoded: it wants to change its own page.
    Replay,
    /// A repeated string instruction has stopped between two iterations to look for interrupts.
    Again,
}

/// Bits of [`Operation::flags`].
pub mod op_flag {
    /// One operand is memory.
    pub const MEM: u8 = 1 << 0;
    /// The first operand is the memory operand.
    pub const MEM_FIRST: u8 = 1 << 1;
    /// Effective addresses have 32 bits.
    pub const ADDR32: u8 = 1 << 2;
    /// Effective addresses have 16 bits.
    pub const ADDR16: u8 = 1 << 3;
    /// The LOCK prefix.
    pub const LOCK: u8 = 1 << 4;
    /// REP or REPE.
    pub const REP: u8 = 1 << 5;
    /// REPNE.
    pub const REPNE: u8 = 1 << 6;
}

/// Number in [`Operation::base`] and [`Operation::index`] of the register that is always zero.
pub const REG_ZERO: u8 = 16;
/// Number of the pseudo register that holds the block's first instruction pointer.
pub const REG_BLOCK: u8 = 17;
/// Number in [`Operation::seg`] of the segment whose base is always zero.
pub const SEG_FLAT: u8 = 6;

/// One operation: 32 bytes, two to a cache line.
///
/// Registers are numbers: 0..16 for general ones, but the *byte offset* in the register file for 8-bit
/// operands (so that AH is 1 and BL is 24), 0..16 for XMM, 0..8 for MMX and x87, 0..6 for segments.
#[repr(C)]
pub struct Operation<C> {
    /// What executes it and goes on.
    pub run: Chained<C>,
    /// The immediate operand, sign-extended; for branches the target relative to the block's start.
    pub imm: u64,
    /// Displacement of the memory operand; relative to the block's start where the base is [`REG_BLOCK`].
    pub disp: i32,
    /// Distance of this instruction from the block's start in bytes.
    pub off: u16,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Number of instructions of the block before this one.
    pub idx: u8,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Shift of the index register, 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand.
    pub seg: u8,
    /// Register of the first operand.
    pub a: u8,
    /// Register of the second operand.
    pub b: u8,
    /// Register of the third operand, or whatever the handler wants to know.
    pub c: u8,
    /// Bits of [`op_flag`].
    pub flags: u8,
}

// Not derived: that would ask for a processor that can be copied.
impl<C> Clone for Operation<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Operation<C> {}

impl<C> Operation<C> {
    /// Whether an operand is in memory.
    #[inline(always)]
    pub const fn has_memory(&self) -> bool {
        self.flags & op_flag::MEM != 0
    }
}

const _: () = assert!(size_of::<Operation<()>>() == 32);
