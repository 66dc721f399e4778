//! Finding the block at an instruction pointer: by the link of the block before, by linear address, by
//! physical address, and by decoding it.
#![allow(unsafe_code)]

use crate::core::block::Block;
use crate::core::code_page::granules;
use crate::core::page::{PAGE, PAGE_MASK};
use crate::core::unsettled::Asker;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::decode_block::MOST;
use crate::x86_64::op::Stop;

impl Cpu {
    /// Makes room where too many blocks have been decoded. Not while a block runs.
    pub(crate) fn bound_cache(&mut self) {
        if self.cache.is_full() {
            self.running = std::ptr::null();
            self.stopped = std::ptr::null();
            self.cache.clear();
        }
    }

    /// Gives back the memory of what was decoded, between two runs. What runs again is decoded again.
    pub fn give_back(&mut self) {
        self.running = std::ptr::null();
        self.stopped = std::ptr::null();
        self.cache.clear();
    }

    /// Whether the block that runs was decoded from one of the `len` bytes at `phys`.
    pub(crate) fn runs(&self, phys: u64, len: u64) -> bool {
        // SAFETY: the loop sets it to a block that lives as long as it says so.
        let running = unsafe { self.running.as_ref() };
        running.is_some_and(|block| block.overlaps(phys, len))
    }

    /// The block at `rip`, which came after `from` began at `begin`. It lives until [`Cpu::bound_cache`].
    ///
    /// # Safety
    /// `from` is such a block.
    #[inline(always)]
    pub(crate) unsafe fn follow(
        &mut self,
        from: *const Block<Op>,
        begin: u64,
    ) -> Result<*const Block<Op>, Stop> {
        let key = self.tlb.key();
        // SAFETY: the caller's promise.
        if let Some(block) = unsafe { self.cache.linked(from, begin, self.rip, key) } {
            return Ok(block);
        }
        let block = self.find_block()?;
        // SAFETY: `find_block` frees none.
        unsafe { self.cache.set_link(from, begin, self.rip, self.tlb.key(), block) };
        Ok(block)
    }

    /// The block at `rip`. It lives until [`Cpu::bound_cache`].
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Result<*const Block<Op>, Stop> {
        let linear = if self.is_long() {
            self.rip
        } else {
            self.code_linear()
        };
        if let Some(block) = self.cache.jump(linear, self.tlb.key()) {
            return Ok(block);
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
        self.seg_base[crate::x86_64::state::seg::CS].wrapping_add(self.rip) as u32 as u64
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<*const Block<Op>, Stop> {
        let phys = self.fetch(linear)?;
        let key = phys | (self.code_size as u64) << 60;
        self.counters.blocks_looked_up += 1;
        if let Some(known) = self.cache.at(key) {
            // SAFETY: blocks live as long as the table, and none is changed here.
            let block = unsafe { known.as_ref() };
            if self.relies(block, linear)? {
                self.cache.remember(linear, self.tlb.key(), known);
                return Ok(known.as_ptr());
            }
        }
        if self.cache.is_full() {
            self.request_check();
        }
        let block = self.decode_block(linear, phys, MOST)?;
        if !self.relies(&block, linear)? {
            return Ok(self.cache.keep_once(block.once()));
        }
        let kept = self.cache.insert(key, block);
        self.cache.remember(linear, self.tlb.key(), kept);
        Ok(kept.as_ptr())
    }

    /// Whether a block's bytes are still in memory and every store to them will show.
    fn relies(&mut self, block: &Block<Op>, linear: u64) -> Result<bool, Stop> {
        let first = block.first_part();
        let rest = &block.bytes()[first.len()..];
        if let Some(second) = block.second {
            let page = self.fetch((linear & PAGE_MASK).wrapping_add(PAGE))?;
            if page != second || self.relies_on(second, rest).is_none() {
                return Ok(false);
            }
        }
        let version = self.relies_on(block.phys, first);
        block.set_version(version.unwrap_or_default());
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

    /// See [`Unsettled::settle`](crate::core::unsettled::Unsettled::settle).
    fn settle(&mut self, page: u64, version: u32) -> bool {
        let asker = Asker {
            ram: &self.ram,
            tlb: &mut self.tlb,
            processors: &self.platform.processors,
            mailbox: &self.mailbox,
            counters: &mut self.counters,
        };
        self.cache.unsettled.settle(asker, page, version)
    }

    /// Watches the stores to code as other processors have asked for.
    pub(crate) fn watch_code(&mut self) {
        let request = self.platform.processors.watch_requests();
        self.tlb.watch_code(&self.ram);
        self.mailbox.set_watched(request);
    }
}
