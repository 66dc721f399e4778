//! Basic blocks: straight runs of operations, decoded once and found again by physical address.
//!
//! A block lies in one page, but for the single instruction of a block that straddles two. It remembers the word
//! that [`Ram`](crate::ram::Ram) keeps for its page: when anyone stores to the page, the word changes and the
//! block is void. What stores past the processors (a device, or another processor whose TLB still said that the
//! page holds no code) is found when the page enters the fetch TLB again: its bytes are compared with a copy.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::address_map::AddressMap;
use crate::decode::{self, Choice, Run};
use crate::exec;
use crate::exec::chain::{carry, chain};
use crate::op::{Op, Stop};
use crate::ram::{PAGE, PAGE_MASK};
use crate::select::{fused, select};
use crate::state::Cpu;

/// Most instructions of a block: their number must fit [`Op::idx`], and interrupts wait for the end of a block.
const MOST: usize = 64;
/// Most blocks before the cache starts afresh: bounds host memory to about 100 MiB for each processor.
const CAPACITY: usize = 1 << 18;
/// Entries of the table that finds blocks by linear address; a power of two.
const JUMPS: usize = 8192;
/// Longest instruction.
const LONGEST: usize = 15;
/// The hint space (0F 0D, 0F 18 to 0F 1F) does nothing: what later processors put there (shadow stacks, MPX, CLDEMOTE and
/// other prefetches) is no operation without its CPUID bit, and programs rely on that.
const DECODING: u32 = DecoderOptions::FORCE_RESERVED_NOP;

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

/// Where a block went, and how: an entry of [`Tlb::key`](crate::tlb::Tlb::key) and the instruction pointer.
#[derive(Clone, Copy)]
struct Link {
    rip: u64,
    key: u64,
    block: *const Block,
}

const NO_LINK: Link = Link {
    rip: 0,
    key: 0,
    block: std::ptr::null(),
};

/// A decoded block.
pub(crate) struct Block {
    /// Its operations.
    pub ops: Ops,
    /// Instructions that it retires.
    pub count: u32,
    /// Its bytes.
    pub len: u32,
    /// Physical address of its first byte.
    pub phys: u64,
    /// What its last instruction does.
    pub flow: FlowControl,
    source: Source,
    second: Option<Source>,
    /// The word of `source`.
    state: Option<NonNull<AtomicU32>>,
    /// The block that came after it, when it went on to the next instruction and when it went elsewhere.
    links: [Cell<Link>; 2],
}

// SAFETY: `state` points into the `Ram` that the owning processor keeps alive; it is only read, atomically. `links` point
// to blocks of the same cache, which is never taken apart.
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

    /// The link for a way on to `rip`, of a block that began at `begin`.
    #[inline(always)]
    fn link(&self, begin: u64, rip: u64) -> &Cell<Link> {
        &self.links[(begin.wrapping_add(self.len as u64) != rip) as usize]
    }
}

/// A block by its linear address.
#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    key: u64,
    block: *const Block,
}

/// All blocks of one processor.
pub(crate) struct Cache {
    /// At one address each, and only ever freed all at once.
    blocks: Vec<NonNull<Block>>,
    by_address: AddressMap<NonNull<Block>>,
    jumps: Box<[Jump; JUMPS]>,
    /// What pages with blocks looked like when the first of them was decoded.
    copies: AddressMap<(u32, Box<[u8]>)>,
}

// SAFETY: blocks belong to the cache alone, which hands out no pointer that outlives a call of the processor's thread.
unsafe impl Send for Cache {}

const NO_JUMP: Jump = Jump {
    linear: 1,
    key: 0,
    block: std::ptr::null(),
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

    fn keep(&mut self, block: Block) -> NonNull<Block> {
        let kept = NonNull::from(Box::leak(Box::new(block)));
        self.blocks.push(kept);
        kept
    }

    fn clear(&mut self) {
        let Cache {
            blocks,
            by_address,
            jumps,
            copies,
        } = self;
        by_address.clear();
        jumps.fill(NO_JUMP);
        copies.clear();
        for block in blocks.drain(..) {
            // SAFETY: `keep` made it from a box, and nothing else in the cache names it any more.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.clear();
    }
}

#[inline(always)]
fn jump_slot(linear: u64) -> usize {
    (linear ^ linear >> 13) as usize % JUMPS
}

impl Cpu {
    /// Makes room where too many blocks have been decoded. Not while a block runs.
    pub(crate) fn bound_cache(&mut self) {
        if self.cache.blocks.len() >= CAPACITY {
            self.running = std::ptr::null();
            self.stopped = std::ptr::null();
            self.cache.clear();
        }
    }

    /// Physical page of the block that runs.
    pub(crate) fn running_page(&self) -> Option<u64> {
        // SAFETY: the loop sets it to a block that lives as long as it says so.
        unsafe { self.running.as_ref() }.map(|block| block.phys & PAGE_MASK)
    }

    /// The block at `rip`, which came after `from` began at `begin`. It lives until [`Cpu::bound_cache`].
    ///
    /// # Safety
    /// `from` is such a block.
    #[inline(always)]
    pub(crate) unsafe fn follow(&mut self, from: *const Block, begin: u64) -> Result<*const Block, Stop> {
        // SAFETY: the caller's promise.
        let link = unsafe { &*from }.link(begin, self.rip).get();
        if link.rip == self.rip && link.key == self.tlb.key() {
            // SAFETY: blocks of links live as long as the block that has the link.
            if unsafe { &*link.block }.is_current() {
                return Ok(link.block);
            }
        }
        let block = self.find_block()?;
        // SAFETY: `find_block` frees none.
        let (from, found) = unsafe { (&*from, &*block) };
        if found.second.is_none() {
            from.link(begin, self.rip).set(Link {
                rip: self.rip,
                key: self.tlb.key(),
                block,
            });
        }
        Ok(block)
    }

    /// The block at `rip`. It lives until [`Cpu::bound_cache`].
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Result<*const Block, Stop> {
        let linear = if self.is_long() {
            self.rip
        } else {
            self.code_linear()
        };
        let jump = self.cache.jumps[jump_slot(linear)];
        if jump.linear == linear && jump.key == self.tlb.key() {
            // SAFETY: blocks live as long as the table, and the table has them only with a key.
            if unsafe { &*jump.block }.is_current() {
                return Ok(jump.block);
            }
        }
        self.find_block_slow(linear)
    }

    /// Linear address of the next instruction.
    pub(crate) fn code_address(&self) -> u64 {
        if self.is_long() {
            self.rip
        } else {
            self.code_linear()
        }
    }

    fn code_linear(&self) -> u64 {
        self.seg_base[crate::state::seg::CS].wrapping_add(self.rip) as u32 as u64
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<*const Block, Stop> {
        let phys = self.fetch(linear)?;
        let key = phys | (self.code_size as u64) << 60;
        if let Some(&known) = self.cache.by_address.get(&key) {
            // SAFETY: blocks live as long as the table.
            let block = unsafe { known.as_ref() };
            if block.is_current() {
                let Some(second) = block.second else {
                    self.remember(linear, known);
                    return Ok(known.as_ptr());
                };
                let next = (linear & PAGE_MASK).wrapping_add(PAGE);
                let page = self.fetch(next)?;
                let word = self.ram.page(page).map(|word| word.load(Ordering::Acquire));
                if page == second.page && word == Some(second.word) {
                    return Ok(known.as_ptr());
                }
            }
        }
        if self.cache.blocks.len() >= CAPACITY {
            self.request_check();
        }
        let block = self.decode_block(linear, phys, MOST)?;
        let straddles = block.second.is_some();
        let kept = self.cache.keep(block);
        self.cache.by_address.insert(key, kept);
        if !straddles {
            self.remember(linear, kept);
        }
        Ok(kept.as_ptr())
    }

    fn remember(&mut self, linear: u64, block: NonNull<Block>) {
        self.cache.jumps[jump_slot(linear)] = Jump {
            linear,
            key: self.tlb.key(),
            block: block.as_ptr(),
        };
    }

    /// Decodes the single instruction at `rip`, for running it alone.
    pub(crate) fn decode_single(&mut self) -> Result<Block, Stop> {
        let linear = self.code_address();
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
        let mut decoder = Decoder::with_ip(bits, &page[start..], 0, DECODING);
        let mut instr = Instruction::default();
        // The instruction before, and where its operation is.
        let mut last: Option<(Instruction, usize)> = None;
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
                let mut decoder = Decoder::with_ip(bits, &bytes, 0, DECODING);
                decoder.decode_out(&mut instr);
                let choice = self.choose(&instr, decoder.position());
                let ends = self.lower(&instr, choice, 0, &mut ops);
                count = 1;
                if !ends {
                    ops.push(fallthrough(instr.len(), 1));
                }
                break;
            }
            let choice = self.choose(&instr, decoder.position() - at);
            if choice.starts && count > 0 {
                ops.push(fallthrough(at, count));
                break;
            }
            let index = ops.len();
            let ends = self.lower(&instr, choice, count, &mut ops);
            count += 1;
            if ends {
                if let Some((first, at)) = last
                    && let Some(run) = fused(&first, &instr, self.code_size)
                {
                    ops[at].run = run;
                }
                break;
            }
            last = Some((instr, index));
        }
        let len = ops.last().map_or(0, |op| op.off as u32 + op.len as u32);
        // A guard: should a handler that ends blocks ever go on, it ends here and not beyond.
        ops.push(fallthrough(0, count));
        let state = self.ram.page(phys).map(NonNull::from);
        Ok(Block {
            ops: Ops::new(ops),
            count: count as u32,
            len,
            phys,
            flow: instr.flow_control(),
            source,
            second,
            state,
            links: [const { Cell::new(NO_LINK) }; 2],
        })
    }

    /// What runs an instruction, for which the decoder has read so many bytes.
    fn choose(&mut self, instr: &Instruction, bytes: usize) -> Choice {
        if instr.is_invalid() {
            // As many as an instruction may have, and it goes on.
            let too_long = bytes == LONGEST;
            return if too_long {
                Choice::end(chain(exec::misc::too_long))
            } else {
                undefined()
            };
        }
        select(instr, self.code_size).unwrap_or_else(|| {
            let name = format!("{:?}", instr.code());
            self.report(&name);
            undefined()
        })
    }

    /// Makes the operations of an instruction, the `count`-th of its block; answers whether it ends the block.
    fn lower(&mut self, instr: &Instruction, choice: Choice, count: usize, ops: &mut Vec<Op>) -> bool {
        let mut op = fallthrough(0, count);
        if !decode::operands(instr, self.code_size, &mut op) {
            self.report("a displacement of 2 GiB");
            op.run = chain(exec::misc::undefined);
            ops.push(op);
            return true;
        }
        match choice.run {
            Run::Chained(run) => ops.push(Op { run, ..op }),
            Run::Single(body) => ops.extend(carry(op, body)),
        }
        choice.ends
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

fn undefined() -> Choice {
    Choice::end(chain(exec::misc::undefined))
}

/// An operation that goes on after the block without being an instruction.
fn fallthrough(at: usize, count: usize) -> Op {
    Op {
        run: chain(exec::branch::fallthrough),
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
