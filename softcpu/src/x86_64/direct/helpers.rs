//! The helpers of a processor, one for each of the address spaces that it used last, and what each holds.

use std::io;
use std::time::Duration;

use super::helper::Helper;
use super::mirror::{Mirror, Page};
use super::policy::{Policy, When};
use super::sensitive::{MOST, Places};
use super::vectors::Vectors;
use crate::core::interruption::{self, Timer};
use crate::core::page::PAGE_MASK;

/// Most pages that are mapped at once. Linux allows 65530 mappings (`vm.max_map_count`).
const PAGES: usize = 1 << 15;
/// A helper and what it holds.
pub(super) struct Slot {
    pub helper: Helper,
    pub mirror: Mirror,
    /// The root of the page tables that it mirrors.
    pub root: Option<u64>,
    /// How far it has followed [`Changes`](crate::core::changes::Changes).
    pub flushes: u64,
    pub dropped: usize,
    pub watches: u64,
    /// Its vector registers, where they are known.
    pub vectors: Option<Vectors>,
    /// How long it had run when that was last looked at.
    pub time: Duration,
    /// The host's processor that it stays on.
    pub processor: i32,
    /// Breakpoints by the page that they are for, the oldest first.
    traps: Vec<(u64, Places)>,
    /// Those that the helper has.
    set: Places,
    /// When it was used last.
    used: u64,
}

/// How a page may be mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Where it is in the file of guest RAM.
    pub offset: u64,
    /// Its protection where it does not run.
    pub data: i32,
    /// Whether it may run, and where it has to be stopped then.
    pub runs: Option<Places>,
}

/// What a try to run directly took of the host's time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// The program itself, in its helper.
    pub running: Duration,
    /// The helper, for its memory.
    pub mapping: Duration,
}

/// All of them.
pub(crate) struct Helpers {
    slots: Vec<Slot>,
    clock: u64,
    /// Makes a helper stop when the guest's timer is due.
    timer: Option<Timer>,
    /// What the timer is set to.
    armed: Option<u64>,
    /// The thread that drives them.
    pub(super) thread: i32,
    pub(super) policy: Policy,
    /// Of the last try.
    pub(super) spent: Spent,
}

impl Helpers {
    pub fn new(helpers: Vec<Helper>, when: When) -> Helpers {
        let slot = |helper: Helper| Slot {
            mirror: Mirror::new(helper.own()),
            helper,
            root: None,
            flushes: 0,
            dropped: 0,
            watches: 0,
            vectors: None,
            time: Duration::ZERO,
            processor: -1,
            traps: Vec::new(),
            set: Places::default(),
            used: 0,
        };
        Helpers {
            slots: helpers.into_iter().map(slot).collect(),
            clock: 0,
            timer: None,
            armed: None,
            thread: 0,
            policy: Policy::new(when),
            spent: Spent::default(),
        }
    }

    /// The helper for these page tables: the one that has them, or the one that was not used for longest.
    pub(super) fn choose(&mut self, root: u64) -> io::Result<Option<&mut Slot>> {
        if self.timer.is_none() {
            self.timer = Some(Timer::new()?);
            self.thread = interruption::this_thread();
        }
        self.clock += 1;
        let clock = self.clock;
        let found = self.slots.iter().position(|slot| slot.root == Some(root));
        let oldest = || {
            let all = self.slots.iter().enumerate();
            all.min_by_key(|(_, slot)| slot.used).map(|(index, _)| index)
        };
        let Some(index) = found.or_else(oldest) else {
            return Ok(None);
        };
        let slot = &mut self.slots[index];
        slot.helper.attach()?;
        slot.used = clock;
        if slot.root != Some(root) {
            slot.root = Some(root);
            slot.clear()?;
        }
        if slot.mirror.len() > PAGES {
            slot.clear()?;
        }
        Ok(Some(slot))
    }

    /// Lets helpers be stopped when the guest's timer is due: at `deadline`, which is `left` nanoseconds ahead.
    pub(super) fn arm(&mut self, deadline: Option<u64>, left: u64) {
        if deadline.is_some()
            && deadline != self.armed
            && let Some(timer) = &self.timer
        {
            timer.arm(left);
        }
        self.armed = deadline;
    }
}

impl Slot {
    /// Forgets everything.
    pub fn clear(&mut self) -> io::Result<()> {
        self.mirror.clear();
        self.traps.clear();
        self.vectors = None;
        self.helper.clear()
    }

    /// Whether the page at `addr` is mapped.
    pub fn holds(&self, addr: u64) -> bool {
        self.mirror.get(addr).is_some()
    }

    /// Whether the page at `addr` is mapped and may run.
    pub fn executes(&self, addr: u64) -> bool {
        let page = self.mirror.get(addr);
        page.is_some_and(|page| page.protection & libc::PROT_EXEC != 0)
    }

    /// Lets the page at `addr` be mapped as it is wanted, or not at all. Breakpoints that other pages need are
    /// taken from them where this page is `needed` now.
    pub fn put(&mut self, addr: u64, wanted: Option<Wanted>, needed: bool) {
        let at = addr & PAGE_MASK;
        self.traps.retain(|(page, _)| *page != at);
        let page = wanted.map(|wanted| Page {
            offset: wanted.offset,
            protection: match wanted.runs {
                Some(places) if self.watch(at, places, needed) => libc::PROT_READ | libc::PROT_EXEC,
                _ => wanted.data,
            },
        });
        self.mirror.set(at, page);
    }

    /// Whether there are breakpoints for the page at `at`.
    fn watch(&mut self, at: u64, places: Places, needed: bool) -> bool {
        if places.len() == 0 {
            return true;
        }
        if !self.helper.has_breakpoints() {
            return false;
        }
        let taken = |traps: &[(u64, Places)]| traps.iter().map(|(_, places)| places.len()).sum::<usize>();
        while taken(&self.traps) + places.len() > MOST {
            if !needed {
                return false;
            }
            let (other, _) = self.traps.remove(0);
            if let Some(page) = self.mirror.get(other) {
                let protection = page.protection & !libc::PROT_EXEC;
                self.mirror.set(other, Some(Page { protection, ..page }));
            }
        }
        self.traps.push((at, places));
        true
    }

    /// Gives the helper its breakpoints.
    pub fn set_traps(&mut self) -> io::Result<()> {
        let mut all: Vec<_> = self
            .traps
            .iter()
            .flat_map(|(_, places)| places.as_slice())
            .collect();
        all.sort_unstable();
        // `watch` let no more in than there is room for.
        let wanted = all
            .into_iter()
            .fold(Places::default(), |all, at| all.and(*at).unwrap_or(all));
        if wanted != self.set {
            self.helper.set_breakpoints(wanted.as_slice())?;
            self.set = wanted;
        }
        Ok(())
    }
}
