//! The service of a disk's queues: takes requests while the limits allow and none waits for space.

use std::cell::Cell;
use std::time::Duration;

use virtio_queue::QueueT;

use super::disk::Disk;
use super::request::{Finish, Request, is_write_through};
use super::waiting::WaitList;
use super::{AsyncIo, waiting};
use crate::event::EventSet;
use crate::limit::RateLimiter;
use crate::virtio::ring::QueueError;
use crate::virtio::worker::{Context, Service};

/// Serves the requests of a queue: one after the other, or with a ring as many at once as it holds.
pub(super) struct Server {
    pub(super) disk: Disk,
    pub(super) ring: Option<AsyncIo>,
    pub(super) limiter: RateLimiter,
    /// Whether requests wait for the rate limit, or for those in `waiting`.
    pub(super) held: bool,
    /// Requests that wait for space; `None` lets them fail.
    pub(super) waiting: Option<WaitList>,
}
impl Service for Server {
    const BATCH_SCHEDULED: bool = true;

    fn begin(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if let Some(waiting) = &self.waiting {
            waiting.watch(&context.poller)?;
        }
        self.ring.as_ref().map_or(Ok(()), |ring| ring.watch(context))
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        let served = self.serve(context, index);
        self.forget_if_broken(served)
    }

    fn timeout(&mut self) -> Option<Duration> {
        (self.held && !self.waits()).then(|| self.limiter.wait().unwrap_or_default())
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if self.held && !self.waits() && self.limiter.wait().is_none() {
            return self.queue(context, 0);
        }
        Ok(())
    }

    fn source(&mut self, context: &mut Context, id: u32, _events: EventSet) -> Result<(), QueueError> {
        if id == waiting::RETRY {
            let retried = self.retry(context);
            return self.forget_if_broken(retried);
        }
        match self.ring {
            Some(_) => self.queue(context, 0),
            None => Ok(()),
        }
    }

    fn end(&mut self, context: &mut Context) {
        // A start of the device rings every doorbell.
        self.held = false;
        if let Some(ring) = &mut self.ring {
            ring.drain(&self.disk, &mut self.waiting, context);
        }
        if let Some(waiting) = &self.waiting {
            waiting.unwatch(&context.poller);
        }
    }
}

impl Server {
    /// Serves what is available in a queue, unless a request waits.
    fn serve(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        if self.ring.is_none() && self.waits() {
            self.held = true;
            return Ok(());
        }
        let Server {
            disk,
            ring,
            limiter,
            held,
            waiting,
        } = self;
        if let Some(ring) = ring {
            *held = !ring.serve(disk, waiting, limiter, context)?;
            return Ok(());
        }
        let write_through = is_write_through(context.features);
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let memory = &*memory;
        let mut finish = Finish {
            disk,
            waiting,
            memory,
            queue: index,
        };
        let full = Cell::new(false);
        let may = || !full.get() && limiter.wait().is_none();
        let all = rings[index].drain_while(memory, &**interrupt, may, |chain| {
            limiter.take(chain.data_len());
            let request = Request::of(chain)?;
            let len = finish.request(request, chain, write_through);
            full.set(len.is_none());
            Ok(len)
        })?;
        *held = !all;
        Ok(())
    }

    /// Whether a request waits for space.
    pub(super) fn waits(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.is_empty())
    }

    /// Carries out again what waits, and goes on with the queues when nothing waits any more.
    fn retry(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        if waiting.retry(&self.disk, context)? && std::mem::take(&mut self.held) {
            for index in 0..context.rings.len() {
                if context.rings[index].queue.ready() {
                    self.serve(context, index)?;
                }
            }
        }
        Ok(())
    }

    /// Drops what waits: the driver has reset the device.
    pub(super) fn forget(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.clear();
        }
    }

    /// The same when the driver has broken its queues: nothing could be given back to it.
    fn forget_if_broken(&mut self, served: Result<(), QueueError>) -> Result<(), QueueError> {
        served.inspect_err(|_| self.forget())
    }
}
