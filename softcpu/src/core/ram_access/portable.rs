//! Accesses on hosts that are not x86-64: aligned ones up to 8 bytes are one atomic access, others are made
//! of such.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Scalar;

macro_rules! atomic {
    ($($name:ident, $t:ty, $atomic:ty;)*) => {$(
        pub(crate) mod $name {
            use super::*;

            #[inline(always)]
            pub unsafe fn load(host: usize) -> $t {
                if !host.is_multiple_of(size_of::<$t>()) {
                    // SAFETY: the caller's promise.
                    return unsafe { load_pieces(host, size_of::<$t>()) as $t };
                }
                // SAFETY: the caller's promise; it is aligned.
                <$t>::from_le(unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(host)) }.load(Ordering::Acquire))
            }

            #[inline(always)]
            pub unsafe fn store(host: usize, value: $t) {
                if !host.is_multiple_of(size_of::<$t>()) {
                    // SAFETY: the caller's promise.
                    return unsafe { store_pieces(host, value as u128, size_of::<$t>()) };
                }
                // SAFETY: the caller's promise; it is aligned.
                unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(host)) }.store(value.to_le(), Ordering::Release);
            }
        }
    )*};
}
atomic! {
    byte, u8, AtomicU8;
    word, u16, AtomicU16;
    dword, u32, AtomicU32;
    qword, u64, AtomicU64;
}

pub(crate) mod xmmword {
    pub unsafe fn load(host: usize) -> u128 {
        // SAFETY: the caller's promise.
        unsafe { super::load_pieces(host, 16) }
    }
    pub unsafe fn store(host: usize, value: u128) {
        // SAFETY: the caller's promise.
        unsafe { super::store_pieces(host, value, 16) };
    }
}

/// Reads up to 16 bytes: all aligned 8 bytes of which it has some, in ascending order.
///
/// # Safety
/// All bytes are guest RAM.
unsafe fn load_pieces(host: usize, size: usize) -> u128 {
    let (mut value, mut done) = (0, 0);
    while done < size {
        let at = host + done;
        let (shift, len) = (at % 8, (8 - at % 8).min(size - done));
        // SAFETY: RAM has whole pages, so that the aligned 8 bytes around one of its bytes are RAM.
        let word = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at - shift)) };
        let bytes = u64::from_le(word.load(Ordering::Acquire)) >> (8 * shift) & low(len);
        value |= u128::from(bytes) << (8 * done);
        done += len;
    }
    value
}

/// Writes the same way. What is not a whole aligned 8 bytes is exchanged with the bytes around it unchanged.
///
/// # Safety
/// All bytes are guest RAM.
unsafe fn store_pieces(host: usize, value: u128, size: usize) {
    let mut done = 0;
    while done < size {
        let at = host + done;
        let (shift, len) = (at % 8, (8 - at % 8).min(size - done));
        let (mask, bytes) = (
            low(len) << (8 * shift),
            ((value >> (8 * done)) as u64 & low(len)) << (8 * shift),
        );
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at - shift)) };
        if len == 8 {
            word.store(bytes.to_le(), Ordering::Release);
        } else {
            let change = |old: u64| Some((u64::from_le(old) & !mask | bytes).to_le());
            // It always succeeds.
            let _ = word.fetch_update(Ordering::Release, Ordering::Relaxed, change);
        }
        done += len;
    }
}

/// A mask of so many bytes.
fn low(len: usize) -> u64 {
    u64::MAX >> (64 - 8 * len)
}

/// Compares and exchanges an unaligned operand as one, where the host can: `None` where it cannot, and
/// nothing is done.
///
/// # Safety
/// All bytes at `host` are guest RAM.
pub(crate) unsafe fn compare_exchange_unaligned<T: Scalar + PartialEq>(
    host: usize,
    old: T,
    new: T,
) -> Option<Result<T, T>> {
    let shift = host % 8;
    if shift + T::SIZE > 8 {
        return None;
    }
    // SAFETY: RAM has whole pages, so that the aligned 8 bytes around one of its bytes are RAM.
    let word = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(host - shift)) };
    let value = |word: u64| T::from_bytes(&u64::from_le(word).to_le_bytes()[shift..]);
    let replaced = |word: u64| {
        let mut bytes = u64::from_le(word).to_le_bytes();
        bytes[shift..shift + T::SIZE].copy_from_slice(&new.to_bytes()[..T::SIZE]);
        u64::from_le_bytes(bytes).to_le()
    };
    let exchange = |word| (value(word) == old).then(|| replaced(word));
    Some(
        match word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, exchange) {
            Ok(found) => Ok(value(found)),
            Err(found) => Err(value(found)),
        },
    )
}
