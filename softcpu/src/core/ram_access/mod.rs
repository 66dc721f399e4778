//! Reads and writes of guest RAM by host address. Every access of the processor to guest RAM goes through
//! here; other processors and device threads use the same bytes at the same time.
//!
//! # Memory model
//!
//! What a guest may rely on (Intel SDM vol. 3, §9.1.1 and §9.2), and what gives it:
//!
//! - *Single accesses.* An access up to 8 bytes is one MOV of an x86-64 host, which has the guarantees that
//!   the guest expects: it is single inside an aligned 8 bytes. On other hosts an aligned access up to 8
//!   bytes is an atomic one, and an unaligned one reads, or compares and exchanges, the aligned 8 bytes
//!   around it.
//! - *16 bytes.* Only a processor with AVX promises a guest that aligned ones are single, and this one has no
//!   AVX. On x86-64 hosts they are one MOVDQU nevertheless, which hosts with AVX do as one.
//! - *Order.* Total store order, which leaves only a store and a later load of another address unordered:
//!   x86-64 hosts have it, and elsewhere loads are acquire and stores are release. MFENCE and locked
//!   instructions are the host's full barriers.
//! - *Locked instructions* are the host's atomic ones; see `x86_64::exec::atomic`.
//! - *Page table entries* are read once, as 8 bytes; accessed and dirty bits are set by a compare-exchange
//!   with what was read.
//!
//! What is left, in which this differs from a processor:
//!
//! - A locked instruction on bytes of two cache lines (a split lock; on hosts that are not x86-64, of two
//!   aligned 8 bytes) or of a device takes one lock of all processors. It excludes other such instructions,
//!   but not single accesses to the bytes and not locked ones of fewer bytes.
//! - On hosts that are not x86-64, an access of more than 8 bytes or across an aligned 8 bytes is done in
//!   aligned pieces, where processors of today keep it single inside a cache line.
//! - Rust's memory model does not describe atomic accesses of different sizes to the same bytes, which guests
//!   make all the time. Hosts define them.
//! - Devices of the machine read and write RAM through `vm-memory`: aligned accesses up to 8 bytes are single
//!   there, too, but their order is what the device's code asks for.
#![allow(unsafe_code)]

#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(not(target_arch = "x86_64"))]
use portable as host;
#[cfg(target_arch = "x86_64")]
use x86_64 as host;

pub(crate) use host::compare_exchange_unaligned;

/// What a single access can move.
pub trait Scalar: Copy + Default {
    /// Its bytes.
    const SIZE: usize = size_of::<Self>();
    /// From bytes, little endian; missing ones are zero.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Its bytes, little endian.
    fn to_bytes(self) -> [u8; 16];

    /// Reads at any address.
    ///
    /// # Safety
    /// All bytes at `host` are guest RAM: mapped, and nobody holds a Rust reference into it.
    unsafe fn load(host: usize) -> Self;
    /// Writes at any address.
    ///
    /// # Safety
    /// As for [`Scalar::load`].
    unsafe fn store(host: usize, value: Self);
}

macro_rules! scalar {
    ($($t:ty, $accesses:ident;)*) => {$(
        impl Scalar for $t {
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut all = [0; size_of::<$t>()];
                all.copy_from_slice(&bytes[..size_of::<$t>()]);
                <$t>::from_le_bytes(all)
            }
            fn to_bytes(self) -> [u8; 16] {
                let mut all = [0; 16];
                all[..size_of::<$t>()].copy_from_slice(&self.to_le_bytes());
                all
            }
            #[inline(always)]
            unsafe fn load(host: usize) -> $t {
                // SAFETY: the caller's promise.
                unsafe { host::$accesses::load(host) }
            }
            #[inline(always)]
            unsafe fn store(host: usize, value: $t) {
                // SAFETY: the caller's promise.
                unsafe { host::$accesses::store(host, value) };
            }
        }
    )*};
}

scalar! {
    u8, byte;
    u16, word;
    u32, dword;
    u64, qword;
    u128, xmmword;
}

/// The largest aligned piece of up to 8 bytes at the start of `len` bytes at `host`.
fn piece(host: usize, len: usize) -> usize {
    let aligned = 1 << host.trailing_zeros().min(3);
    aligned.min(1 << len.min(8).ilog2())
}

/// Copies out of RAM. Aligned pieces up to 8 bytes are read as one.
///
/// # Safety
/// All bytes at `host` are guest RAM.
pub(crate) unsafe fn copy_out(host: usize, data: &mut [u8]) {
    let mut at = 0;
    while at < data.len() {
        if (host + at).is_multiple_of(8) {
            let (words, _) = data[at..].as_chunks_mut::<8>();
            for (n, word) in words.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *word = unsafe { u64::load(host + at + 8 * n) }.to_le_bytes();
            }
            at += 8 * words.len();
            if at == data.len() {
                return;
            }
        }
        let size = piece(host + at, data.len() - at);
        let to = &mut data[at..at + size];
        // SAFETY: the caller's promise.
        unsafe {
            match size {
                4 => to.copy_from_slice(&u32::load(host + at).to_le_bytes()),
                2 => to.copy_from_slice(&u16::load(host + at).to_le_bytes()),
                _ => to[0] = u8::load(host + at),
            }
        }
        at += size;
    }
}

/// Copies into RAM. Aligned pieces up to 8 bytes are written as one.
///
/// # Safety
/// All bytes at `host` are guest RAM.
pub(crate) unsafe fn copy_in(host: usize, data: &[u8]) {
    let mut at = 0;
    while at < data.len() {
        if (host + at).is_multiple_of(8) {
            let (words, _) = data[at..].as_chunks::<8>();
            for (n, word) in words.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { u64::store(host + at + 8 * n, u64::from_le_bytes(*word)) };
            }
            at += 8 * words.len();
            if at == data.len() {
                return;
            }
        }
        let size = piece(host + at, data.len() - at);
        let from = &data[at..at + size];
        // SAFETY: the caller's promise.
        unsafe {
            match size {
                4 => u32::store(host + at, u32::from_bytes(from)),
                2 => u16::store(host + at, u16::from_bytes(from)),
                _ => u8::store(host + at, from[0]),
            }
        }
        at += size;
    }
}

/// Fewest elements for which the host's repeated string instructions are worth their start.
#[cfg(target_arch = "x86_64")]
const REPEATED: usize = 64;

/// Copies `count` elements one after the other, upwards: where the ranges overlap, elements that were written
/// are read again.
///
/// # Safety
/// All bytes of both ranges are guest RAM.
#[inline(always)]
pub(crate) unsafe fn copy_elements<T: Scalar>(from: usize, to: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if count >= REPEATED {
        // SAFETY: the caller's promise.
        return unsafe { host::movs::<T>(from, to, count) };
    }
    let (len, mut at) = (count * T::SIZE, 0);
    // Eight bytes at once, where none of them is read after it is written.
    while len - at >= 8 && to.wrapping_sub(from) >= 8 {
        // SAFETY: the caller's promise.
        unsafe { u64::store(to + at, u64::load(from + at)) };
        at += 8;
    }
    while at < len {
        // SAFETY: the caller's promise.
        unsafe { T::store(to + at, T::load(from + at)) };
        at += T::SIZE;
    }
}

/// Writes `count` elements one after the other, upwards.
///
/// # Safety
/// All bytes of the range are guest RAM.
#[inline(always)]
pub(crate) unsafe fn fill<T: Scalar>(to: usize, count: usize, value: T) {
    #[cfg(target_arch = "x86_64")]
    if count >= REPEATED {
        // SAFETY: the caller's promise.
        return unsafe { host::stos(to, count, value) };
    }
    for at in (0..count).map(|n| n * T::SIZE) {
        // SAFETY: the caller's promise.
        unsafe { T::store(to + at, value) };
    }
}
