//! Mailboxes: interrupts and requests from other threads to a processor.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::interruption;

/// Events of a mailbox.
pub(crate) mod event {
    /// Vectors are waiting in `requests`.
    pub const INTERRUPT: u32 = 1 << 0;
    /// `run` shall come back.
    pub const KICK: u32 = 1 << 1;
    /// A page began to hold code: stores to it have to be watched.
    pub const WATCH: u32 = 1 << 2;
    /// The first of those that the instruction set has of its own.
    pub const OWN: u32 = 1 << 8;
}

/// What waits in a mailbox, as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Pending {
    events: u32,
    requests: [u64; 4],
    argument: u32,
}

impl Pending {
    /// Whether there are no events but those of [`Mailbox::pending`] that are in `own` or interrupts.
    pub fn is_valid(&self, own: u32) -> bool {
        self.events & !(event::INTERRUPT | own) == 0
    }
}

/// What other threads have for one processor.
pub(crate) struct Mailbox {
    events: AtomicU32,
    /// Requested vectors, one bit each.
    requests: [AtomicU64; 4],
    /// What an event of the instruction set comes with.
    argument: AtomicU32,
    /// The processor's number.
    pub id: u32,
    /// Instructions retired, as of the last block that reached a device or ended a run.
    retired: AtomicU64,
    /// The processor runs instructions; where it does not, it takes its events before the next one.
    active: AtomicBool,
    /// The last of [`Processors::watch_others`](crate::core::processors::Processors::watch_others)'s requests
    /// that it has done.
    watched: AtomicU64,
    /// The thread that waits for something else than this mailbox, and is to be interrupted; 0 for none.
    waiting: AtomicI32,
    /// Held to sleep and to wake; a leaf.
    lock: Mutex<()>,
    wake: Condvar,
}

impl Mailbox {
    pub fn new(id: u32) -> Mailbox {
        Mailbox {
            events: AtomicU32::new(0),
            requests: Default::default(),
            argument: AtomicU32::new(0),
            id,
            retired: AtomicU64::new(0),
            active: AtomicBool::new(false),
            watched: AtomicU64::new(0),
            waiting: AtomicI32::new(0),
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
        match self.waiting.load(Ordering::SeqCst) {
            0 => {}
            thread => interruption::send(thread),
        }
    }

    /// Says which thread is to be interrupted when an event comes; 0 for none. Events are to be looked for
    /// after it was set.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn set_waiting(&self, thread: i32) {
        self.waiting.swap(thread, Ordering::SeqCst);
    }

    /// Requests an interrupt.
    pub fn interrupt(&self, vector: u8) {
        self.requests[vector as usize / 64].fetch_or(1 << (vector % 64), Ordering::SeqCst);
        self.post(event::INTERRUPT);
    }

    /// Leaves an event with an argument, which is the last one's where several come together.
    pub fn post_with(&self, event: u32, argument: u32) {
        self.argument.store(argument, Ordering::SeqCst);
        self.post(event);
    }

    /// Says that the processor is about to run instructions, or does so no longer. Events are to be taken
    /// after the former.
    pub fn set_active(&self, active: bool) {
        self.active.swap(active, Ordering::SeqCst);
    }

    /// Says that the stores to code are watched as
    /// [`Processors::watch_requests`](crate::core::processors::Processors::watch_requests) asked for before.
    pub fn set_watched(&self, request: u64) {
        self.watched.store(request, Ordering::SeqCst);
    }

    /// What waits of interrupts and of the instruction set's own events. Whether `run` shall come back, and
    /// what is about translations, belongs to this machine and not to the state of its guest.
    pub fn pending(&self) -> Pending {
        Pending {
            events: self.events.load(Ordering::SeqCst) & !(event::KICK | event::WATCH),
            requests: std::array::from_fn(|n| self.requests[n].load(Ordering::SeqCst)),
            argument: self.argument(),
        }
    }

    /// Lets the same wait here, in the place of what waited of it before.
    pub fn set_pending(&self, pending: &Pending) {
        let Pending {
            events,
            requests,
            argument,
        } = *pending;
        for (mine, new) in self.requests.iter().zip(requests) {
            mine.store(new, Ordering::SeqCst);
        }
        self.argument.store(argument, Ordering::SeqCst);
        self.events
            .fetch_and(event::KICK | event::WATCH, Ordering::SeqCst);
        self.post(events);
    }

    /// Takes all events.
    pub fn take(&self) -> u32 {
        self.events.swap(0, Ordering::SeqCst)
    }

    /// Takes the requested vectors.
    pub fn take_requests(&self) -> [u64; 4] {
        std::array::from_fn(|n| self.requests[n].swap(0, Ordering::SeqCst))
    }

    /// The argument of the last event that had one.
    pub fn argument(&self) -> u32 {
        self.argument.load(Ordering::SeqCst)
    }

    /// How many instructions have been retired, as others were shown last.
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Relaxed)
    }

    /// Whether the processor runs no instruction before it has done what [`Mailbox::set_watched`] is about.
    pub fn watches(&self, request: u64) -> bool {
        !self.active.load(Ordering::SeqCst) || self.watched.load(Ordering::SeqCst) >= request
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

/// Locks, whether a thread panicked with the lock or not: what is behind it is never half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
