//! Requests that wait for space on the host, as with QEMU's `werror=enospc`: a write for which the host's
//! file system has no space is neither lost nor failed. The request is kept, its queue serves no other, and
//! it is retried on demand.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::request::{Request, RequestError};
use crate::event::{EventSet, Poller};
use crate::memory::Memory;
use crate::virtio::ring::{Chain, QueueError};
use crate::virtio::worker::{Context, Wake};

/// The descriptor that a worker watches for retries; 0 is the ring's.
pub(super) const RETRY: u32 = 1;

/// What a disk reports.
#[derive(Debug)]
pub enum SpaceEvent<'a> {
    /// A request has met this error and waits, or waits again.
    Exhausted(&'a io::Error),
    /// No request waits any more.
    Available,
}

/// Takes the reports of one disk. Called on a worker's thread, which must not be kept.
pub type SpaceReport = Box<dyn Fn(SpaceEvent<'_>) + Send + Sync>;

/// Watches over the requests of one disk that wait for space. Clones watch the same disk.
#[derive(Clone)]
pub struct SpaceMonitor(Arc<Shared>);

struct Shared {
    /// Requests that wait, over all queues. Held while `report` is called, so that reports come in order.
    waiting: Mutex<usize>,
    report: SpaceReport,
    /// One for each queue.
    retries: Mutex<Vec<EventFd>>,
    /// The machine ends: waiting requests fail.
    abandoned: AtomicBool,
}

impl SpaceMonitor {
    /// A monitor that reports to `report`.
    pub fn new(report: SpaceReport) -> SpaceMonitor {
        SpaceMonitor(Arc::new(Shared {
            waiting: Mutex::new(0),
            report,
            retries: Mutex::default(),
            abandoned: AtomicBool::new(false),
        }))
    }

    /// Has the requests that wait carried out again, now. What fails again is reported again.
    pub fn retry(&self) {
        for retry in self.retries().iter() {
            // The counter can only be full when it is readable, which is all that is wanted.
            let _ = retry.write(1);
        }
    }

    /// The machine ends: a worker that waits on its thread gives up.
    pub fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::SeqCst);
        self.retry();
    }

    fn is_abandoned(&self) -> bool {
        self.0.abandoned.load(Ordering::SeqCst)
    }

    fn retries(&self) -> MutexGuard<'_, Vec<EventFd>> {
        self.0.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self, more: usize, error: &io::Error) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting += more;
        (self.0.report)(SpaceEvent::Exhausted(error));
    }

    fn done(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting -= count;
        if *waiting == 0 {
            (self.0.report)(SpaceEvent::Available);
        }
    }
}

/// A request that was taken from its queue and is not done.
pub(super) struct Waiting {
    queue: usize,
    request: Request<'static>,
    chain: Chain<'static>,
    write_through: bool,
}

// SAFETY: its slices are of guest memory, which any thread may use: nobody holds references into it. Accesses
// are volatile, or a processor's (`softcpu::core::ram_access`).
unsafe impl Send for Waiting {}

/// The requests of one worker that wait.
pub(super) struct WaitList {
    monitor: SpaceMonitor,
    retry: EventFd,
    requests: Vec<Waiting>,
    /// How many of them the monitor knows of.
    counted: usize,
    /// Keeps guest memory mapped while a request points into it; dropped after them.
    memory: Option<Memory>,
    /// In step with the processor the worker itself waits: time stands still meanwhile.
    pub in_step: bool,
}

impl WaitList {
    /// An empty list; `None` when the host has no descriptor left.
    pub fn new(monitor: &SpaceMonitor) -> io::Result<WaitList> {
        let retry = EventFd::new(EFD_NONBLOCK)?;
        monitor.retries().push(retry.try_clone()?);
        Ok(WaitList {
            monitor: monitor.clone(),
            retry,
            requests: Vec::new(),
            counted: 0,
            memory: None,
            in_step: false,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Has the worker woken for retries. What waited when the device was paused is tried at once.
    pub fn watch(&self, poller: &Poller<Wake>) -> Result<(), QueueError> {
        poller.add(&self.retry, EventSet::IN, Wake::Source(RETRY))?;
        if !self.is_empty() {
            self.retry.write(1)?;
        }
        Ok(())
    }

    /// Ends [`watch`](WaitList::watch). The requests stay: a paused device goes on with them.
    pub fn unwatch(&self, poller: &Poller<Wake>) {
        let _ = poller.remove(&self.retry);
    }

    /// The driver has reset the device, or it is broken: no answer can be given any more.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.memory = None;
        self.monitor.done(std::mem::take(&mut self.counted));
    }

    /// Keeps a request that has met `error`. `memory` is what its buffers are in.
    pub fn keep(
        &mut self,
        memory: &Memory,
        queue: usize,
        request: Request<'_>,
        chain: Chain<'_>,
        write_through: bool,
        error: &io::Error,
    ) {
        // SAFETY: only lifetimes differ. The slices are of `memory`, which is kept as long as the requests
        // are.
        let (request, chain) = unsafe {
            (
                std::mem::transmute::<Request<'_>, Request<'static>>(request),
                std::mem::transmute::<Chain<'_>, Chain<'static>>(chain),
            )
        };
        self.memory = Some(Arc::clone(memory));
        self.requests.push(Waiting {
            queue,
            request,
            chain,
            write_through,
        });
        self.counted += 1;
        self.monitor.waits(1, error);
    }

    /// Waits on this thread until the request is done, for a worker in step with the processor. What is given
    /// up is an error.
    pub fn wait_here(
        &self,
        disk: &Disk,
        request: &Request<'_>,
        chain: &Chain<'_>,
        write_through: bool,
        error: io::Error,
    ) -> Result<u32, RequestError> {
        self.monitor.waits(1, &error);
        let done = loop {
            if self.wait_for_retry().is_err() {
                break Err(RequestError::Io);
            }
            match disk.carry_out(request, chain, write_through) {
                _ if self.monitor.is_abandoned() => break Err(RequestError::Io),
                Err(RequestError::NoSpace(error)) => self.monitor.waits(0, &error),
                done => break done,
            }
        };
        self.monitor.done(1);
        done
    }

    fn wait_for_retry(&self) -> io::Result<()> {
        let poller = Poller::<u64>::new()?;
        poller.add(&self.retry, EventSet::IN, 0)?;
        let mut ready = Vec::new();
        while ready.is_empty() {
            poller.wait(&mut ready, None)?;
        }
        let _ = self.retry.read();
        Ok(())
    }

    /// Carries out again what waits, and gives back what is done. `true` when nothing waits any more.
    pub fn retry(&mut self, disk: &Disk, context: &mut Context) -> Result<bool, QueueError> {
        let _ = self.retry.read();
        let mut kept = Vec::new();
        let mut done = 0;
        let mut full = None;
        for waiting in std::mem::take(&mut self.requests) {
            if full.is_some() {
                kept.push(waiting);
                continue;
            }
            match disk.carry_out(&waiting.request, &waiting.chain, waiting.write_through) {
                Err(RequestError::NoSpace(error)) => {
                    full = Some(error);
                    kept.push(waiting);
                }
                result => {
                    let Waiting {
                        queue,
                        request,
                        chain,
                        ..
                    } = waiting;
                    let len = request.end(result);
                    context.rings[queue].push(&context.memory, chain.head, len)?;
                    done += 1;
                }
            }
        }
        self.requests = kept;
        for ring in &mut context.rings {
            if done > 0 && ring.queue.ready() {
                ring.notify(&context.memory, &*context.interrupt)?;
            }
        }
        self.counted -= done;
        self.monitor.done(done);
        match full {
            Some(error) => self.monitor.waits(0, &error),
            None => self.memory = None,
        }
        Ok(self.is_empty())
    }
}
