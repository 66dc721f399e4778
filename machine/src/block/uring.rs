//! Reads and writes of files through io_uring (io_uring(7)): many in flight at once, without a thread for
//! each.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Buffers of one transfer at most: what the kernel takes (UIO_MAXIOV).
pub(crate) const MAX_BUFFERS: usize = 1024;

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a file into buffers.
    Read,
    /// From buffers to a file.
    Write,
}

/// A ring of the kernel's for transfers between files and guest memory; each carries a `T` of the caller's.
///
/// The kernel checks the operations of a ring by other means than those of threads: a ring is a way around
/// the list of system calls of the thread that uses it. So this one can read and write open files, and
/// nothing else can ever be asked of it (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10).
pub struct Ring<T> {
    ring: IoUring,
    done: EventFd,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

struct Slot<T> {
    /// Kept from one transfer to the next.
    vectors: Vec<libc::iovec>,
    /// `Some` while the transfer is in flight.
    with: Option<T>,
}

// SAFETY: the vectors' pointers are to guest memory, which any thread may use; nobody reads through them but
// the kernel.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    /// A ring for `depth` transfers at once.
    ///
    /// # Errors
    /// Where the kernel has no io_uring, or lets this process have none (`kernel.io_uring_disabled`, a list
    /// of system calls).
    pub fn new(depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .dontfork()
            .build(depth.into())?;
        let done = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_eventfd(done.as_raw_fd())?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
        ])?;
        submitter.register_enable_rings()?;
        let slot = || Slot {
            vectors: Vec::new(),
            with: None,
        };
        Ok(Ring {
            ring,
            done,
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..usize::from(depth)).collect(),
        })
    }

    /// Becomes readable when transfers have ended.
    pub fn done(&self) -> &EventFd {
        &self.done
    }

    /// Whether one more transfer can be begun.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Begins a transfer between `file` from `offset` on and all of `buffers`, [`MAX_BUFFERS`] at most. It is
    /// in flight after the next [`submit`](Ring::submit).
    ///
    /// # Errors
    /// Gives `with` back when there is no room.
    ///
    /// # Safety
    /// The file must stay open and the buffers mapped until the transfer has ended.
    pub unsafe fn begin(
        &mut self,
        direction: Direction,
        file: BorrowedFd<'_>,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        with: T,
    ) -> Result<(), T> {
        let Some(&number) = self.free.last().filter(|_| buffers.len() <= MAX_BUFFERS) else {
            return Err(with);
        };
        let slot = &mut self.slots[number];
        slot.vectors.clear();
        slot.vectors.extend(buffers.iter().map(|buffer| libc::iovec {
            iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
            iov_len: buffer.len(),
        }));
        let (file, vectors) = (types::Fd(file.as_raw_fd()), slot.vectors.as_ptr());
        let count = slot.vectors.len() as u32;
        let entry = match direction {
            Direction::Read => opcode::Readv::new(file, vectors, count).offset(offset).build(),
            Direction::Write => opcode::Writev::new(file, vectors, count).offset(offset).build(),
        };
        // SAFETY: the vectors belong to the slot, which is not touched before the transfer has ended; for
        // file and buffers the caller answers.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(number as u64)) };
        if pushed.is_err() {
            return Err(with);
        }
        slot.with = Some(with);
        self.free.pop();
        Ok(())
    }

    /// Hands what was begun to the kernel.
    ///
    /// # Errors
    /// What `io_uring_enter(2)` says; what was not taken is tried again with the next call.
    pub fn submit(&self) -> io::Result<()> {
        self.enter(0)
    }

    /// Hands over what was begun and waits until one transfer has ended.
    pub fn wait(&self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel wants its completions to be taken first, or has no memory at this moment.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes one transfer that has ended: what it carried, and the number of bytes or the kernel's error.
    pub fn ended(&mut self) -> Option<(T, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let number = entry.user_data() as usize;
        let with = self.slots.get_mut(number)?.with.take()?;
        self.free.push(number);
        let result =
            usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((with, result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    /// A ring; `None`, and a word on it, where the kernel gives none.
    fn ring<T>(depth: u16) -> Option<Ring<T>> {
        Ring::new(depth)
            .inspect_err(|error| eprintln!("no io_uring here ({error}): this test shows nothing"))
            .ok()
    }

    fn all<T>(ring: &mut Ring<T>) -> Vec<(T, io::Result<usize>)> {
        let mut all = Vec::new();
        while !ring.is_idle() {
            ring.wait().unwrap();
            while let Some(ended) = ring.ended() {
                all.push(ended);
            }
        }
        all
    }

    #[test]
    fn transfers_complete_with_their_data() {
        let file = tempfile::tempfile().unwrap();
        let Some(mut ring) = ring(4) else { return };
        let mut parts: Vec<Vec<u8>> = (1..=4u8).map(|n| vec![n; 3000]).collect();
        for (n, part) in parts.iter_mut().enumerate() {
            let buffer = [VolatileSlice::from(&mut part[..])];
            // SAFETY: file and parts outlive the transfers, which `all` waits for.
            let begun = unsafe { ring.begin(Direction::Write, file.as_fd(), n as u64 * 3000, &buffer, n) };
            assert_eq!(begun, Ok(()));
        }
        assert!(!ring.has_room());
        // SAFETY: nothing is begun.
        let refused = unsafe { ring.begin(Direction::Write, file.as_fd(), 0, &[], 9) };
        assert_eq!(refused, Err(9));
        let mut ended = all(&mut ring);
        ended.sort_by_key(|(n, _)| *n);
        for (n, (with, result)) in ended.into_iter().enumerate() {
            assert_eq!((with, result.unwrap()), (n, 3000));
        }
        assert!(ring.done().read().is_ok());
        let mut content = vec![0; 12000];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(content, parts.concat());
        // Into two buffers, and over the end of the file.
        let (mut front, mut back) = (vec![0; 1000], vec![0; 5000]);
        let buffers = [
            VolatileSlice::from(&mut front[..]),
            VolatileSlice::from(&mut back[..]),
        ];
        // SAFETY: as above.
        let begun = unsafe { ring.begin(Direction::Read, file.as_fd(), 8000, &buffers, 7) };
        assert_eq!(begun, Ok(()));
        assert_eq!(all(&mut ring).remove(0).1.unwrap(), 4000);
        assert_eq!([front, back].concat()[..4000], content[8000..]);
    }

    #[test]
    fn an_error_belongs_to_its_transfer() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let Some(mut ring) = ring(1) else { return };
        let mut bytes = *b"x";
        let buffer = [VolatileSlice::from(&mut bytes[..])];
        // SAFETY: both ends and the byte outlive the transfer. A pipe's end for reading cannot be written.
        let begun = unsafe { ring.begin(Direction::Write, reader.as_fd(), 0, &buffer, ()) };
        assert_eq!(begun, Ok(()));
        assert_eq!(
            all(&mut ring).remove(0).1.unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_ring_does_nothing_but_transfers() {
        let Some(mut ring) = ring::<()>(1) else { return };
        let null = std::fs::File::open("/dev/null").unwrap();
        let entry = opcode::Fsync::new(types::Fd(null.as_raw_fd())).build();
        // SAFETY: the operation has no buffers.
        unsafe { ring.ring.submission().push(&entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        let result = ring.ring.completion().next().unwrap().result();
        assert_eq!(result, -libc::EACCES);
        assert!(ring.ring.submitter().unregister_eventfd().is_err());
    }
}
