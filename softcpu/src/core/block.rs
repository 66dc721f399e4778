//! Basic blocks: straight runs of operations, decoded once and found again by physical address.
//!
//! A block lies in one page, but for the single instruction of a block that straddles two. It remembers its
//! page's [version](crate::core::code_page): where that has changed, the block's bytes are compared with
//! those it was decoded from, and it is decoded anew if they differ. The bytes are compared as well when a
//! block is found by its physical address, which is how the first one after each change of translations is
//! found: that shows what a device has stored.
//!
//! While other processors may still store to the page without any sign, blocks of it are decoded each time.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::NonNull;

use crate::core::address_map::AddressMap;
use crate::core::arena::Arena;
use crate::core::code_page::CodePage;
use crate::core::page::PAGE;
use crate::core::unsettled::Unsettled;

/// Most blocks before the cache starts afresh, and most bytes of them, those that others have replaced
/// included: bounds host memory for each processor.
const CAPACITY: usize = 1 << 18;
const MOST_BYTES: usize = 128 << 20;
/// Entries of the table that finds blocks by linear address; a power of two.
const JUMPS: usize = 8192;

/// Values at one address for as long as their owner lives: on the heap, or in the arena of the cache that owns
/// the block that has them.
pub(crate) struct Piece<T> {
    first: NonNull<T>,
    len: usize,
    on_heap: bool,
}

// SAFETY: plain data, owned like a box; function pointers may cross threads.
unsafe impl<T: Copy + 'static> Send for Piece<T> {}

impl<T> Piece<T> {
    fn new(values: Vec<T>) -> Piece<T> {
        let len = values.len();
        let first = NonNull::from(Box::leak(values.into_boxed_slice())).cast();
        Piece {
            first,
            len,
            on_heap: true,
        }
    }

    /// The same in `arena`.
    fn moved_to(self, arena: &mut Arena) -> Piece<T>
    where
        T: Copy,
    {
        Piece {
            first: arena.copy(self.all()),
            len: self.len,
            on_heap: false,
        }
    }

    /// The first one.
    #[inline(always)]
    pub fn first(&self) -> *const T {
        self.first.as_ptr()
    }

    /// The one before the last: of a block's operations the one that ends it, before the guard.
    pub fn end(&self) -> Option<&T> {
        self.all().iter().nth_back(1)
    }

    /// All of them.
    #[inline(always)]
    pub fn all(&self) -> &[T] {
        // SAFETY: made by `new` from a boxed slice of this length or copied from one, which lives as long as
        // `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for Piece<T> {
    fn drop(&mut self) {
        if self.on_heap {
            let all = std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len);
            // SAFETY: made by `new` from a boxed slice of this length, and dropped once.
            drop(unsafe { Box::from_raw(all) });
        }
    }
}

/// Where a block went, and how: an entry of [`Tlb::key`](crate::core::tlb::Tlb::key) and the instruction
/// pointer.
struct Link<O> {
    rip: u64,
    key: u64,
    block: *const Block<O>,
}

impl<O> Link<O> {
    const NONE: Link<O> = Link {
        rip: 0,
        key: 0,
        block: std::ptr::null(),
    };
}

impl<O> Clone for Link<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Link<O> {}

/// What the last instruction of a block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It goes on with the next one.
    Next,
    /// It calls a function.
    Call,
    /// It jumps by a distance from the next instruction, always or under a condition.
    RelativeJump,
    /// It goes elsewhere in another way.
    Other,
}

/// A decoded block.
pub(crate) struct Block<O> {
    /// Its operations; the last one always stops.
    pub ops: Piece<O>,
    /// Instructions that it retires.
    pub count: u32,
    /// Its bytes.
    pub len: u32,
    /// Physical address of its first byte.
    pub phys: u64,
    /// What its last instruction does.
    pub ending: Ending,
    /// What it was decoded from.
    bytes: Piece<u8>,
    /// The version of its page when `bytes` were seen there last.
    version: Cell<u32>,
    /// Its page; `None` where the version of one page does not say everything: it is looked up each time.
    page: Option<NonNull<CodePage>>,
    /// Physical address of the second page, where it straddles two.
    pub second: Option<u64>,
    /// The block that came after it, when it went on to the next instruction and when it went elsewhere.
    links: [Cell<Link<O>>; 2],
}

// SAFETY: `page` points into the `Ram` that the owning processor keeps alive; it is only read, atomically.
// `links` point to blocks of the same cache, which gives them up all at once.
unsafe impl<O: Copy + 'static> Send for Block<O> {}

impl<O> Block<O> {
    /// A block of `bytes`, which lie at `phys` in `page` and, where there are more than it has room for, at
    /// `second`. Its version is not known yet.
    pub fn new(
        (ops, count, ending): (Vec<O>, u32, Ending),
        (phys, second, bytes): (u64, Option<u64>, &[u8]),
        page: Option<&CodePage>,
    ) -> Block<O> {
        let page = page.map(NonNull::from);
        Block {
            ops: Piece::new(ops),
            count,
            len: bytes.len() as u32,
            phys,
            ending,
            bytes: Piece::new(bytes.to_vec()),
            version: Cell::new(0),
            page: page.filter(|_| second.is_none()),
            second,
            links: [const { Cell::new(Link::NONE) }; 2],
        }
    }

    /// The same, to be looked up each time.
    pub fn once(self) -> Block<O> {
        Block { page: None, ..self }
    }

    /// The same with all that it has in `arena`.
    fn moved_to(self, arena: &mut Arena) -> Block<O>
    where
        O: Copy,
    {
        Block {
            ops: self.ops.moved_to(arena),
            bytes: self.bytes.moved_to(arena),
            ..self
        }
    }

    /// What it was decoded from.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.all()
    }

    /// Whether its page's version says everything, so that it may be found by tables and links.
    pub fn may_be_linked(&self) -> bool {
        self.page.is_some()
    }

    /// Its bytes were seen in its page of this version.
    pub fn set_version(&self, version: u32) {
        self.version.set(version);
    }

    /// Whether it was decoded from one of the `len` bytes at `phys`.
    pub fn overlaps(&self, phys: u64, len: u64) -> bool {
        let first = self.first_part().len();
        let overlaps = |at: u64, bytes: usize| phys < at + bytes as u64 && at < phys + len;
        overlaps(self.phys, first)
            || self
                .second
                .is_some_and(|second| overlaps(second, self.bytes().len() - first))
    }

    /// Whether nobody has stored to its bytes since, as far as its page's version shows.
    #[inline(always)]
    pub fn is_current(&self) -> bool {
        match self.page {
            // SAFETY: see `Send`: the `Ram` outlives the block.
            Some(page) => unsafe { page.as_ref() }.version() == self.version.get(),
            None => false,
        }
    }

    /// Its bytes in its first page.
    pub fn first_part(&self) -> &[u8] {
        let room = (PAGE - self.phys % PAGE) as usize;
        &self.bytes()[..room.min(self.bytes().len())]
    }

    /// The link for a way on to `rip`, of a block that began at `begin`.
    #[inline(always)]
    fn link(&self, begin: u64, rip: u64) -> &Cell<Link<O>> {
        &self.links[(begin.wrapping_add(self.len as u64) != rip) as usize]
    }
}

/// A block by its linear address.
struct Jump<O> {
    linear: u64,
    key: u64,
    block: *const Block<O>,
}

impl<O> Jump<O> {
    const NONE: Jump<O> = Jump {
        linear: 1,
        key: 0,
        block: std::ptr::null(),
    };
}

impl<O> Clone for Jump<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Jump<O> {}

/// All blocks of one processor.
pub(crate) struct Cache<O> {
    /// Holds the blocks, at one address each, and all that they have.
    arena: Arena,
    /// Blocks in it that can be found.
    count: usize,
    by_address: AddressMap<NonNull<Block<O>>>,
    jumps: Box<[Jump<O>; JUMPS]>,
    /// The last two blocks that may run only once.
    transient: [Option<Box<Block<O>>>; 2],
    /// Pages of code to which other processors may still store without a sign.
    pub unsettled: Unsettled,
}

// SAFETY: blocks belong to the cache alone, which hands out no pointer that outlives a call of the
// processor's thread.
unsafe impl<O: Copy + 'static> Send for Cache<O> {}

impl<O> Cache<O> {
    pub fn new() -> Cache<O> {
        Cache {
            arena: Arena::default(),
            count: 0,
            by_address: AddressMap::default(),
            jumps: vec![Jump::NONE; JUMPS]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            transient: [None, None],
            unsettled: Unsettled::default(),
        }
    }

    /// Keeps a block until two more such have come.
    pub fn keep_once(&mut self, block: Block<O>) -> *const Block<O> {
        self.transient.swap(0, 1);
        self.transient[0].insert(Box::new(block)).as_ref()
    }

    /// Whether there are so many that the cache is to be emptied.
    pub fn is_full(&self) -> bool {
        self.count >= CAPACITY || self.arena.len() >= MOST_BYTES
    }

    /// The block that followed `from` the last time when it began at `begin` and went on to `rip`.
    ///
    /// # Safety
    /// `from` is a block of this cache that was not cleared since.
    #[inline(always)]
    pub unsafe fn linked(
        &self,
        from: *const Block<O>,
        begin: u64,
        rip: u64,
        key: u64,
    ) -> Option<*const Block<O>> {
        // SAFETY: the caller's promise.
        let link = unsafe { &*from }.link(begin, rip).get();
        // SAFETY: blocks of links live as long as the block that has the link.
        (link.rip == rip && link.key == key && unsafe { &*link.block }.is_current()).then_some(link.block)
    }

    /// Remembers that `block` followed `from`, where it may be found so.
    ///
    /// # Safety
    /// Both are blocks of this cache that was not cleared since.
    pub unsafe fn set_link(
        &self,
        from: *const Block<O>,
        begin: u64,
        rip: u64,
        key: u64,
        block: *const Block<O>,
    ) {
        // SAFETY: the caller's promise.
        let (from, found) = unsafe { (&*from, &*block) };
        if found.may_be_linked() {
            from.link(begin, rip).set(Link { rip, key, block });
        }
    }

    /// The block at a linear address, where it was found there with this key.
    #[inline(always)]
    pub fn jump(&self, linear: u64, key: u64) -> Option<*const Block<O>> {
        let jump = self.jumps[jump_slot(linear)];
        // SAFETY: blocks live as long as the table, and the table has them only with a key.
        (jump.linear == linear && jump.key == key && unsafe { &*jump.block }.is_current())
            .then_some(jump.block)
    }

    /// Lets a block be found by linear address, if it may be.
    pub fn remember(&mut self, linear: u64, key: u64, block: NonNull<Block<O>>) {
        // SAFETY: blocks live as long as the table, and none is changed here.
        if unsafe { block.as_ref() }.may_be_linked() {
            self.jumps[jump_slot(linear)] = Jump {
                linear,
                key,
                block: block.as_ptr(),
            };
        }
    }

    /// The block that was decoded at a physical address with the code size that the key also has.
    pub fn at(&self, address: u64) -> Option<NonNull<Block<O>>> {
        self.by_address.get(&address).copied()
    }

    /// Keeps a block until the cache is cleared, in the place of one that was [at](Cache::at) the same
    /// address.
    ///
    /// No reference to a block is alive meanwhile, and the one that is replaced does not run.
    pub fn insert(&mut self, address: u64, block: Block<O>) -> NonNull<Block<O>>
    where
        O: Copy,
    {
        let block = block.moved_to(&mut self.arena);
        match self.at(address) {
            Some(mut known) => {
                // SAFETY: see above: whoever has its address (a jump, a link, the loop) finds another block
                // of the same address there.
                unsafe { *known.as_mut() = block };
                known
            }
            None => {
                let kept = self.arena.put(block);
                self.count += 1;
                self.by_address.insert(address, kept);
                kept
            }
        }
    }

    /// Forgets all blocks, and gives back their memory. None runs.
    pub fn clear(&mut self) {
        let Cache {
            arena,
            count,
            by_address,
            jumps,
            transient,
            unsettled: _,
        } = self;
        *by_address = AddressMap::default();
        jumps.fill(Jump::NONE);
        *transient = [None, None];
        *count = 0;
        // Blocks in the arena have nothing elsewhere that would have to be dropped, and nothing in the cache
        // names them any more.
        arena.clear();
    }
}

#[inline(always)]
fn jump_slot(linear: u64) -> usize {
    (linear ^ linear >> 13) as usize % JUMPS
}
