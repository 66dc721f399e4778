//! What processors share with each other and with devices: mailboxes for interrupts and requests, and the
//! one clock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::core::clock::Clock;

/// Events of a mailbox.
pub(crate) mod event {
    /// Vectors are waiting in `requests`.
    pub const INTERRUPT: u32 = 1 << 0;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 1 << 1;
    /// INIT.
    pub const INIT: u32 = 1 << 2;
    /// A startup IPI; its vector is in `startup`.
    pub const STARTUP: u32 = 1 << 3;
    /// `run` shall come back.
    pub const KICK: u32 = 1 << 4;
    /// A page began to hold code: stores to it have to be watched.
    pub const WATCH: u32 = 1 << 5;
}

/// What other threads have for one processor.
pub(crate) struct Mailbox {
    events: AtomicU32,
    /// Requested vectors, one bit each.
    requests: [AtomicU64; 4],
    startup: AtomicU32,
    /// APIC id.
    pub id: u32,
    /// Logical destination register, so that senders can match it.
    pub ldr: AtomicU32,
    /// Logical destinations are flat rather than clusters.
    pub flat: AtomicBool,
    /// The APIC is in x2APIC mode.
    pub x2apic: AtomicBool,
    /// Instructions retired, as of the last block that reached a device or ended a run.
    retired: AtomicU64,
    /// The processor runs instructions; where it does not, it takes its events before the next one.
    active: AtomicBool,
    /// The last of [`Platform::watch_others`]'s requests that it has done.
    watched: AtomicU64,
    /// Held to sleep and to wake; a leaf.
    lock: Mutex<()>,
    wake: Condvar,
}

impl Mailbox {
    pub fn new(id: u32) -> Mailbox {
        Mailbox {
            events: AtomicU32::new(0),
            requests: Default::default(),
            startup: AtomicU32::new(0),
            id,
            ldr: AtomicU32::new(0),
            flat: AtomicBool::new(true),
            x2apic: AtomicBool::new(false),
            retired: AtomicU64::new(0),
            active: AtomicBool::new(false),
            watched: AtomicU64::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Whether anything waits. Looked at before every block.
    #[inline(always)]
    pub fn has_events(&self) -> bool {
        self.events.load(Ordering::Relaxed) != 0
    }

    /// Tells others how many instructions have been retired.
    pub fn publish(&self, retired: u64) {
        self.retired.store(retired, Ordering::Relaxed);
    }

    /// Leaves an event and wakes the processor.
    pub fn post(&self, event: u32) {
        self.events.fetch_or(event, Ordering::SeqCst);
        drop(lock(&self.lock));
        self.wake.notify_all();
    }

    /// Requests an interrupt.
    pub fn interrupt(&self, vector: u8) {
        self.requests[vector as usize / 64].fetch_or(1 << (vector % 64), Ordering::SeqCst);
        self.post(event::INTERRUPT);
    }

    pub fn start(&self, vector: u8) {
        self.startup.store(vector as u32, Ordering::SeqCst);
        self.post(event::STARTUP);
    }

    /// Says that the processor is about to run instructions, or does so no longer. Events are to be taken after the former.
    pub fn set_active(&self, active: bool) {
        self.active.swap(active, Ordering::SeqCst);
    }

    /// Says that the stores to code are watched as [`Platform::watch_requests`] asked for before.
    pub fn set_watched(&self, request: u64) {
        self.watched.store(request, Ordering::SeqCst);
    }

    /// Takes all events.
    pub fn take(&self) -> u32 {
        self.events.swap(0, Ordering::SeqCst)
    }

    /// Takes the requested vectors.
    pub fn take_requests(&self) -> [u64; 4] {
        std::array::from_fn(|n| self.requests[n].swap(0, Ordering::SeqCst))
    }

    pub fn startup_vector(&self) -> u8 {
        self.startup.load(Ordering::SeqCst) as u8
    }

    /// Sleeps until an event comes, or for `limit`.
    pub fn sleep(&self, limit: Option<Duration>) {
        self.set_active(false);
        self.sleep_inactive(limit);
        self.set_active(true);
    }

    fn sleep_inactive(&self, limit: Option<Duration>) {
        let mut held = lock(&self.lock);
        while !self.has_events() {
            match limit {
                None => held = self.wake.wait(held).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    drop(
                        self.wake
                            .wait_timeout(held, limit)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                    return;
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An interrupt message as an IOAPIC entry, an MSI or an interrupt command holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination APIC id, or a set of them where `logical`.
    pub destination: u32,
    /// The destination is matched with logical destination registers.
    pub logical: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority, 4 NMI, 5 INIT, 6 startup.
    pub mode: u8,
    /// The vector.
    pub vector: u8,
}

/// Called with the vector at each end of interrupt of a level-triggered one.
pub type EndOfInterrupt = Box<dyn Fn(u8) + Send + Sync>;

/// The machine's processors as a whole. Interrupt messages enter here from any thread.
pub struct Platform {
    mailboxes: Vec<Arc<Mailbox>>,
    split: Mutex<()>,
    pub(crate) clock: Clock,
    pub(crate) start: std::time::Instant,
    /// Next processor to take a lowest-priority message.
    turn: AtomicU32,
    /// Number of requests to watch stores so far.
    watch_requests: AtomicU64,
    eoi: OnceLock<EndOfInterrupt>,
}

impl Platform {
    /// Makes the shared part of `cpus` processors.
    pub fn new(cpus: u32, clock: Clock) -> Arc<Platform> {
        Arc::new(Platform {
            mailboxes: (0..cpus).map(|id| Arc::new(Mailbox::new(id))).collect(),
            split: Mutex::new(()),
            clock,
            start: std::time::Instant::now(),
            turn: AtomicU32::new(0),
            watch_requests: AtomicU64::new(0),
            eoi: OnceLock::new(),
        })
    }

    /// Number of processors.
    pub fn cpus(&self) -> u32 {
        self.mailboxes.len() as u32
    }

    /// Instructions that all processors have retired, HLT not waited for. Each is counted up to the start of the block in
    /// which it last reached a device, or to its last return from [`Cpu::run`](crate::Cpu::run).
    pub fn instructions(&self) -> u64 {
        self.mailboxes
            .iter()
            .map(|mailbox| mailbox.retired.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.mailboxes.len() > 1
    }

    pub(crate) fn mailbox(&self, id: u32) -> Option<&Arc<Mailbox>> {
        self.mailboxes.get(id as usize)
    }

    /// Registers who hears of ends of interrupts. The first call counts.
    pub fn on_end_of_interrupt(&self, callback: EndOfInterrupt) {
        let _ = self.eoi.set(callback);
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(callback) = self.eoi.get() {
            callback(vector);
        }
    }

    /// Makes [`Cpu::run`](crate::Cpu::run) of processor `id` come back soon; at once when it is not running.
    pub fn kick(&self, id: u32) {
        if let Some(mailbox) = self.mailbox(id) {
            mailbox.post(event::KICK);
        }
    }

    /// Delivers an interrupt message.
    pub fn deliver(&self, message: Message) {
        let matching = self.mailboxes.iter().filter(|mailbox| matches(mailbox, message));
        if message.mode == 1 {
            let all: Vec<_> = matching.collect();
            if !all.is_empty() {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
                all[turn % all.len()].interrupt(message.vector);
            }
            return;
        }
        for mailbox in matching {
            send(mailbox, message.mode, message.vector);
        }
    }

    /// Delivers an MSI write: `addr` and `data` as the device stores them (Intel SDM vol. 3, 11.11).
    pub fn deliver_msi(&self, addr: u64, data: u32) {
        self.deliver(Message {
            destination: (addr >> 12 & 0xff) as u32,
            logical: addr & 4 != 0,
            mode: (data >> 8 & 7) as u8,
            vector: data as u8,
        });
    }

    /// An IPI by shorthand: to all, but not to `except`.
    pub(crate) fn broadcast(&self, except: Option<u32>, mode: u8, vector: u8) {
        for mailbox in self.mailboxes.iter().filter(|mailbox| Some(mailbox.id) != except) {
            send(mailbox, mode, vector);
        }
    }

    /// Asks all processors but one to watch their stores to pages of code from now on. Answers the request's number.
    pub(crate) fn watch_others(&self, me: &Mailbox) -> u64 {
        let request = self.watch_requests.fetch_add(1, Ordering::SeqCst) + 1;
        for mailbox in self.mailboxes.iter().filter(|mailbox| mailbox.id != me.id) {
            mailbox.post(event::WATCH);
        }
        request
    }

    /// The number of the last request to watch stores.
    pub(crate) fn watch_requests(&self) -> u64 {
        self.watch_requests.load(Ordering::SeqCst)
    }

    /// Whether no processor but `me` runs an instruction before it has done the request.
    pub(crate) fn others_watch(&self, request: u64, me: &Mailbox) -> bool {
        let mut others = self.mailboxes.iter().filter(|mailbox| mailbox.id != me.id);
        others.all(|mailbox| {
            !mailbox.active.load(Ordering::SeqCst) || mailbox.watched.load(Ordering::SeqCst) >= request
        })
    }

    /// Held during a locked access that the host cannot do as one.
    pub(crate) fn split_lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.split)
    }
}

fn send(mailbox: &Mailbox, mode: u8, vector: u8) {
    match mode {
        0 | 1 => mailbox.interrupt(vector),
        4 => mailbox.post(event::NMI),
        5 => mailbox.post(event::INIT),
        6 => mailbox.start(vector),
        _ => {}
    }
}

/// Whether a message is for this processor (Intel SDM vol. 3, 11.6.2).
fn matches(mailbox: &Mailbox, message: Message) -> bool {
    let x2apic = mailbox.x2apic.load(Ordering::Relaxed);
    let to = message.destination;
    if to == u32::MAX || (to == 0xff && (!x2apic || !message.logical)) {
        return true;
    }
    if !message.logical {
        return mailbox.id == to;
    }
    let ldr = mailbox.ldr.load(Ordering::Relaxed);
    if x2apic {
        return ldr >> 16 == to >> 16 && ldr & to & 0xffff != 0;
    }
    let mine = ldr >> 24;
    if mailbox.flat.load(Ordering::Relaxed) {
        mine & to != 0
    } else {
        mine >> 4 == to >> 4 && mine & to & 0xf != 0
    }
}
