//! Positioned reads and writes between files and guest memory, without a copy in between.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Buffers in one system call. The kernel takes 1024; this many lie on the stack, and more make further
/// calls.
const BATCH: usize = 64;

#[derive(Clone, Copy)]
enum Direction {
    FromFile,
    ToFile,
}

/// Fills all of `buffers` from `offset` of `file` on.
///
/// # Errors
/// `UnexpectedEof` when the file ends first; otherwise what the file system says.
pub fn read_exact_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    transfer(file, offset, buffers, Direction::FromFile)
}

/// Writes all of `buffers` to `file` from `offset` on.
///
/// # Errors
/// What the file system says.
pub fn write_all_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    transfer(file, offset, buffers, Direction::ToFile)
}

fn transfer(
    file: &File,
    mut offset: u64,
    buffers: &[VolatileSlice<'_>],
    direction: Direction,
) -> io::Result<()> {
    // What of the first buffer is done.
    let mut skip = 0;
    let mut rest = buffers;
    loop {
        while let Some(first) = rest.first()
            && skip >= first.len()
        {
            skip -= first.len();
            rest = &rest[1..];
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut done = call(file, offset, rest, skip, direction)?;
        if done == 0 {
            return Err(match direction {
                Direction::FromFile => io::ErrorKind::UnexpectedEof.into(),
                Direction::ToFile => io::ErrorKind::WriteZero.into(),
            });
        }
        offset += done as u64;
        done += skip;
        while let Some(first) = rest.first()
            && done >= first.len()
        {
            done -= first.len();
            rest = &rest[1..];
        }
        skip = done;
    }
}

/// One system call over the first buffers of `buffers`, leaving out `skip` bytes of the very first.
fn call(
    file: &File,
    offset: u64,
    buffers: &[VolatileSlice<'_>],
    mut skip: usize,
    direction: Direction,
) -> io::Result<usize> {
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let count = buffers.len().min(BATCH);
    for (vector, buffer) in vectors.iter_mut().zip(buffers) {
        let base = buffer.ptr_guard_mut().as_ptr().wrapping_add(skip);
        vector.write(libc::iovec {
            iov_base: base.cast(),
            iov_len: buffer.len() - skip,
        });
        skip = 0;
    }
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (fd, vectors, count) = (
        file.as_raw_fd(),
        vectors.as_ptr().cast::<libc::iovec>(),
        count as i32,
    );
    loop {
        let result = match direction {
            // SAFETY: the first `count` vectors are initialised, and each describes the part of a
            // VolatileSlice from `skip` < its length to its end, which stays mapped for the slice's lifetime,
            // longer than this call. The kernel may write that memory as the guest does: nobody holds a
            // reference to it.
            Direction::FromFile => unsafe { libc::preadv64(fd, vectors, count, offset) },
            // SAFETY: as above; the kernel only reads.
            Direction::ToFile => unsafe { libc::pwritev64(fd, vectors, count, offset) },
        };
        match usize::try_from(result) {
            Ok(done) => return Ok(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn many_unaligned_buffers_arrive_in_order() {
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&data, 5).unwrap();
        let mut parts: Vec<Vec<u8>> = (0..300).map(|i| vec![0; i * 4 % 1021]).collect();
        let total: usize = parts.iter().map(Vec::len).sum();
        let slices: Vec<VolatileSlice<'_>> = parts.iter_mut().map(|p| p.as_mut_slice().into()).collect();
        read_exact_at(&file, 5, &slices).unwrap();
        let copy = tempfile::tempfile().unwrap();
        write_all_at(&copy, 9, &slices).unwrap();
        drop(slices);
        assert_eq!(parts.concat(), data[..total]);
        let mut got = vec![0; total];
        copy.read_exact_at(&mut got, 9).unwrap();
        assert_eq!(got, data[..total]);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 10], 0).unwrap();
        let mut data = [0; 11];
        let error = read_exact_at(&file, 0, &[VolatileSlice::from(&mut data[..])]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        read_exact_at(&file, 99, &[]).unwrap();
    }
}
