//! Running a program in a helper, and bringing its memory up to date before.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use super::check;
use super::helper::{END, Helper, Stop};
use super::helpers::{Helpers, Slot, Spent, Wanted};
use super::policy::When;
use super::process::time_of;
use super::registers::{CODE, STACK};
use super::sensitive::{self, AFTER, BEFORE, Places};
use super::stub::CALLS;
use crate::core::changes::Changes;
use crate::core::clock::Clock;
use crate::core::page::{PAGE, PAGE_MASK};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::state::{CodeSize, cr0, cr4, efer, seg};

/// Instructions after which it is tried again to run a program directly that could not.
const LATER: u64 = 4096;
/// The first address that may be mapped: the host keeps what is below (`vm.mmap_min_addr`).
const FIRST: u64 = 0x1_0000;
/// Pages around the one that was missing which are mapped with it, where the guest has them.
const AROUND: u64 = 4;
/// Pages that say nothing about an address space.
const FEW: usize = 16;
/// Bytes of the longest instruction.
const LONGEST: u64 = 15;

const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_WRITE;
const EXECUTE: i32 = libc::PROT_EXEC;

/// What a page is to be mapped for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Data,
    Fetch,
}

impl Cpu {
    /// Lets programs run in these helpers, which were made for the file of this processor's RAM. It takes as
    /// many of them as address spaces are to be remembered.
    pub fn run_directly_in(&mut self, helpers: Vec<Helper>, when: When) {
        // Where instructions are time, all of them have to be counted.
        let counts = self.platform.processors.clock != Clock::Host;
        if helpers.is_empty() || counts || check(self.platform.features).is_err() {
            return;
        }
        self.tlb.changes = Some(Box::new(Changes::default()));
        self.helpers = Some(Box::new(Helpers::new(helpers, when)));
    }

    /// Whether its programs run directly, where they can.
    pub fn runs_directly(&self) -> bool {
        self.helpers.is_some()
    }

    /// Chooses when the program that the kernel has just returned to runs directly.
    pub(crate) fn plan_direct(&mut self) {
        let root = self.root();
        self.direct_at = match &mut self.helpers {
            Some(helpers) if self.cpl == 3 => helpers.policy.plan(root, self.retired),
            _ => u64::MAX,
        };
        self.check_at = self.check_at.min(self.direct_at);
    }

    /// Where the page tables begin.
    fn root(&self) -> u64 {
        self.cr3 & PAGE_MASK
    }

    /// Whether the host would run the program as this processor does.
    fn fits_host(&self) -> bool {
        let flags = rflag::TF | rflag::IOPL | rflag::NT | rflag::RF | rflag::AC | rflag::VM;
        let data = [seg::DS, seg::ES, seg::FS, seg::GS];
        self.cpl == 3
            && self.code_size == CodeSize::Bits64
            && self.seg[seg::CS].selector == CODE
            && self.seg[seg::SS].selector == STACK
            && data
                .iter()
                .all(|number| matches!(self.seg[*number].selector, 0 | STACK))
            // The host lets no tracer set others.
            && self.seg_base[seg::FS] < END
            && self.seg_base[seg::GS] < END
            && self.rflags & (flags | rflag::IF) == rflag::IF
            && self.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cr4 & cr4::OSFXSR != 0
            && self.efer & efer::LMA != 0
            && self.profile.is_none()
            && !self.debug.watches_code()
            && !self.debug.watches_accesses()
            && !self.debug.is_pending()
    }

    /// Runs the program in a helper, if that is possible and until it stops.
    #[cold]
    pub(crate) fn run_directly(&mut self) {
        self.request_check();
        self.direct_at = self.retired + LATER;
        if !self.fits_host() {
            return;
        }
        let Some(mut helpers) = self.helpers.take() else {
            self.direct_at = u64::MAX;
            return;
        };
        let root = self.root();
        let begin = thread_time();
        let stop = self.run_in(&mut helpers);
        let cost = thread_time().saturating_sub(begin);
        let Spent { running, mapping } = std::mem::take(&mut helpers.spent);
        // An interrupt too early is not the program's fault.
        if !matches!(stop, Ok(Some(Stop::Interrupted))) {
            helpers.policy.learn(root, self.retired, running, cost + mapping);
        }
        let after_exception = helpers.policy.plan_after_exception(root, self.retired);
        let stop = match stop {
            Ok(stop) => {
                self.helpers = Some(helpers);
                stop
            }
            Err(error) => {
                self.tlb.changes = None;
                self.direct_at = u64::MAX;
                self.report(&format!("a helper for direct execution ({error})"));
                return;
            }
        };
        match stop {
            None => self.direct_at = self.direct_at.max(after_exception),
            Some(Stop::SystemCall) => {}
            // What came in is looked at first.
            Some(Stop::Interrupted) => self.direct_at = self.retired,
            Some(Stop::Exception {
                signal: libc::SIGTRAP,
                code: libc::TRAP_TRACE,
                ..
            }) => self.single_stepped(),
            // Which instruction it was is not known any more.
            Some(Stop::Beyond) => {
                let _ = self.undefined::<()>();
                self.deliver_fault();
            }
            Some(Stop::Exception { address, .. }) => {
                if let Some(changes) = &mut self.tlb.changes {
                    changes.found.push(address);
                }
                self.step();
                if self.cpl == 3 && self.direct_at != u64::MAX {
                    self.direct_at = after_exception.max(self.retired);
                }
            }
        }
    }

    /// `None` where it could not run.
    fn run_in(&mut self, helpers: &mut Helpers) -> io::Result<Option<Stop>> {
        let root = self.root();
        let Some(slot) = helpers.choose(root)? else {
            return Ok(None);
        };
        let before = slot.mirror.len();
        let runs = self.refresh(slot);
        // Nothing of what was mapped is still so: the process has ended, and another one has its page tables.
        if before >= FEW && slot.mirror.kept() * 8 < before {
            slot.clear()?;
            helpers.policy.renew(root, self.retired);
            return Ok(None);
        }
        if !runs {
            return Ok(None);
        }
        // From here on an interruption stops the helper.
        slot.helper.set_interruptible();
        self.mailbox.set_waiting(helpers.thread);
        let ran = self.enter(helpers);
        self.mailbox.set_waiting(0);
        Helper::set_none_interruptible();
        ran
    }

    fn enter(&mut self, helpers: &mut Helpers) -> io::Result<Option<Stop>> {
        let deadline = self.apic.deadline();
        let left = deadline.map_or(u64::MAX, |at| at.saturating_sub(self.now(0)));
        helpers.arm(deadline, left);
        let Some(slot) = helpers.choose(self.root())? else {
            return Ok(None);
        };
        let calls = slot.mirror.calls();
        for calls in calls.chunks(CALLS) {
            if slot.helper.call(calls).is_err() {
                // Too many mappings, or memory that the host does not have: from the start.
                slot.clear()?;
                return Ok(None);
            }
        }
        slot.set_traps()?;
        slot.stay_here();
        slot.helper.set_registers(&self.to_host())?;
        let vectors = self.vectors();
        slot.helper.set_vectors(&vectors, slot.vectors.as_ref())?;
        if self.mailbox.has_events() || left == 0 {
            slot.vectors = Some(vectors);
            return Ok(Some(Stop::Interrupted));
        }
        self.counters.direct_runs += 1;
        let begin = slot.helper.time();
        let stop = slot.helper.run()?;
        let end = slot.helper.time();
        let mut spent = Spent {
            running: end.saturating_sub(begin),
            mapping: begin.saturating_sub(slot.time),
        };
        slot.time = end;
        let registers = slot.helper.registers()?;
        slot.vectors = slot.helper.vectors()?;
        self.take_from_host(&registers, stop);
        let known = slot.vectors.is_some_and(|vectors| self.take_vectors(&vectors));
        if !known {
            helpers.spent = spent;
            return Ok(Some(Stop::Beyond));
        }
        // A program that goes back and forth to code which has to be interpreted, in a page that is mapped for
        // its data only, runs for less than the host takes for the exception.
        if matches!(stop, Stop::Exception { address, .. } if address == self.rip) && slot.holds(self.rip) {
            spent.running = Duration::ZERO;
        }
        helpers.spent = spent;
        Ok(Some(stop))
    }

    /// Plans what is to be mapped and unmapped before the program goes on. `false` where it cannot run.
    fn refresh(&mut self, slot: &mut Slot) -> bool {
        let Some(mut changes) = self.tlb.changes.take() else {
            return false;
        };
        if slot.flushes != changes.flushes {
            for addr in slot.mirror.addresses() {
                self.revalidate(slot, addr);
            }
        } else {
            for addr in &changes.dropped[slot.dropped.min(changes.dropped.len())..] {
                self.revalidate(slot, *addr);
            }
            if slot.watches != changes.watches {
                self.close_code(slot);
            }
        }
        slot.flushes = changes.flushes;
        slot.dropped = changes.dropped.len();
        slot.watches = changes.watches;
        for addr in changes.found.drain(..) {
            if (self.rip..self.rip + LONGEST).contains(&addr) {
                self.add(slot, addr, Need::Fetch);
            } else {
                self.add(slot, addr, Need::Data);
                self.add_around(slot, addr);
            }
        }
        self.tlb.changes = Some(changes);
        self.add(slot, self.rip, Need::Fetch);
        // The guest must not have a page where the helper has its own.
        let mut own = slot.helper.own().step_by(PAGE as usize);
        slot.executes(self.rip) && own.all(|page| !self.is_present(page))
    }

    /// Looks at a page again that may have changed. One that has is not mapped until it is needed: where
    /// another program took the place of the one that was mirrored, most are not.
    fn revalidate(&self, slot: &mut Slot, addr: u64) {
        let Some(before) = slot.mirror.get(addr) else {
            return;
        };
        let fetches = before.protection & EXECUTE != 0;
        // To look for instructions in all of them again, after each switch of address spaces, would cost most.
        if fetches && self.is_known(slot, addr, Need::Fetch) {
            return;
        }
        let need = if fetches { Need::Fetch } else { Need::Data };
        let now = self.wanted(&slot.helper, addr, need);
        slot.put(addr, now, false);
        let stays = slot.mirror.get(addr).is_some_and(|now| {
            now.offset == before.offset && now.protection & before.protection == before.protection
        });
        if !stays {
            slot.put(addr, None, false);
        }
    }

    /// Keeps programs from storing to pages of code unseen.
    fn close_code(&self, slot: &mut Slot) {
        for addr in slot.mirror.addresses() {
            if slot
                .mirror
                .get(addr)
                .is_some_and(|page| page.protection & WRITE != 0)
            {
                self.revalidate(slot, addr);
            }
        }
    }

    fn add(&self, slot: &mut Slot, addr: u64, need: Need) {
        if self.is_known(slot, addr, need) {
            return;
        }
        if let Some(page) = self.wanted(&slot.helper, addr, need) {
            slot.put(addr, Some(page), need == Need::Fetch);
        }
    }

    /// Whether the page at `addr` is mapped already, as well as it may be: to look for instructions in it again
    /// would cost much.
    fn is_known(&self, slot: &Slot, addr: u64, need: Need) -> bool {
        let (Some(before), Some(page)) = (slot.mirror.get(addr), self.peek(addr)) else {
            return false;
        };
        let enough = match need {
            Need::Fetch => page.executable && before.protection & EXECUTE != 0,
            Need::Data if page.writable => before.protection & WRITE != 0,
            Need::Data => before.protection & (EXECUTE | WRITE) != 0,
        };
        enough && self.ram.in_file(page.phys) == Some(before.offset)
    }

    fn add_around(&self, slot: &mut Slot, addr: u64) {
        let first = addr & !(AROUND * PAGE - 1);
        for addr in (0..AROUND).map(|n| first + n * PAGE) {
            if slot.mirror.get(addr).is_none() {
                self.add(slot, addr, Need::Data);
            }
        }
    }

    /// How the page at `addr` may be mapped now.
    fn wanted(&self, helper: &Helper, addr: u64, need: Need) -> Option<Wanted> {
        if !(FIRST..END).contains(&addr) || helper.own().contains(&addr) {
            return None;
        }
        let page = self.peek(addr)?;
        let offset = self.ram.in_file(page.phys)?;
        let runs = page.executable && (need == Need::Fetch || !page.writable);
        let stores = page.writable && self.ram.page(page.phys).is_some_and(|page| page.open(false));
        Some(Wanted {
            offset,
            data: if stores { READ | WRITE } else { READ },
            runs: if runs { self.places(addr, page.phys) } else { None },
        })
    }

    /// Where the page at `addr` has to be stopped, for its own instructions and those that it shares with its
    /// neighbours. `None` where it cannot run.
    fn places(&self, addr: u64, phys: u64) -> Option<Places> {
        let mut bytes = [0u8; BEFORE + PAGE as usize + AFTER];
        let (before, rest) = bytes.split_at_mut(BEFORE);
        let (page, after) = rest.split_at_mut(PAGE as usize);
        let start = addr & PAGE_MASK;
        if let Some(other) = self.peek(start.wrapping_sub(PAGE)) {
            self.ram.read(other.phys + PAGE - BEFORE as u64, before);
        }
        if let Some(other) = self.peek(start.wrapping_add(PAGE)) {
            self.ram.read(other.phys, after);
        }
        if !self.ram.read(phys & PAGE_MASK, page) {
            return None;
        }
        sensitive::find(&bytes, start.wrapping_sub(BEFORE as u64))
    }
}

/// The time that the calling thread has run for.
fn thread_time() -> Duration {
    time_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

impl Slot {
    /// Lets the helper run where the calling thread runs.
    fn stay_here(&mut self) {
        // SAFETY: has no preconditions.
        let processor = unsafe { libc::sched_getcpu() };
        if processor >= 0 && processor != self.processor {
            // Where it fails, things are slower.
            let _ = self.helper.stay_on(processor as usize);
            self.processor = processor;
        }
    }
}
