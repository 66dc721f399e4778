//! State that all processors of a machine share: their mailboxes, the clock, and the lock for split locks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::core::clock::Clock;
use crate::core::mailbox::{Mailbox, event, lock};

/// What all processors share but RAM.
pub(crate) struct Processors {
    mailboxes: Vec<Arc<Mailbox>>,
    split: Mutex<()>,
    /// What time follows.
    pub clock: Clock,
    start: Instant,
    /// Nanoseconds of the machine's time at `start`.
    origin: AtomicU64,
    /// Number of requests to watch stores so far.
    watch_requests: AtomicU64,
}

impl Processors {
    pub fn new(count: u32, clock: Clock) -> Processors {
        Processors {
            mailboxes: (0..count).map(|id| Arc::new(Mailbox::new(id))).collect(),
            split: Mutex::new(()),
            clock,
            start: Instant::now(),
            origin: AtomicU64::new(0),
            watch_requests: AtomicU64::new(0),
        }
    }

    /// Their number.
    pub fn count(&self) -> u32 {
        self.mailboxes.len() as u32
    }

    /// Whether there is more than one.
    pub fn is_shared(&self) -> bool {
        self.mailboxes.len() > 1
    }

    pub fn mailbox(&self, id: u32) -> Option<&Arc<Mailbox>> {
        self.mailboxes.get(id as usize)
    }

    /// All mailboxes, in order.
    pub fn mailboxes(&self) -> impl Iterator<Item = &Mailbox> {
        self.mailboxes.iter().map(|mailbox| &**mailbox)
    }

    fn others(&self, me: &Mailbox) -> impl Iterator<Item = &Mailbox> {
        let me = me.id;
        self.mailboxes().filter(move |mailbox| mailbox.id != me)
    }

    /// Time since the machine began, by the host's clock.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed() + Duration::from_nanos(self.origin.load(Ordering::Relaxed))
    }

    /// Lets the host's clock go on from `elapsed`.
    pub fn set_elapsed(&self, elapsed: Duration) {
        let origin = elapsed.saturating_sub(self.start.elapsed());
        self.origin.store(origin.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Instructions that all have retired, as far as they have shown.
    pub fn instructions(&self) -> u64 {
        self.mailboxes().map(Mailbox::retired).sum()
    }

    /// Makes processor `id` leave its loop soon; at once when it is not running.
    pub fn kick(&self, id: u32) {
        if let Some(mailbox) = self.mailbox(id) {
            mailbox.post(event::KICK);
        }
    }

    /// Asks all processors but one to watch their stores to pages of code from now on. Returns the request's
    /// number.
    pub fn watch_others(&self, me: &Mailbox) -> u64 {
        let request = self.watch_requests.fetch_add(1, Ordering::SeqCst) + 1;
        self.others(me).for_each(|mailbox| mailbox.post(event::WATCH));
        request
    }

    /// The number of the last request to watch stores.
    pub fn watch_requests(&self) -> u64 {
        self.watch_requests.load(Ordering::SeqCst)
    }

    /// Whether no processor but `me` runs an instruction before it has done the request.
    pub fn others_watch(&self, request: u64, me: &Mailbox) -> bool {
        self.others(me).all(|mailbox| mailbox.watches(request))
    }

    /// Held during a locked access that the host cannot do as one.
    pub fn split_lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.split)
    }
}
