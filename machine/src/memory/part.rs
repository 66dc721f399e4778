//! A part of a file, and how it gets into guest RAM: copied, or mapped copy-on-write where page alignment
//! allows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::{Memory, PAGE, backed, host_page};

/// Bytes that one read of headers fetches ahead: an ELF header with its program headers, or a whole note
/// segment.
const WINDOW: usize = PAGE as usize;

/// How a part gets into guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Its whole pages are mapped from the file, copy-on-write: nothing is read before the guest touches it.
    /// For an accelerator that reaches guest RAM through this process's own page tables.
    #[default]
    Map,
    /// It is read. A mapped page has 4 KiB; hardware that translates guest-physical addresses by tables of
    /// its own takes a fault in those tables and one in the host's for each, and has no large page for the
    /// rest of the 2 MiB around it: for a kernel and an initramfs of 60 MiB 15,000 faults, which cost more
    /// than the copy.
    Copy,
}

/// A range of a file: a kernel or an initramfs, alone in its file or inside an AMI.
#[derive(Debug, Clone)]
pub struct Part {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    len: u64,
    placement: Placement,
    placed: Arc<Placed>,
}

/// What of a part went into guest RAM, and how.
#[derive(Debug, Default)]
struct Placed {
    mapped: AtomicU64,
    copied: AtomicU64,
}

/// Why a file part cannot be used.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum PartError {
    /// {path}: {source}
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// {path} ends at byte {file_len}, but {len} bytes are wanted from byte {offset}; the file is truncated
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        file_len: u64,
        /// First byte wanted.
        offset: u64,
        /// Number of bytes wanted.
        len: u64,
    },
}

impl Part {
    /// Bytes `offset..offset + len` of `file`, which is `file_len` bytes long; `path` is for messages. A file
    /// that shrinks while a machine runs on it ends that machine with SIGBUS.
    pub fn new(
        file: Arc<File>,
        file_len: u64,
        path: impl Into<PathBuf>,
        offset: u64,
        len: u64,
    ) -> Result<Self, PartError> {
        let path = path.into();
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(PartError::Truncated {
                path,
                file_len,
                offset,
                len,
            });
        }
        Ok(Part {
            file,
            path,
            offset,
            len,
            placement: Placement::default(),
            placed: Arc::default(),
        })
    }

    /// The whole file at `path`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PartError> {
        let path = path.into();
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((len, file)) => Ok(Part {
                file: Arc::new(file),
                path,
                offset: 0,
                len,
                placement: Placement::default(),
                placed: Arc::default(),
            }),
            Err(source) => Err(PartError::Io { path, source }),
        }
    }

    /// The same part, to be placed this way.
    pub fn placed_by(&self, placement: Placement) -> Part {
        Part {
            placement,
            ..self.clone()
        }
    }

    /// Its `len` bytes from `offset` on, as a part of their own. What is placed of them counts for both.
    ///
    /// # Errors
    /// When it is shorter.
    pub fn slice(&self, offset: u64, len: u64) -> Result<Part, PartError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(PartError::Truncated {
                path: self.path.clone(),
                file_len: self.len,
                offset,
                len,
            });
        }
        Ok(Part {
            offset: self.offset + offset,
            len,
            ..self.clone()
        })
    }

    /// The file that it is a part of.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that were mapped into guest RAM so far, and bytes that were copied there.
    pub fn placed(&self) -> (u64, u64) {
        (self.placed.mapped.load(Relaxed), self.placed.copied.load(Relaxed))
    }

    /// All of it, in the host's memory.
    pub fn read(&self) -> Result<Vec<u8>, PartError> {
        let mut bytes = vec![0; self.len as usize];
        match self.file.read_exact_at(&mut bytes, self.offset) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(PartError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Has the host read `len` bytes from `offset` on into its page cache, in the background.
    pub(super) fn read_ahead(&self, offset: u64, len: u64) {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return;
        }
        let (file, offset) = (self.file.as_raw_fd(), self.offset + offset);
        // SAFETY: the call takes no pointers. It fails for what is no file on a disk, which needs no reading.
        unsafe {
            libc::posix_fadvise(
                file,
                offset as libc::off_t,
                len as libc::off_t,
                libc::POSIX_FADV_WILLNEED,
            )
        };
    }

    /// A reader at its start that places what is read into `memory`.
    pub fn reader<'a>(&'a self, memory: &'a Memory) -> PartReader<'a> {
        PartReader {
            part: self,
            memory,
            position: 0,
            window: [0; WINDOW],
            window_start: u64::MAX,
        }
    }

    /// Puts all of it at guest-physical address `at`.
    pub fn place(&self, memory: &Memory, at: u64) -> Result<(), PartError> {
        let len = self.len as usize;
        memory
            .read_exact_volatile_from(GuestAddress(at), &mut self.reader(memory), len)
            .map_err(|error| PartError::Io {
                path: self.path.clone(),
                source: io::Error::other(error),
            })
    }
}

/// Reads a [`Part`] from front to back with seeking. Small reads come from a window of one page, so that a
/// loader which reads headers field by field costs few system calls; reads into guest RAM follow the part's
/// [`Placement`].
pub struct PartReader<'a> {
    part: &'a Part,
    memory: &'a Memory,
    position: u64,
    window: [u8; WINDOW],
    /// Part offset of the first byte in `window`; `u64::MAX` when it holds nothing.
    window_start: u64,
}

impl PartReader<'_> {
    fn remaining(&self) -> u64 {
        self.part.len.saturating_sub(self.position)
    }

    /// Replaces the whole pages of `[host, host + len)` by the file's, private to this process, and returns
    /// how many bytes that covers: a multiple of the page size, 0 where alignment does not allow any.
    fn map(&self, host: *mut u8, len: usize) -> io::Result<usize> {
        let page = host_page();
        let whole = len - len % page as usize;
        let offset = self.part.offset + self.position;
        if self.part.placement == Placement::Copy
            || whole == 0
            || !offset.is_multiple_of(page)
            || !(host as u64).is_multiple_of(page)
        {
            return Ok(0);
        }
        let inside = self.memory.iter().any(|region| {
            let start = region.as_ptr() as usize;
            let end = start + region.size();
            (start..end).contains(&(host as usize)) && whole <= end - host as usize
        });
        if !inside {
            return Ok(0);
        }
        // SAFETY: the range lies inside one guest RAM mapping of ours (checked above), which stays mapped,
        // readable and writable throughout; nobody holds references into guest RAM: accesses are volatile, or
        // a processor's (`softcpu::core::ram_access`). MAP_PRIVATE keeps the guest's writes out of the file.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.part.file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        backed::note(host, whole);
        Ok(whole)
    }

    /// Copies up to `len` bytes to `host`.
    fn copy(&self, host: *mut u8, len: usize) -> io::Result<usize> {
        // SAFETY: the caller owns `len` writable bytes at `host` for the length of this call.
        let count = unsafe {
            libc::pread(
                self.part.file.as_raw_fd(),
                host.cast(),
                len,
                (self.part.offset + self.position) as libc::off_t,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl ReadVolatile for PartReader<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let len = buf
            .len()
            .min(usize::try_from(self.remaining()).unwrap_or(usize::MAX));
        let guard = buf.ptr_guard_mut();
        let mut done = self
            .map(guard.as_ptr(), len)
            .map_err(VolatileMemoryError::IOError)?;
        self.position += done as u64;
        self.part.placed.mapped.fetch_add(done as u64, Relaxed);
        while done < len {
            // SAFETY: `done < len <= buf.len()`: the result is inside the slice.
            let rest = unsafe { guard.as_ptr().add(done) };
            match self.copy(rest, len - done) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    self.position += count as u64;
                    self.part.placed.copied.fetch_add(count as u64, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(VolatileMemoryError::IOError(error)),
            }
        }
        Ok(done)
    }
}

impl Read for PartReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf
            .len()
            .min(WINDOW)
            .min(usize::try_from(self.remaining()).unwrap_or(WINDOW));
        if wanted == 0 {
            return Ok(0);
        }
        let held = self
            .position
            .checked_sub(self.window_start)
            .filter(|start| start + wanted as u64 <= WINDOW as u64);
        let start = match held {
            Some(start) => start as usize,
            None => {
                let fetch = (self.remaining() as usize).min(WINDOW);
                self.window_start = u64::MAX;
                let offset = self.part.offset + self.position;
                self.part.file.read_exact_at(&mut self.window[..fetch], offset)?;
                self.window_start = self.position;
                0
            }
        };
        buf[..wanted].copy_from_slice(&self.window[start..start + wanted]);
        self.position += wanted as u64;
        Ok(wanted)
    }
}

impl Seek for PartReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.part.len.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::memory::allocate;

    /// A file of `len` bytes in which byte `i` is `i / 4096 + i % 251`, cut to 8 bits.
    fn file(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let content: Vec<u8> = (0..len).map(|i| (i / 4096 + i % 251) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    fn part(file: &tempfile::NamedTempFile, offset: u64, len: u64) -> Part {
        let len_of_file = file.as_file().metadata().unwrap().len();
        Part::new(
            Arc::new(file.reopen().unwrap()),
            len_of_file,
            file.path(),
            offset,
            len,
        )
        .unwrap()
    }

    #[test]
    fn whole_pages_are_mapped_and_the_rest_is_copied() {
        let (file, content) = file(5 * 4096 + 100);
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        for (offset, len, at) in [
            (4096, 3 * 4096 + 50, 0x2000),
            (4096, 3 * 4096 + 50, 0x2123),
            (17, 9000, 0x2000),
            (0, 5, 0x2000),
        ] {
            let part = part(&file, offset, len);
            part.place(&memory, at).unwrap();
            let (mapped, copied) = part.placed();
            assert_eq!(mapped + copied, len);
            let aligned = offset.is_multiple_of(PAGE) && at.is_multiple_of(PAGE);
            assert_eq!(mapped, if aligned { len / PAGE * PAGE } else { 0 });
            let mut seen = vec![0; len as usize];
            memory.read_slice(&mut seen, GuestAddress(at)).unwrap();
            assert_eq!(seen, content[offset as usize..(offset + len) as usize]);
        }
        // The byte after a part whose end is inside a page is RAM, not the file's next byte.
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        part(&file, 0, 4096 + 50).place(&memory, 0).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(4096 + 50)).unwrap(), 0);
    }

    #[test]
    fn a_part_that_is_to_be_copied_is_not_mapped() {
        let (file, content) = file(3 * 4096);
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        let part = part(&file, 0, 3 * 4096);
        part.placed_by(Placement::Copy).place(&memory, 0x2000).unwrap();
        assert_eq!(part.placed(), (0, 3 * 4096), "both count for the one part");
        let mut seen = vec![0; 3 * 4096];
        memory.read_slice(&mut seen, GuestAddress(0x2000)).unwrap();
        assert_eq!(seen, content);
    }

    #[test]
    fn the_guest_cannot_write_to_the_file() {
        let (file, content) = file(2 * 4096);
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        part(&file, 0, 2 * 4096).place(&memory, 0).unwrap();
        memory.write_obj(!content[0], GuestAddress(0)).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), content);
    }

    #[test]
    fn a_part_beyond_the_end_is_refused() {
        let (file, _) = file(100);
        for (offset, len) in [(0, 101), (101, 0), (u64::MAX, 2)] {
            let refused = Part::new(Arc::new(file.reopen().unwrap()), 100, file.path(), offset, len);
            assert!(
                matches!(refused, Err(PartError::Truncated { .. })),
                "{offset} {len}"
            );
        }
    }

    #[test]
    fn small_reads_and_seeks_see_the_part_only() {
        let (file, content) = file(3 * 4096);
        let part = part(&file, 1000, 9000);
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        let mut reader = part.reader(&memory);
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, content[1000..10000]);
        assert_eq!(reader.seek(SeekFrom::End(-3)).unwrap(), 8997);
        seen.clear();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, content[9997..10000]);
        assert!(reader.seek(SeekFrom::End(-9001)).is_err());
    }
}
