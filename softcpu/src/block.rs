//! Basic blocks: straight runs of operations, decoded once and found again by physical address.
//!
//! A block lies in one page, but for the single instruction of a block that straddles two. It remembers its page's
//! [version](crate::code_page): where that has changed, the block's bytes are compared with those it was decoded from, and it
//! is decoded anew if they differ. The bytes are compared as well when a block is found by its physical address,
//! which is how the first one after each change of translations is found: that shows what a device has stored.
//!
//! While other processors may still store to the page without any sign, blocks of it are decoded each time.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::collections::VecDeque;
use std::ptr::NonNull;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::address_map::AddressMap;
use crate::code_page::{CodePage, granules};
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
/// Most pages whose watching is waited for; the oldest is asked for again when it is needed.
const MOST_UNSETTLED: usize = 64;
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

    /// The operation that ends the block: the one before the guard.
    pub fn end(&self) -> Option<&Op> {
        // SAFETY: made by `new` from a boxed slice of this length, which lives as long as `self`.
        let all = unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) };
        all.iter().nth_back(1)
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        // SAFETY: made by `new` from a boxed slice of this length, and dropped once.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len)) });
    }
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
    /// What it was decoded from.
    bytes: Box<[u8]>,
    /// The version of its page when `bytes` were seen there last.
    version: Cell<u32>,
    /// Its page; `None` where the version of one page does not say everything: it is looked up each time.
    page: Option<NonNull<CodePage>>,
    /// Physical address of the second page, where it straddles two.
    second: Option<u64>,
    /// The block that came after it, when it went on to the next instruction and when it went elsewhere.
    links: [Cell<Link>; 2],
}

// SAFETY: `page` points into the `Ram` that the owning processor keeps alive; it is only read, atomically. `links` point
// to blocks of the same cache, which is never taken apart.
unsafe impl Send for Block {}

impl Block {
    /// Whether nobody has stored to its bytes since, as far as its page's version shows.
    #[inline(always)]
    fn is_current(&self) -> bool {
        match self.page {
            // SAFETY: see `Send`: the `Ram` outlives the block.
            Some(page) => unsafe { page.as_ref() }.version() == self.version.get(),
            None => false,
        }
    }

    /// Its bytes in its first page.
    fn first_part(&self) -> &[u8] {
        let room = (PAGE - self.phys % PAGE) as usize;
        &self.bytes[..room.min(self.bytes.len())]
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
    /// The last two blocks that may run only once.
    transient: [Option<Box<Block>>; 2],
    /// Pages of code to which other processors may still store without a sign, oldest first.
    unsettled: VecDeque<Unsettled>,
}

/// A page of code whose watching was asked for.
struct Unsettled {
    page: u64,
    version: u32,
    /// The number of the request.
    request: u64,
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
            transient: [None, None],
            unsettled: VecDeque::new(),
        }
    }

    /// Keeps a block until two more such have come.
    fn keep_once(&mut self, block: Block) -> *const Block {
        self.transient.swap(0, 1);
        self.transient[0].insert(Box::new(block)).as_ref()
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
            transient,
            unsettled: _,
        } = self;
        by_address.clear();
        jumps.fill(NO_JUMP);
        *transient = [None, None];
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

    /// Whether the block that runs was decoded from one of the `len` bytes at `phys`.
    pub(crate) fn runs(&self, phys: u64, len: u64) -> bool {
        // SAFETY: the loop sets it to a block that lives as long as it says so.
        let running = unsafe { self.running.as_ref() };
        running.is_some_and(|block| {
            let first = block.first_part().len();
            let overlaps = |at: u64, bytes: usize| phys < at + bytes as u64 && at < phys + len;
            overlaps(block.phys, first)
                || block
                    .second
                    .is_some_and(|second| overlaps(second, block.bytes.len() - first))
        })
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
        if found.page.is_some() {
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
        self.counters.blocks_looked_up += 1;
        let known = self.cache.by_address.get(&key).copied();
        if let Some(known) = known {
            // SAFETY: blocks live as long as the table, and none is changed here.
            let block = unsafe { known.as_ref() };
            if self.relies(block, linear)? {
                if block.page.is_some() {
                    self.remember(linear, known);
                }
                return Ok(known.as_ptr());
            }
        }
        if self.cache.blocks.len() >= CAPACITY {
            self.request_check();
        }
        let block = self.decode_block(linear, phys, MOST)?;
        if !self.relies(&block, linear)? {
            return Ok(self.cache.keep_once(Block { page: None, ..block }));
        }
        let again = block.page.is_some();
        let kept = match known {
            Some(mut known) => {
                // SAFETY: no reference to the block is alive. It does not run, and whoever has its address (a jump, a link, the
                // loop) finds another block of the same address there.
                unsafe { *known.as_mut() = block };
                known
            }
            None => {
                let kept = self.cache.keep(block);
                self.cache.by_address.insert(key, kept);
                kept
            }
        };
        if again {
            self.remember(linear, kept);
        }
        Ok(kept.as_ptr())
    }

    /// Whether a block's bytes are still in memory and every store to them will show.
    fn relies(&mut self, block: &Block, linear: u64) -> Result<bool, Stop> {
        let first = block.first_part();
        let rest = &block.bytes[first.len()..];
        if let Some(second) = block.second {
            let page = self.fetch((linear & PAGE_MASK).wrapping_add(PAGE))?;
            if page != second || self.relies_on(second, rest).is_none() {
                return Ok(false);
            }
        }
        let version = self.relies_on(block.phys, first);
        block.version.set(version.unwrap_or_default());
        Ok(version.is_some())
    }

    /// The version of the page at `phys`, where these bytes are there and every store to them changes it.
    fn relies_on(&mut self, phys: u64, bytes: &[u8]) -> Option<u32> {
        let granules = granules(phys % PAGE, bytes.len() as u64);
        let reliance = self.ram.page(phys)?.rely(granules);
        if reliance.direct && !self.settle(phys & PAGE_MASK, reliance.version) {
            return None;
        }
        self.ram.equals(phys, bytes).then_some(reliance.version)
    }

    /// Lets stores to a page of code be watched, by this processor at once and by the others before their next block.
    /// Answers whether all do.
    #[cold]
    fn settle(&mut self, page: u64, version: u32) -> bool {
        let waiting = &mut self.cache.unsettled;
        let asked = waiting.iter().position(|asked| asked.page == page);
        if let Some(index) = asked
            && waiting[index].version == version
            && !self.platform.others_watch(waiting[index].request, &self.mailbox)
        {
            return false;
        }
        // Another version: it may have been opened since, and is asked for anew.
        let asked = asked.and_then(|index| waiting.remove(index));
        if asked.is_none_or(|asked| asked.version != version) {
            self.counters.pages_watched += 1;
            self.tlb.watch(page);
            if self.platform.is_shared() {
                if waiting.len() == MOST_UNSETTLED {
                    waiting.pop_front();
                }
                let request = self.platform.watch_others(&self.mailbox);
                waiting.push_back(Unsettled {
                    page,
                    version,
                    request,
                });
                return false;
            }
        }
        self.ram.page(page).is_some_and(|code| code.settle(version))
    }

    /// Watches the stores to code as other processors have asked for.
    pub(crate) fn watch_code(&mut self) {
        let request = self.platform.watch_requests();
        self.tlb.watch_code(&self.ram);
        self.mailbox.set_watched(request);
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
        self.counters.blocks_decoded += 1;
        let bits = [16, 32, 64][self.code_size as usize];
        let mut buffer = [0; MOST * LONGEST];
        let room = (PAGE - phys % PAGE) as usize;
        let bytes = &mut buffer[..room.min(MOST * LONGEST)];
        let readable = self.ram.read(phys, bytes);
        if !readable {
            // Nothing runs outside of RAM here; all ones decode to an invalid instruction.
            bytes.fill(0xff);
        }
        let mut ops = Vec::with_capacity(8);
        let mut count = 0;
        let mut decoder = Decoder::with_ip(bits, bytes, 0, DECODING);
        let mut instr = Instruction::default();
        // The instruction before, and where its operation is.
        let mut last: Option<(Instruction, usize)> = None;
        let mut second = None;
        let mut longer = [0; 2 * LONGEST];
        loop {
            if count == most {
                ops.push(fallthrough(decoder.position(), count));
                break;
            }
            let at = decoder.position();
            decoder.decode_out(&mut instr);
            if decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() - at < LONGEST {
                if count > 0 {
                    ops.push(fallthrough(at, count));
                    break;
                }
                let page = self.fetch((linear & PAGE_MASK).wrapping_add(PAGE))?;
                longer[..room].copy_from_slice(bytes);
                let rest = &mut longer[room..room + LONGEST];
                if !self.ram.read(page, rest) {
                    rest.fill(0xff);
                }
                second = Some(page);
                let mut decoder = Decoder::with_ip(bits, &longer[..room + LONGEST], 0, DECODING);
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
        let len = ops.last().map_or(0, |op| op.off as usize + op.len as usize);
        // A guard: should a handler that ends blocks ever go on, it ends here and not beyond.
        ops.push(fallthrough(0, count));
        let all = if second.is_some() { &longer[..] } else { &bytes[..] };
        let page = self.ram.page(phys).map(NonNull::from);
        Ok(Block {
            ops: Ops::new(ops),
            count: count as u32,
            len: len as u32,
            phys,
            flow: instr.flow_control(),
            bytes: all[..len].into(),
            version: Cell::new(0),
            page: page.filter(|_| second.is_none()),
            second,
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
