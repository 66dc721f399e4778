//! Split virtqueues from the device's side: descriptor chains, checked before a device sees them (VIRTIO 1.3
//! §2.7).

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::DeviceInterrupt;
use crate::memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap};

/// Chains served in one go before the worker looks at its other events again. A driver that refills its ring
/// as fast as it is emptied must not keep the worker from hearing that it should stop.
const MAX_CHAINS_PER_WAKEUP: usize = 1024;

/// How a driver broke its queue. The device is beyond use until the driver resets it.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum QueueError {
    /// the available ring is out of order: {0}
    Ring(#[from] virtio_queue::Error),
    /// the descriptor chain at {head} loops, is cut short or leaves its table
    Chain {
        /// First descriptor.
        head: u16,
    },
    /// the descriptor chain at {head} has a device-readable buffer after a device-writable one
    Order {
        /// First descriptor.
        head: u16,
    },
    /// the buffer at {address:#x}+{len:#x} is not in guest memory
    Buffer {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// the request does not have the form that the device defines: {0}
    Request(&'static str),
    /// {0}
    Host(#[from] std::io::Error),
}

/// Guest buffers in order, as if they were one.
#[derive(Debug, Default, Clone)]
pub struct Segments<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Segments<'m> {
    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Appends a buffer.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        self.len += slice.len();
        self.slices.push(slice);
    }

    fn clear(&mut self) {
        self.slices.clear();
        self.len = 0;
    }

    /// Copies as much as there is from `offset` on into `to`, and returns how much that was.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        self.walk(offset, to.len(), |part| done += part.copy_to(&mut to[done..]));
        done
    }

    /// Copies as much of `from` as fits to `offset`, and returns how much that was.
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        let mut done = 0;
        self.walk(offset, from.len(), |part| {
            let len = part.len();
            part.copy_from(&from[done..done + len]);
            done += len;
        });
        done
    }

    /// Calls `visit` with the parts of `[offset, offset + len)` that exist, in order.
    fn walk(&self, mut offset: usize, mut len: usize, mut visit: impl FnMut(VolatileSlice<'m>)) {
        for slice in &self.slices {
            if len == 0 {
                return;
            }
            if offset >= slice.len() {
                offset -= slice.len();
                continue;
            }
            let part = len.min(slice.len() - offset);
            if let Ok(part) = slice.subslice(offset, part) {
                visit(part);
            }
            (offset, len) = (0, len - part);
        }
    }

    /// The first part of `[offset, offset + len)` that is contiguous in the host; `None` beyond the end.
    pub fn part(&self, offset: usize, len: usize) -> Option<VolatileSlice<'m>> {
        let mut found = None;
        self.walk(offset, len, |part| {
            found.get_or_insert(part);
        });
        found
    }

    /// Removes the first `count` bytes.
    pub fn skip(&mut self, mut count: usize) {
        count = count.min(self.len);
        self.len -= count;
        let whole = self.slices.iter().take_while(|slice| {
            let whole = slice.len() <= count;
            count -= if whole { slice.len() } else { 0 };
            whole
        });
        let whole = whole.count();
        self.slices.drain(..whole);
        if let Some(first) = self.slices.first_mut()
            && let Ok(rest) = first.offset(count)
        {
            *first = rest;
        }
    }

    /// Keeps the first `count` bytes.
    pub fn truncate(&mut self, count: usize) {
        while self.len > count {
            let Some(last) = self.slices.pop() else { return };
            self.len -= last.len();
            if self.len < count
                && let Ok(part) = last.subslice(0, count - self.len)
            {
                self.push(part);
            }
        }
    }
}

/// One request: what the device may read, then what it may write. Reused from one request to the next, so
/// that serving a queue allocates nothing.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// Names the chain in the used ring.
    pub head: u16,
    /// From the driver.
    pub readable: Segments<'m>,
    /// To the driver.
    pub writable: Segments<'m>,
}

/// One queue with its doorbell, owned by the worker that serves it.
pub struct Ring {
    /// The queue.
    pub queue: Queue,
    /// What the driver rings.
    pub doorbell: EventFd,
    /// Number of the queue in its device.
    pub index: u16,
}

impl Ring {
    /// Queue number `index` of its device.
    pub fn new(queue: Queue, doorbell: EventFd, index: u16) -> Ring {
        Ring {
            queue,
            doorbell,
            index,
        }
    }

    /// Takes the next available chain into `chain`; `false` when there is none.
    ///
    /// # Errors
    /// When the ring or the chain breaks the rules; see [`QueueError`].
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap<()>,
        chain: &mut Chain<'m>,
    ) -> Result<bool, QueueError> {
        let Some(descriptors) = self.queue.iter(memory)?.next() else {
            return Ok(false);
        };
        chain.readable.clear();
        chain.writable.clear();
        chain.head = descriptors.head_index();
        let head = chain.head;
        let mut count = 0;
        // The iterator ends silently where a chain is broken; only a last descriptor without NEXT ends it
        // well.
        let mut complete = false;
        for descriptor in descriptors {
            count += 1;
            if count > self.queue.size() {
                return Err(QueueError::Chain { head });
            }
            let segments = match (descriptor.is_write_only(), chain.writable.slices.is_empty()) {
                (true, _) => &mut chain.writable,
                (false, true) => &mut chain.readable,
                (false, false) => return Err(QueueError::Order { head }),
            };
            let (address, len) = (descriptor.addr(), descriptor.len());
            for slice in GuestMemoryBackend::get_slices(memory, address, len as usize) {
                segments.push(slice.map_err(|_| QueueError::Buffer {
                    address: address.0,
                    len,
                })?);
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(true)
        } else {
            Err(QueueError::Chain { head })
        }
    }

    /// Gives the chain back to the driver with `len` bytes written.
    pub fn push(&mut self, memory: &GuestMemoryMmap<()>, head: u16, len: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(memory, head, len)?)
    }

    /// Interrupts the driver if it asked to be notified of what was used since the last call.
    pub(crate) fn notify(
        &mut self,
        memory: &GuestMemoryMmap<()>,
        interrupt: &dyn DeviceInterrupt,
    ) -> Result<(), QueueError> {
        if self.queue.needs_notification(memory)? {
            interrupt.queue(self.index)?;
        }
        Ok(())
    }

    /// Serves what is available: `serve` returns the number of bytes that it wrote into the chain. Ends with
    /// the doorbell armed, or rung again when there is more than one go may take.
    pub fn drain<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap<()>,
        interrupt: &dyn DeviceInterrupt,
        mut serve: impl FnMut(&mut Chain<'m>) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        self.drain_while(memory, interrupt, || true, |chain| serve(chain).map(Some))
            .map(drop)
    }

    /// As [`drain`](Ring::drain), but takes the next chain only if `may` allows it. `false` when it did not:
    /// there may be more, the doorbell is not armed, and the caller has to come back. A chain for which
    /// `serve` returns `None` is kept by the caller, which gives it back later.
    pub(crate) fn drain_while<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap<()>,
        interrupt: &dyn DeviceInterrupt,
        mut may: impl FnMut() -> bool,
        mut serve: impl FnMut(&mut Chain<'m>) -> Result<Option<u32>, QueueError>,
    ) -> Result<bool, QueueError> {
        let mut chain = Chain::default();
        let mut left = MAX_CHAINS_PER_WAKEUP;
        let mut allowed = true;
        loop {
            self.queue.disable_notification(memory)?;
            while left > 0 {
                allowed = may();
                if !allowed || !self.pop(memory, &mut chain)? {
                    break;
                }
                if let Some(len) = serve(&mut chain)? {
                    self.push(memory, chain.head, len)?;
                }
                left -= 1;
            }
            if !allowed {
                break;
            }
            if left == 0 {
                self.doorbell.write(1)?;
                break;
            }
            if !self.queue.enable_notification(memory)? {
                break;
            }
        }
        if left < MAX_CHAINS_PER_WAKEUP {
            self.notify(memory, interrupt)?;
        }
        Ok(allowed)
    }

    /// Leaves the chain that was popped last available: the next [`pop`](Ring::pop) gives it again.
    pub(crate) fn undo_pop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Whether the driver has made something available that is not taken yet.
    pub(crate) fn has_available(&self, memory: &GuestMemoryMmap<()>) -> bool {
        // The index lies two bytes into the ring, which was checked to be in memory when the queue was
        // enabled.
        let index = memory.read_obj::<u16>(crate::memory::GuestAddress(self.queue.avail_ring() + 2));
        index.is_ok_and(|index| u16::from_le(index) != self.queue.next_avail())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::memory::GuestAddress;

    /// Where the parts of the test's queue lie.
    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const BUFFER: u64 = 0x4000;
    const SIZE: u16 = 16;

    /// Counts how often the driver is notified.
    #[derive(Default)]
    struct Notified(AtomicU32);

    impl DeviceInterrupt for Notified {
        fn queue(&self, _index: u16) -> std::io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn config(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn needs_reset(&self, why: &dyn std::fmt::Display) {
            panic!("the queue is in order: {why}");
        }
    }

    fn ring() -> (GuestMemoryMmap<()>, Ring) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let doorbell = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        (memory, Ring::new(queue, doorbell, 0))
    }

    /// Makes a request of one byte available, as the driver would.
    fn ask(memory: &GuestMemoryMmap<()>) {
        let index: u16 = memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        let head = index % SIZE;
        let descriptor = DESCRIPTORS + 16 * u64::from(head);
        memory.write_obj(BUFFER, GuestAddress(descriptor)).unwrap();
        memory.write_obj(1u64, GuestAddress(descriptor + 8)).unwrap();
        let entry = AVAILABLE + 4 + 2 * u64::from(head);
        memory.write_obj(head, GuestAddress(entry)).unwrap();
        memory.write_obj(index + 1, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    #[test]
    fn a_driver_is_notified_once_of_all_that_it_asked_for() {
        let (memory, mut ring) = ring();
        let (notified, mut served) = (Notified::default(), 0);
        let serve = |_: &mut Chain<'_>| {
            served += 1;
            // While the second is served the driver asks for one more.
            if served == 2 {
                ask(&memory);
            }
            Ok(0)
        };
        ask(&memory);
        ask(&memory);
        ring.drain(&memory, &notified, serve).unwrap();
        assert_eq!((served, notified.0.load(Ordering::Relaxed)), (3, 1));
        ring.drain(&memory, &notified, |_| panic!("there is no more"))
            .unwrap();
        assert_eq!(notified.0.into_inner(), 1);
    }

    fn segments(memory: &GuestMemoryMmap<()>) -> Segments<'_> {
        let mut segments = Segments::default();
        for (address, len) in [(0u64, 3usize), (0x100, 4), (0x200, 5)] {
            segments.push(GuestMemoryBackend::get_slice(memory, GuestAddress(address), len).unwrap());
        }
        segments
    }

    #[test]
    fn scattered_buffers_read_and_write_as_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let all = segments(&memory);
        assert_eq!(all.write(0, b"abcdefghijklmnop"), 12);
        let mut got = [0; 6];
        assert_eq!(all.read(2, &mut got), 6);
        assert_eq!(&got, b"cdefgh");
        assert_eq!(all.read(12, &mut got), 0);
        assert_eq!(all.read(10, &mut got), 2);
    }

    #[test]
    fn cutting_keeps_the_middle() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let whole = segments(&memory);
        whole.write(0, b"abcdefghijkl");
        for skip in 0..=13 {
            for keep in 0..=13 {
                let mut part = whole.clone();
                part.skip(skip);
                part.truncate(keep);
                let expected: Vec<u8> = b"abcdefghijkl".iter().copied().skip(skip).take(keep).collect();
                let mut got = vec![0; part.len()];
                part.read(0, &mut got);
                assert_eq!(got, expected, "skip {skip} keep {keep}");
            }
        }
    }
}
