//! Several requests of a queue in flight at once: reads and writes whose bytes lie in one
//! file go through a ring of the kernel's; all others are served synchronously.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use virtio_bindings::virtio_blk as blk;
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::QUEUE_SIZE;
use super::disk::Disk;
use super::request::{Finish, Request, is_write_through};
use super::waiting::WaitList;
use crate::block::uring::{Direction, MAX_BUFFERS, Ring};
use crate::event::EventSet;
use crate::limit::RateLimiter;
use crate::memory::GuestMemoryMmap;
use crate::virtio::ring::{Chain, QueueError, Ring as Queue, Segments};
use crate::virtio::worker::{Context, Wake};

/// Requests in flight at once: what a queue of small requests without indirect descriptors can hold.
const DEPTH: u16 = QUEUE_SIZE / 4;
/// Requests taken before the worker looks at its other events again; see `ring::MAX_CHAINS_PER_WAKEUP`.
const MAX_TAKEN: usize = 1024;

/// Before a wait that failed is tried again: nothing can go on before what is in flight completes.
const RETRY: Duration = Duration::from_millis(1);

/// The requests of one queue that are in flight. All have completed before the service ends, which is what
/// keeps file and guest memory in place until then.
pub struct AsyncIo {
    ring: Ring<InFlightRequest>,
}

/// A request in flight.
struct InFlightRequest {
    head: u16,
    request: Request<'static>,
    direction: Direction,
    /// Its buffers, in case the rest has to be done synchronously.
    data: Vec<VolatileSlice<'static>>,
    len: usize,
}

// SAFETY: its slices are of guest memory, which any thread may use: nobody holds references into it. Accesses
// are volatile, or a processor's (`softcpu::core::ram_access`).
unsafe impl Send for InFlightRequest {}

impl AsyncIo {
    /// An empty one.
    ///
    /// # Errors
    /// Where io_uring is not available; see [`Ring::new`].
    pub fn new() -> io::Result<AsyncIo> {
        Ok(AsyncIo {
            ring: Ring::new(DEPTH)?,
        })
    }

    /// Has the worker woken when requests land.
    pub(super) fn watch(&self, context: &mut Context) -> Result<(), QueueError> {
        context
            .poller
            .add(self.ring.done(), EventSet::IN, Wake::Source(0))?;
        Ok(())
    }

    /// Takes what is available in the one queue, as far as there is room and `limiter` allows, and gives back
    /// what has completed. `false` when the limit did not allow more, or a request waits for space, and the
    /// caller has to come back.
    pub(super) fn serve(
        &mut self,
        disk: &Disk,
        waiting: &mut Option<WaitList>,
        limiter: &RateLimiter,
        context: &mut Context,
    ) -> Result<bool, QueueError> {
        let write_through = is_write_through(context.features);
        // Empty where a queue rang.
        let _ = self.ring.done().read();
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let (memory, queue) = (&*memory, &mut rings[0]);
        let ram: &GuestMemoryMmap<()> = memory;
        let finish = &mut Finish {
            disk,
            waiting,
            memory,
            queue: 0,
        };
        let mut left = MAX_TAKEN;
        let mut chain = Chain::default();
        let mut allowed = true;
        loop {
            self.reap(finish, queue)?;
            queue.queue.disable_notification(ram)?;
            while left > 0 && self.ring.has_room() {
                allowed = !finish.waits() && limiter.wait().is_none();
                if !allowed || !queue.pop(memory, &mut chain)? {
                    break;
                }
                left -= 1;
                limiter.take(chain.data_len());
                if let Some(len) = self.take(finish, &mut chain, write_through)? {
                    queue.push(memory, chain.head, len)?;
                }
            }
            self.ring.submit()?;
            allowed &= !finish.waits();
            if left == 0 {
                queue.doorbell.write(1)?;
                break;
            }
            // Where there is no room, the next completion wakes the worker.
            if !allowed || !self.ring.has_room() || !queue.queue.enable_notification(ram)? {
                break;
            }
        }
        // Pages that the host has in memory have come while they were asked for.
        self.reap(finish, queue)?;
        queue.notify(memory, &**interrupt)?;
        Ok(allowed && !finish.waits())
    }

    /// Submits a request, or serves it: then returns the number of bytes written to the driver,
    /// unless it waits.
    fn take(
        &mut self,
        finish: &mut Finish<'_>,
        chain: &mut Chain<'_>,
        write_through: bool,
    ) -> Result<Option<u32>, QueueError> {
        let disk = finish.disk;
        let request = Request::of(chain)?;
        let (direction, data) = match request.kind {
            blk::VIRTIO_BLK_T_IN => (Direction::Read, &chain.writable),
            blk::VIRTIO_BLK_T_OUT if !disk.read_only && !write_through => (Direction::Write, &chain.readable),
            _ => return Ok(finish.request(request, chain, write_through)),
        };
        let len = data.len();
        let offset = match disk.range(request.sector, len as u64) {
            Ok(offset) => offset,
            Err(refusal) => return Ok(Some(request.end(Err(refusal)))),
        };
        let place = disk.backend.direct(offset, len as u64);
        let Some((file, at)) = place.filter(|_| len > 0 && data.slices().len() <= MAX_BUFFERS) else {
            return Ok(finish.request(request, chain, write_through));
        };
        let in_flight = InFlightRequest {
            head: chain.head,
            request: Request {
                status: request.status.map(lasting),
                ..request
            },
            direction,
            data: data.slices().iter().copied().map(lasting).collect(),
            len,
        };
        // SAFETY: the file is the backend's, which this service holds, and the buffers are in guest memory,
        // which the worker's context holds; `drain` is called before either is given away.
        match unsafe { self.ring.begin(direction, file, at, data.slices(), in_flight) } {
            Ok(()) => Ok(None),
            Err(in_flight) => Ok(in_flight.complete_sync(finish)),
        }
    }

    /// Gives back what has completed. What was done in part, or not at all, is done synchronously: it says
    /// best what is wrong.
    fn reap(&mut self, finish: &mut Finish<'_>, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some((in_flight, result)) = self.ring.ended() {
            let head = in_flight.head;
            let len = if result.is_ok_and(|count| count == in_flight.len) {
                Some(in_flight.complete())
            } else {
                in_flight.complete_sync(finish)
            };
            if let Some(len) = len {
                queue.push(finish.memory, head, len)?;
            }
        }
        Ok(())
    }

    /// Waits for all that is in flight and gives it back.
    pub(super) fn drain(&mut self, disk: &Disk, waiting: &mut Option<WaitList>, context: &mut Context) {
        let Context {
            memory,
            rings,
            interrupt,
            poller,
            ..
        } = context;
        let (memory, queue) = (&*memory, &mut rings[0]);
        let finish = &mut Finish {
            disk,
            waiting,
            memory,
            queue: 0,
        };
        while !self.ring.is_idle() {
            // A queue that was broken takes nothing back any more; its requests have to land all the same.
            let completed = self.ring.wait().map_err(QueueError::from);
            if let Err(error) = completed.and_then(|()| self.reap(finish, queue)) {
                tracing::debug!("a request of a disk that stops was not given back: {error}");
                std::thread::sleep(RETRY);
            }
        }
        let _ = poller.remove(self.ring.done());
        if let Err(error) = queue.notify(memory, &**interrupt) {
            tracing::debug!("the driver of a disk that stops was not notified: {error}");
        }
    }
}

impl InFlightRequest {
    /// All of it was carried.
    fn complete(self) -> u32 {
        let given = match self.direction {
            Direction::Read => self.len as u32,
            Direction::Write => 0,
        };
        self.request.end(Ok(given))
    }

    /// Does all of it without the ring. `None` when it waits for space.
    fn complete_sync(self, finish: &mut Finish<'_>) -> Option<u32> {
        let InFlightRequest {
            head,
            request,
            direction,
            data,
            ..
        } = self;
        let mut chain = Chain {
            head,
            ..Chain::default()
        };
        let data = data.into_iter().fold(Segments::default(), |mut all, slice| {
            all.push(slice);
            all
        });
        match direction {
            Direction::Read => chain.writable = data,
            Direction::Write => chain.readable = data,
        }
        // Only those that need not be durable at once are submitted.
        finish.request(request, &mut chain, false)
    }
}

/// The same guest memory without a limit in time.
fn lasting(slice: VolatileSlice<'_>) -> VolatileSlice<'static> {
    // SAFETY: only lifetimes differ. The slice lies in guest memory, which the worker's context keeps mapped
    // for as long as a request is in flight: all have completed when the service ends.
    unsafe { std::mem::transmute(slice) }
}
