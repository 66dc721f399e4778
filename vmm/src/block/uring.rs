//! Reads and flushes that the kernel works on while we do something else (io_uring).
//!
//! Writes do not come here: they go to the page cache, which takes them faster than a kernel thread can be asked to.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::{GuestMemoryBackend, Memory};

/// Requests under way at most. More parallelism than this no disk rewards, and the rings stay within two pages each.
pub const DEPTH: usize = 128;

/// Requests under way, each with a tag that comes back with its result.
pub struct Uring<T> {
    ring: IoUring,
    event: EventFd,
    flights: Vec<Option<Flight<T>>>,
    free: Vec<usize>,
}

/// One request under way.
struct Flight<T> {
    tag: T,
    fd: RawFd,
    /// `None` for a flush.
    read: Option<Read>,
}

/// What is left of a read.
struct Read {
    offset: u64,
    vectors: Vectors,
    /// Keeps mapped what the vectors point to.
    _memory: Memory,
}

/// Vectors into guest memory.
struct Vectors(Vec<libc::iovec>);

// SAFETY: the pointers are to guest memory that the flight's `Memory` keeps mapped, whatever thread holds them; only the
// kernel follows them.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Drops the first `count` bytes.
    fn advance(&mut self, mut count: usize) {
        let whole = self.0.iter().take_while(|vector| {
            let whole = vector.iov_len <= count;
            count -= if whole { vector.iov_len } else { 0 };
            whole
        });
        let whole = whole.count();
        self.0.drain(..whole);
        if let Some(first) = self.0.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
        }
    }
}

impl<T> Uring<T> {
    /// Rings for [`DEPTH`] requests.
    ///
    /// # Errors
    /// Where the kernel has no io_uring, or does not let us use it.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd_async(event.as_raw_fd())?;
        let flights = (0..DEPTH).map(|_| None).collect();
        Ok(Uring {
            ring,
            event,
            flights,
            free: (0..DEPTH).rev().collect(),
        })
    }

    /// Readable when requests have completed that [`submit`](Uring::submit) did not complete at once.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether another request can be taken.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.free.len() == DEPTH
    }

    /// Prepares to fill `buffers`, which must lie in `memory`, from `offset` of `file` on. The file must stay open until
    /// the request is done.
    ///
    /// # Errors
    /// `InvalidInput` when a buffer lies elsewhere, or there is no room.
    pub fn read(
        &mut self,
        file: &File,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        memory: &Memory,
        tag: T,
    ) -> io::Result<()> {
        if !buffers
            .iter()
            .all(|buffer| guest_address(memory, buffer).is_some())
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let vector = |buffer: &VolatileSlice<'_>| libc::iovec {
            iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
            iov_len: buffer.len(),
        };
        let vectors = Vectors(buffers.iter().map(vector).collect());
        let read = Read {
            offset,
            vectors,
            _memory: memory.clone(),
        };
        self.push(Flight {
            tag,
            fd: file.as_raw_fd(),
            read: Some(read),
        })
    }

    /// Prepares to make durable what was written to `file`, which must stay open until the request is done.
    ///
    /// # Errors
    /// `InvalidInput` when there is no room.
    pub fn flush(&mut self, file: &File, tag: T) -> io::Result<()> {
        self.push(Flight {
            tag,
            fd: file.as_raw_fd(),
            read: None,
        })
    }

    fn push(&mut self, flight: Flight<T>) -> io::Result<()> {
        let slot = self.free.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let entry = entry(&flight, slot);
        self.flights[slot] = Some(flight);
        // SAFETY: the vectors and what they point to stay where they are until the request completes: the flight owns
        // both, and is neither changed nor dropped before (see `reap` and `drop`).
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.flights[slot] = None;
            self.free.push(slot);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    /// Hands what was prepared to the kernel. What it can do without waiting is done when this returns.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Waits until something is done.
    pub fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: taking from it makes room.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends what is done to `done`. A read that gave less than it should is continued first.
    pub fn reap(&mut self, done: &mut Vec<(T, io::Result<()>)>) -> io::Result<()> {
        loop {
            let mut again = false;
            loop {
                let next = self.ring.completion().next();
                let Some(completion) = next else { break };
                let slot = completion.user_data() as usize;
                let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) else {
                    continue;
                };
                self.free.push(slot);
                match outcome(flight, completion.result()) {
                    Outcome::Done(tag, result) => done.push((tag, result)),
                    Outcome::Again(flight) => {
                        self.push(flight)?;
                        again = true;
                    }
                }
            }
            if !again {
                return Ok(());
            }
            self.submit()?;
        }
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while !self.is_idle() {
            if self.wait().and_then(|()| self.reap(&mut done)).is_err() {
                // The kernel may still write to these: they stay for good.
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
        }
    }
}

enum Outcome<T> {
    Done(T, io::Result<()>),
    Again(Flight<T>),
}

fn outcome<T>(mut flight: Flight<T>, result: i32) -> Outcome<T> {
    let Ok(count) = usize::try_from(result) else {
        let error = io::Error::from_raw_os_error(-result);
        return match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Outcome::Again(flight),
            _ => Outcome::Done(flight.tag, Err(error)),
        };
    };
    let Some(read) = &mut flight.read else {
        return Outcome::Done(flight.tag, Ok(()));
    };
    read.offset += count as u64;
    read.vectors.advance(count);
    match (read.vectors.0.is_empty(), count) {
        (true, _) => Outcome::Done(flight.tag, Ok(())),
        (false, 0) => Outcome::Done(flight.tag, Err(io::ErrorKind::UnexpectedEof.into())),
        (false, _) => Outcome::Again(flight),
    }
}

fn entry<T>(flight: &Flight<T>, slot: usize) -> squeue::Entry {
    let fd = types::Fd(flight.fd);
    let entry = match &flight.read {
        Some(Read {
            offset,
            vectors: Vectors(vectors),
            ..
        }) => opcode::Readv::new(fd, vectors.as_ptr(), vectors.len() as u32)
            .offset(*offset)
            .build(),
        None => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    };
    entry.user_data(slot as u64)
}

/// The guest-physical address of the start of `slice`; `None` when not all of it is in one region of `memory`.
pub fn guest_address(memory: &Memory, slice: &VolatileSlice<'_>) -> Option<u64> {
    use vm_memory::{Address, GuestMemoryRegion};
    let start = slice.ptr_guard().as_ptr() as usize;
    memory.iter().find_map(|region| {
        let offset = start.checked_sub(region.as_ptr() as usize)? as u64;
        let inside = offset.checked_add(slice.len() as u64)? <= region.len();
        inside.then(|| region.start_addr().raw_value() + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress, GuestMemoryMmap};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    fn memory() -> Memory {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 1 << 20)]).unwrap())
    }

    /// A ring, or nothing where this host has none: then the synchronous engine is all there is to test.
    fn ring() -> Option<Uring<u32>> {
        match Uring::new() {
            Ok(ring) => Some(ring),
            Err(error) => {
                eprintln!("skipped: no io_uring here: {error}");
                None
            }
        }
    }

    fn finish(ring: &mut Uring<u32>) -> Vec<(u32, io::Result<()>)> {
        let mut done = Vec::new();
        ring.submit().unwrap();
        while !ring.is_idle() {
            ring.wait().unwrap();
            ring.reap(&mut done).unwrap();
        }
        done.sort_by_key(|(tag, _)| *tag);
        done
    }

    #[test]
    fn reads_and_flushes_complete_with_their_tags() {
        let Some(mut ring) = ring() else { return };
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 253) as u8).collect();
        file.write_all_at(&data, 0).unwrap();
        for tag in 0..100u32 {
            let at = GuestAddress(0x1000 + u64::from(tag) * 1000);
            let (a, b) = memory.get_slice(at, 1000).unwrap().split_at(333).unwrap();
            ring.read(&file, u64::from(tag) * 1000, &[a, b], &memory, tag)
                .unwrap();
        }
        ring.flush(&file, 100).unwrap();
        let done = finish(&mut ring);
        assert_eq!(done.len(), 101);
        assert!(
            done.iter()
                .enumerate()
                .all(|(index, (tag, result))| *tag == index as u32 && result.is_ok())
        );
        let mut got = vec![0; 100_000];
        memory.read_slice(&mut got, GuestAddress(0x1000)).unwrap();
        assert_eq!(got, data);
    }

    #[test]
    fn the_end_of_the_file_and_foreign_buffers_are_errors() {
        let Some(mut ring) = ring() else { return };
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 10], 0).unwrap();
        let slice = memory.get_slice(GuestAddress(0x1000), 20).unwrap();
        ring.read(&file, 0, &[slice], &memory, 1).unwrap();
        let done = finish(&mut ring);
        assert_eq!(
            done[0].1.as_ref().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let mut own = [0; 20];
        assert!(
            ring.read(&file, 0, &[VolatileSlice::from(&mut own[..])], &memory, 2)
                .is_err()
        );
        assert!(ring.is_idle());
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let Some(mut ring) = ring() else { return };
        let file = tempfile::tempfile().unwrap();
        for tag in 0..DEPTH as u32 {
            ring.flush(&file, tag).unwrap();
        }
        assert!(!ring.has_room() && ring.flush(&file, 999).is_err());
        assert_eq!(finish(&mut ring).len(), DEPTH);
        assert!(ring.has_room());
    }
}
