//! Requests that are on their way to the file while more are taken: reads and writes whose bytes lie in one file go through a
//! ring of the kernel's; all others are served on the spot.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use virtio_bindings::virtio_blk as blk;
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::{Disk, QUEUE_SIZE, Refusal, Request, is_write_through};
use crate::block::uring::{Direction, MAX_BUFFERS, Ring};
use crate::event::EventSet;
use crate::limit::Pace;
use crate::memory::GuestMemoryMmap;
use crate::virtio::ring::{Broken, Chain, Ring as Queue};
use crate::virtio::worker::{Context, Wake};

/// Requests on their way at once: what a queue of small requests without indirect descriptors can hold.
const DEPTH: u16 = QUEUE_SIZE / 4;
/// Requests taken before the worker looks at its other events again; see `ring::MAX_CHAINS_PER_WAKEUP`.
const MAX_TAKEN: usize = 1024;

/// Before a wait that failed is tried again: there is no way on without what is on its way.
const RETRY: Duration = Duration::from_millis(1);

/// The requests of one queue that are on their way. All have landed before the service ends, which is what keeps file and guest
/// memory in place until then.
pub struct Flight {
    ring: Ring<Passenger>,
}

/// A request on its way.
struct Passenger {
    head: u16,
    request: Request<'static>,
    direction: Direction,
    /// Its place on the disk and its buffers, should the rest have to be done on the spot.
    offset: u64,
    data: Vec<VolatileSlice<'static>>,
    len: usize,
}

// SAFETY: its slices are of guest memory, which any thread may use: nobody holds references into it, only volatile accesses.
unsafe impl Send for Passenger {}

impl Flight {
    /// An empty one.
    ///
    /// # Errors
    /// Where there is no io_uring to be had; see [`Ring::new`].
    pub fn new() -> io::Result<Flight> {
        Ok(Flight {
            ring: Ring::new(DEPTH)?,
        })
    }

    /// Has the worker woken when requests land.
    pub(super) fn watch(&self, context: &mut Context) -> Result<(), Broken> {
        context
            .poller
            .add(self.ring.done(), EventSet::IN, Wake::Source(0))?;
        Ok(())
    }

    /// Takes what is available in the one queue, as far as there is room and `pace` allows, and gives back what has landed. `false`
    /// when the pace did not allow more, and the caller has to come back.
    pub(super) fn serve(&mut self, disk: &Disk, pace: &Pace, context: &mut Context) -> Result<bool, Broken> {
        let write_through = is_write_through(context.features);
        // Empty where a queue rang.
        let _ = self.ring.done().read();
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let (memory, queue): (&GuestMemoryMmap<()>, _) = (memory, &mut rings[0]);
        let mut left = MAX_TAKEN;
        let mut chain = Chain::default();
        let mut allowed = true;
        loop {
            self.land(disk, memory, queue)?;
            queue.queue.disable_notification(memory)?;
            while left > 0 && self.ring.has_room() {
                allowed = pace.wait().is_none();
                if !allowed || !queue.pop(memory, &mut chain)? {
                    break;
                }
                left -= 1;
                pace.take(chain.data_len());
                if let Some(len) = self.take(disk, &mut chain, write_through)? {
                    queue.push(memory, chain.head, len)?;
                }
            }
            self.ring.submit()?;
            if left == 0 {
                queue.doorbell.write(1)?;
                break;
            }
            // Where there is no room, the next one that lands brings us back.
            if !allowed || !self.ring.has_room() || !queue.queue.enable_notification(memory)? {
                break;
            }
        }
        // Pages that the host has in memory have come while they were asked for.
        self.land(disk, memory, queue)?;
        queue.notify(memory, &**interrupt)?;
        Ok(allowed)
    }

    /// Sends a request on its way, or serves it: then answers with the number of bytes written to the driver.
    fn take(
        &mut self,
        disk: &Disk,
        chain: &mut Chain<'_>,
        write_through: bool,
    ) -> Result<Option<u32>, Broken> {
        let request = Request::of(chain)?;
        let (direction, data) = match request.kind {
            blk::VIRTIO_BLK_T_IN => (Direction::Read, &chain.writable),
            blk::VIRTIO_BLK_T_OUT if !disk.read_only && !write_through => (Direction::Write, &chain.readable),
            _ => {
                let done = disk.carry_out(&request, chain, write_through);
                return Ok(Some(request.end(done)));
            }
        };
        let len = data.len();
        let offset = match disk.range(request.sector, len as u64) {
            Ok(offset) => offset,
            Err(refusal) => return Ok(Some(request.end(Err(refusal)))),
        };
        let place = disk.backend.direct(offset, len as u64);
        let Some((file, at)) = place.filter(|_| len > 0 && data.slices().len() <= MAX_BUFFERS) else {
            let done = disk.carry_out(&request, chain, write_through);
            return Ok(Some(request.end(done)));
        };
        let passenger = Passenger {
            head: chain.head,
            request: Request {
                status: request.status.map(lasting),
                ..request
            },
            direction,
            offset,
            data: data.slices().iter().copied().map(lasting).collect(),
            len,
        };
        // SAFETY: the file is the backend's, which this service holds, and the buffers are in guest memory, which the worker's context
        // holds; `land_all` is called before either is given away.
        match unsafe { self.ring.begin(direction, file, at, data.slices(), passenger) } {
            Ok(()) => Ok(None),
            Err(passenger) => Ok(Some(passenger.walk(disk))),
        }
    }

    /// Gives back what has landed. What was carried in part, or not at all, is done on the spot: it says best what is wrong.
    fn land(&mut self, disk: &Disk, memory: &GuestMemoryMmap<()>, queue: &mut Queue) -> Result<(), Broken> {
        while let Some((passenger, result)) = self.ring.ended() {
            let head = passenger.head;
            let len = if result.is_ok_and(|count| count == passenger.len) {
                passenger.arrive()
            } else {
                passenger.walk(disk)
            };
            queue.push(memory, head, len)?;
        }
        Ok(())
    }

    /// Waits for all that is on its way and gives it back.
    pub(super) fn land_all(&mut self, disk: &Disk, context: &mut Context) {
        let Context {
            memory,
            rings,
            interrupt,
            poller,
            ..
        } = context;
        let queue = &mut rings[0];
        while !self.ring.is_idle() {
            // A queue that was broken takes nothing back any more; its requests have to land all the same.
            let landed = self.ring.wait().map_err(Broken::from);
            if let Err(error) = landed.and_then(|()| self.land(disk, memory, queue)) {
                tracing::debug!("a request of a disk that stops was not given back: {error}");
                std::thread::sleep(RETRY);
            }
        }
        let _ = poller.remove(self.ring.done());
        if let Err(error) = queue.notify(memory, &**interrupt) {
            tracing::debug!("the driver of a disk that stops was not told: {error}");
        }
    }
}

impl Passenger {
    /// All of it was carried.
    fn arrive(self) -> u32 {
        let given = match self.direction {
            Direction::Read => self.len as u32,
            Direction::Write => 0,
        };
        self.request.end(Ok(given))
    }

    /// Does all of it without the ring.
    fn walk(self, disk: &Disk) -> u32 {
        let done = match self.direction {
            Direction::Read => disk.backend.read_at(self.offset, &self.data),
            Direction::Write => disk.backend.write_at(self.offset, &self.data),
        };
        match done {
            Ok(()) => self.arrive(),
            Err(error) => self.request.end(Err(Refusal::from(error))),
        }
    }
}

/// The same guest memory without a limit in time.
fn lasting(slice: VolatileSlice<'_>) -> VolatileSlice<'static> {
    // SAFETY: only lifetimes differ. The slice lies in guest memory, which the worker's context keeps mapped for as long as a
    // passenger exists: all have landed when the service ends.
    unsafe { std::mem::transmute(slice) }
}
