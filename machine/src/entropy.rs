//! Random bytes from the kernel, fetched many at a time: a launch needs a dozen keys and ids.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Mutex, PoisonError};

/// Bytes fetched in one call. `getrandom(2)` gives up to 256 without ever being interrupted.
const BATCH: usize = 256;

/// What was fetched and not handed out yet.
struct Pool {
    bytes: [u8; BATCH],
    left: usize,
}

/// A leaf: nothing else is locked while it is held.
static POOL: Mutex<Pool> = Mutex::new(Pool {
    bytes: [0; BATCH],
    left: 0,
});

/// `N` random bytes, 256 at most, which are given out once.
///
/// # Panics
/// When the kernel has no `getrandom`, which every kernel since 3.17 has: there is nothing to go on with.
pub fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= BATCH) };
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.left < N {
        fetch(&mut pool.bytes);
        pool.left = BATCH;
    }
    let start = pool.left - N;
    let mut taken = [0; N];
    taken.copy_from_slice(&pool.bytes[start..start + N]);
    pool.bytes[start..start + N].fill(0);
    pool.left = start;
    taken
}

fn fetch(bytes: &mut [u8; BATCH]) {
    let got = fill(bytes);
    assert!(got.is_ok(), "getrandom: {got:?}");
}

/// Fills all of `bytes` with randomness that is given out once, without the pool: for large requests.
///
/// # Errors
/// When the kernel has no `getrandom`.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: the kernel writes at most as many bytes to the slice as it has.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// A small source of chance that a test can repeat.
#[cfg(test)]
pub mod chance {
    /// xorshift64* (Vigna 2016) from a seed other than 0.
    pub struct Chance(pub u64);

    impl Chance {
        /// Any number; its upper bits are the better ones.
        pub fn any(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        /// A number below `bound`, which is at least 1.
        pub fn below(&mut self, bound: u64) -> u64 {
            (self.any() >> 33) % bound
        }

        /// An index of something that is `len` long, which is at least 1.
        pub fn index(&mut self, len: usize) -> usize {
            self.below(len as u64) as usize
        }

        /// `len` bytes of any value.
        pub fn bytes(&mut self, len: usize) -> Vec<u8> {
            (0..len).map(|_| (self.any() >> 32) as u8).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn nothing_is_handed_out_twice() {
        let seen: HashSet<[u8; 24]> = (0..1000).map(|_| bytes()).collect();
        assert_eq!(seen.len(), 1000);
        assert_ne!(bytes::<BATCH>(), bytes::<BATCH>());
    }
}
