//! Basic blocks: straight runs of operations, decoded once and found again by physical address.
//!
//! A block lies in one page, but for the single instruction of a block that straddles two. It remembers the word
//! that [`Ram`](crate::ram::Ram) keeps for its page: when anyone stores to the page, the word changes and the
//! block is void. What stores past the processors (a device, or another processor whose TLB still said that the
//! page holds no code) is found when the page enters the fetch TLB again: its bytes are compared with a copy.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::decode::{self, Choice};
use crate::exec;
use crate::op::{Op, Stop};
use crate::ram::{PAGE, PAGE_MASK};
use crate::select::select;
use crate::state::{CodeSize, Cpu};

/// Most instructions of a block: their number must fit [`Op::idx`], and interrupts wait for the end of a block.
const MOST: usize = 64;
/// Most blocks before the cache starts afresh: bounds host memory to about 100 MiB for each processor.
const CAPACITY: usize = 1 << 18;
/// Entries of the table that finds blocks by linear address; a power of two.
const JUMPS: usize = 8192;
/// Longest instruction.
const LONGEST: usize = 15;

/// Operations on the heap, at one address for as long as the cache that owns the block lives.
pub(crate) struct Ops {
    first: NonNull<Op>,
    len: usize,
}

// SAFETY: plain data, owned like a box; function pointers may cross threads.
unsafe impl Send for Ops {}

impl Ops {
    fn new(ops: Vec<Op>) -> Ops {
        let len = ops.len();
        let first = NonNull::from(Box::leak(ops.into_boxed_slice())).cast();
        Ops { first, len }
    }

    /// The first operation; the last one always stops.
    #[inline(always)]
    pub fn first(&self) -> *const Op {
        self.first.as_ptr()
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        // SAFETY: made by `new` from a boxed slice of this length, and dropped once.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len)) });
    }
}

/// A page that a block depends on.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    page: u64,
    /// The page's word in [`Ram`](crate::ram::Ram) when it was decoded.
    word: u32,
}

/// A decoded block.
pub(crate) struct Block {
    /// Its operations.
    pub ops: Ops,
    /// Instructions that it retires.
    pub count: u32,
    /// Physical address of its first byte.
    pub phys: u64,
    /// Size of its code.
    pub size: CodeSize,
    source: Source,
    second: Option<Source>,
    /// The word of `source`.
    state: Option<NonNull<AtomicU32>>,
}

// SAFETY: `state` points into the `Ram` that the owning processor keeps alive; it is only read, atomically.
unsafe impl Send for Block {}

impl Block {
    /// Whether nobody has stored to its (first) page since.
    #[inline(always)]
    fn is_current(&self) -> bool {
        match self.state {
            // SAFETY: see `Send`: the `Ram` outlives the block.
            Some(state) => unsafe { state.as_ref() }.load(Ordering::Acquire) == self.source.word,
            None => false,
        }
    }
}

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    block: u32,
}

/// Physical addresses are hashes enough once multiplied.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _bytes: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = (value ^ value >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// All blocks of one processor.
pub(crate) struct Cache {
    pub blocks: Vec<Block>,
    by_address: AddressMap<u32>,
    jumps: Box<[Jump; JUMPS]>,
    /// What pages with blocks looked like when the first of them was decoded.
    copies: AddressMap<(u32, Box<[u8]>)>,
}

const NO_JUMP: Jump = Jump {
    linear: 1,
    block: u32::MAX,
};

impl Cache {
    pub fn new() -> Cache {
        Cache {
            blocks: Vec::new(),
            by_address: AddressMap::default(),
            jumps: vec![NO_JUMP; JUMPS]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            copies: AddressMap::default(),
        }
    }

    fn clear(&mut self) {
        let Cache {
            blocks,
            by_address,
            jumps,
            copies,
        } = self;
        blocks.clear();
        by_address.clear();
        jumps.fill(NO_JUMP);
        copies.clear();
    }
}

#[inline(always)]
fn jump_slot(linear: u64) -> usize {
    (linear ^ linear >> 13) as usize % JUMPS
}

impl Cpu {
    /// The block at `rip`, as its index in the cache.
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Result<usize, Stop> {
        let linear = if self.is_long() {
            self.rip
        } else {
            self.code_linear()
        };
        let jump = self.cache.jumps[jump_slot(linear)];
        if jump.linear == linear
            && let Some(block) = self.cache.blocks.get(jump.block as usize)
        {
            let entry = self.tlb.exec_entry(linear);
            if entry.tag == linear & PAGE_MASK
                && (entry.phys ^ block.phys) & PAGE_MASK == 0
                && block.size == self.code_size
                && block.is_current()
            {
                return Ok(jump.block as usize);
            }
        }
        self.find_block_slow(linear)
    }

    fn code_linear(&self) -> u64 {
        self.seg_base[crate::state::seg::CS].wrapping_add(self.rip) as u32 as u64
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<usize, Stop> {
        let phys = self.fetch(linear)?;
        let key = phys | (self.code_size as u64) << 60;
        if let Some(&index) = self.cache.by_address.get(&key) {
            let block = &self.cache.blocks[index as usize];
            if block.is_current() {
                match block.second {
                    None => {
                        self.cache.jumps[jump_slot(linear)] = Jump { linear, block: index };
                        return Ok(index as usize);
                    }
                    Some(second) => {
                        let next = (linear & PAGE_MASK).wrapping_add(PAGE);
                        let page = self.fetch(next)?;
                        let word = self.ram.page(page).map(|word| word.load(Ordering::Acquire));
                        if page == second.page && word == Some(second.word) {
                            return Ok(index as usize);
                        }
                    }
                }
            }
        }
        if self.cache.blocks.len() >= CAPACITY {
            self.cache.clear();
        }
        let block = self.decode_block(linear, phys, MOST)?;
        let index = self.cache.blocks.len();
        if block.second.is_none() {
            self.cache.jumps[jump_slot(linear)] = Jump {
                linear,
                block: index as u32,
            };
        }
        self.cache.blocks.push(block);
        self.cache.by_address.insert(key, index as u32);
        Ok(index)
    }

    /// Decodes the single instruction at `rip`, for running it alone.
    pub(crate) fn decode_single(&mut self) -> Result<Block, Stop> {
        let linear = if self.is_long() {
            self.rip
        } else {
            self.code_linear()
        };
        let phys = self.fetch(linear)?;
        self.decode_block(linear, phys, 1)
    }

    fn decode_block(&mut self, linear: u64, phys: u64, most: usize) -> Result<Block, Stop> {
        let source = self.code_source(phys);
        let start = (phys & !PAGE_MASK) as usize;
        let bits = [16, 32, 64][self.code_size as usize];
        let mut page = [0; PAGE as usize];
        let readable = self.ram.read(phys & PAGE_MASK, &mut page);
        if !readable {
            // Nothing runs outside of RAM here; all ones decode to an invalid instruction.
            page.fill(0xff);
        }
        let mut ops = Vec::with_capacity(8);
        let mut count = 0;
        let mut decoder = Decoder::with_ip(bits, &page[start..], 0, DecoderOptions::NONE);
        let mut instr = Instruction::default();
        let mut second = None;
        loop {
            if count == most {
                ops.push(fallthrough(decoder.position(), count));
                break;
            }
            let at = decoder.position();
            decoder.decode_out(&mut instr);
            if decoder.last_error() == DecoderError::NoMoreBytes && page.len() - start - at < LONGEST {
                if count > 0 {
                    ops.push(fallthrough(at, count));
                    break;
                }
                let next = (linear & PAGE_MASK).wrapping_add(PAGE);
                let next_phys = self.fetch(next)?;
                let mut bytes = page[start..].to_vec();
                let mut more = [0xff; LONGEST];
                self.ram.read(next_phys, &mut more);
                second = Some(self.code_source(next_phys));
                bytes.extend_from_slice(&more);
                let mut decoder = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE);
                decoder.decode_out(&mut instr);
                let (op, choice) = self.lower(&instr, 0);
                ops.push(op);
                count = 1;
                if !choice.ends {
                    ops.push(fallthrough(instr.len(), 1));
                }
                break;
            }
            let (op, choice) = self.lower(&instr, count);
            if choice.starts && count > 0 {
                ops.push(fallthrough(at, count));
                break;
            }
            ops.push(op);
            count += 1;
            if choice.ends {
                break;
            }
        }
        // A guard: should a handler that ends blocks ever go on, it ends here and not beyond.
        ops.push(fallthrough(0, count));
        exec::fuse::fuse(&mut ops);
        let state = self.ram.page(phys).map(NonNull::from);
        Ok(Block {
            ops: Ops::new(ops),
            count: count as u32,
            phys,
            size: self.code_size,
            source,
            second,
            state,
        })
    }

    /// Makes the operation of an instruction.
    fn lower(&mut self, instr: &Instruction, count: usize) -> (Op, Choice) {
        let size = self.code_size;
        let undefined = Choice::end(exec::misc::undefined);
        let choice = if instr.is_invalid() {
            undefined
        } else {
            select(instr, size).unwrap_or_else(|| {
                let name = format!("{:?}", instr.code());
                self.report(&name);
                undefined
            })
        };
        match decode::operands(instr, size, choice.run) {
            Some(mut op) => {
                op.idx = count as u8;
                (op, choice)
            }
            None => {
                self.report("a displacement of 2 GiB");
                let mut op = fallthrough(0, count);
                op.run = exec::misc::undefined;
                (op, undefined)
            }
        }
    }

    /// Marks the page as one of code and remembers what it looks like.
    fn code_source(&mut self, phys: u64) -> Source {
        let page = phys & PAGE_MASK;
        let (word, first) = self.ram.mark_code(page);
        if first {
            // Stores must not pass by the mark: in our TLB at once, in the others' before their next block.
            self.tlb.protect(Some(page));
            self.platform.protect_others(&self.mailbox);
        }
        if self
            .cache
            .copies
            .get(&page)
            .is_none_or(|(known, _)| *known != word)
        {
            let mut copy = vec![0; PAGE as usize].into_boxed_slice();
            self.ram.read(page, &mut copy);
            self.cache.copies.insert(page, (word, copy));
        }
        Source { page, word }
    }

    /// Compares a page that enters the fetch TLB with what its blocks were decoded from.
    pub(crate) fn verify_code(&mut self, phys: u64) {
        let page = phys & PAGE_MASK;
        let Some((word, copy)) = self.cache.copies.get(&page) else {
            return;
        };
        if self
            .ram
            .page(page)
            .is_none_or(|state| state.load(Ordering::Acquire) != *word)
        {
            return;
        }
        if !self.ram.equals(page, copy) {
            self.ram.written(page);
            self.cache.copies.remove(&page);
        }
    }
}

/// An operation that goes on after the block without being an instruction.
fn fallthrough(at: usize, count: usize) -> Op {
    Op {
        run: exec::branch::fallthrough,
        imm: 0,
        disp: 0,
        off: at as u16,
        len: 0,
        idx: count as u8,
        base: crate::op::REG_ZERO,
        index: crate::op::REG_ZERO,
        scale: 0,
        seg: crate::op::SEG_FLAT,
        a: 0,
        b: 0,
        c: 0,
        flags: 0,
    }
}
