//! The kernel's random number generator.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bytes of a seed at most: what ChaCha20's key takes, and as much again.
const MAX: usize = 64;

/// `struct rand_pool_info` (linux/random.h) with room for its buffer.
#[repr(C)]
struct PoolInfo {
    /// Bits of entropy that the bytes are worth.
    entropy_count: libc::c_int,
    buffer_size: libc::c_int,
    buffer: [u8; MAX],
}

mod ioctl {
    // RNDADDENTROPY is declared for an array of two numbers (linux/random.h).
    nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [libc::c_int; 2]);
    nix::ioctl_none!(reseed, b'R', 0x07);
}

/// Mixes `seed` into the generator and has it begin anew. Two machines that went on from one snapshot have
/// the same generator until then; the device for that (VMGenID) is not in every kernel. What is beyond
/// [`MAX`] bytes is left out.
pub fn add(seed: &[u8]) -> io::Result<()> {
    if seed.is_empty() {
        return Ok(());
    }
    let random = File::open("/dev/urandom")?;
    let pool = pool(seed);
    // SAFETY: the kernel reads the two numbers and as many bytes behind them as the second says, all of which
    // are in `pool`, which lives until the call returns.
    unsafe { ioctl::add_entropy(random.as_raw_fd(), std::ptr::from_ref(&pool).cast()) }?;
    // SAFETY: the request takes no argument. A kernel before 4.14 does not know it, and reseeds in minutes.
    let _ = unsafe { ioctl::reseed(random.as_raw_fd()) };
    Ok(())
}

fn pool(seed: &[u8]) -> PoolInfo {
    let length = seed.len().min(MAX);
    let mut buffer = [0; MAX];
    buffer[..length].copy_from_slice(&seed[..length]);
    PoolInfo {
        entropy_count: length as libc::c_int * 8,
        buffer_size: length as libc::c_int,
        buffer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_of_any_length_fits() {
        for (given, taken) in [(1, 1), (MAX, MAX), (MAX + 9, MAX)] {
            let pool = pool(&vec![7; given]);
            assert_eq!(pool.buffer_size as usize, taken);
            assert_eq!(pool.entropy_count as usize, 8 * taken);
            assert!(pool.buffer[..taken].iter().all(|&byte| byte == 7));
            assert!(pool.buffer[taken..].iter().all(|&byte| byte == 0));
        }
        add(&[]).unwrap();
    }
}
