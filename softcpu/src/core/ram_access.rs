//! Reads and writes of guest RAM by host address. Every access of the processor to guest RAM goes through here; other
//! processors and device threads use the same bytes at the same time.
//!
//! # Memory model
//!
//! What a guest may rely on (Intel SDM vol. 3, §9.1.1 and §9.2), and what gives it:
//!
//! - *Single accesses.* An access up to 8 bytes is one MOV of an x86-64 host, which has the guarantees that the guest expects:
//!   it is single inside an aligned 8 bytes. On other hosts an aligned access up to 8 bytes is an atomic one, and an
//!   unaligned one reads, or compares and exchanges, the aligned 8 bytes around it.
//! - *16 bytes.* Only a processor with AVX promises a guest that aligned ones are single, and this one has no AVX. On x86-64 hosts
//!   they are one MOVDQU nevertheless, which hosts with AVX do as one.
//! - *Order.* Total store order, which leaves only a store and a later load of another address unordered: x86-64 hosts have it, and
//!   elsewhere loads are acquire and stores are release. MFENCE and locked instructions are the host's full barriers.
//! - *Locked instructions* are the host's atomic ones; see [`exec::atomic`](crate::x86_64::exec::atomic).
//! - *Page table entries* are read once, as 8 bytes; accessed and dirty bits are set by a compare-exchange with what was read.
//!
//! What is left, in which this differs from a processor:
//!
//! - A locked instruction on bytes of two cache lines (a split lock; on hosts that are not x86-64, of two aligned 8 bytes) or
//!   of a device takes one lock of all processors. It excludes other such instructions, but not
//!   single accesses to the bytes and not locked ones of fewer bytes.
//! - On hosts that are not x86-64, an access of more than 8 bytes or across an aligned 8 bytes is done in aligned pieces,
//!   where processors of today keep it single inside a cache line.
//! - Rust's memory model does not describe atomic accesses of different sizes to the same bytes, which guests make all the
//!   time. Hosts define them.
//! - Devices of the machine read and write RAM through `vm-memory`: aligned accesses up to 8 bytes are single there,
//!   too, but their order is what the device's code asks for.
#![allow(unsafe_code)]

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

#[cfg(not(target_arch = "x86_64"))]
use portable as host;

/// One MOV each, in assembly: Rust has no atomic access that is not aligned, and to tell the two apart would cost as much as the
/// access. The compiler neither splits nor merges them, and keeps their order.
#[cfg(target_arch = "x86_64")]
mod host {
    macro_rules! mov {
        ($name:ident, $t:ty, $class:ident, $operand:literal) => {
            pub(super) mod $name {
                use std::arch::asm;

                #[inline(always)]
                pub unsafe fn load(host: usize) -> $t {
                    let value: $t;
                    // SAFETY: the caller promises memory there; the instruction needs no alignment.
                    unsafe {
                        asm!(concat!("mov {value", $operand, "}, [{host}]"), host = in(reg) host, value = lateout($class) value,
                            options(readonly, nostack, preserves_flags));
                    }
                    value
                }

                #[inline(always)]
                pub unsafe fn store(host: usize, value: $t) {
                    // SAFETY: as above.
                    unsafe {
                        asm!(concat!("mov [{host}], {value", $operand, "}"), host = in(reg) host, value = in($class) value,
                            options(nostack, preserves_flags));
                    }
                }
            }
        };
    }
    mov!(byte, u8, reg_byte, "");
    mov!(word, u16, reg, ":x");
    mov!(dword, u32, reg, ":e");
    mov!(qword, u64, reg, ":r");

    pub(super) mod xmmword {
        use std::arch::asm;
        use std::arch::x86_64::__m128i;

        #[inline(always)]
        pub unsafe fn load(host: usize) -> u128 {
            let value: __m128i;
            // SAFETY: the caller promises memory there; the instruction needs no alignment.
            unsafe {
                asm!("movdqu {value}, [{host}]", host = in(reg) host, value = lateout(xmm_reg) value,
                    options(readonly, nostack, preserves_flags));
            }
            // SAFETY: both are 16 bytes, and any are valid.
            unsafe { std::mem::transmute(value) }
        }

        #[inline(always)]
        pub unsafe fn store(host: usize, value: u128) {
            // SAFETY: both are 16 bytes, and any are valid.
            let value: __m128i = unsafe { std::mem::transmute(value) };
            // SAFETY: as in `load`.
            unsafe {
                asm!("movdqu [{host}], {value}", host = in(reg) host, value = in(xmm_reg) value,
                    options(nostack, preserves_flags));
            }
        }
    }
}

/// Aligned accesses up to 8 bytes are one atomic access, others are made of such.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable {
    use std::ptr::with_exposed_provenance_mut;
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

    macro_rules! atomic {
        ($($name:ident, $t:ty, $atomic:ty;)*) => {$(
            pub(super) mod $name {
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

    pub(super) mod xmmword {
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
}

/// Compares and exchanges an unaligned operand as one, where the host can: `None` where it cannot, and nothing is done.
///
/// # Safety
/// All bytes at `host` are guest RAM.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn compare_exchange_unaligned<T: Scalar + PartialEq>(
    host: usize,
    old: T,
    new: T,
) -> Option<Result<T, T>> {
    use std::arch::asm;
    /// Inside one, a locked instruction needs no alignment and disturbs nobody (Intel SDM vol. 3, §9.1.2).
    const CACHE_LINE: usize = 64;
    if host % CACHE_LINE + T::SIZE > CACHE_LINE {
        return None;
    }
    let bits = |value: T| u64::from_bytes(&value.to_bytes());
    let mut found = bits(old);
    let new = bits(new);
    macro_rules! exchange {
        ($operand:literal) => {
            // SAFETY: the caller promises memory there.
            unsafe {
                asm!(concat!("lock cmpxchg [{host}], {new", $operand, "}"), host = in(reg) host, new = in(reg) new,
                    inout("rax") found, options(nostack));
            }
        };
    }
    match T::SIZE {
        2 => exchange!(":x"),
        4 => exchange!(":e"),
        8 => exchange!(":r"),
        _ => return None,
    }
    let found = T::from_bytes(&found.to_le_bytes());
    Some(if found == old { Ok(found) } else { Err(found) })
}

/// Compares and exchanges an unaligned operand as one, where the host can: `None` where it cannot, and nothing is done.
///
/// # Safety
/// All bytes at `host` are guest RAM.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn compare_exchange_unaligned<T: Scalar + PartialEq>(
    host: usize,
    old: T,
    new: T,
) -> Option<Result<T, T>> {
    use std::ptr::with_exposed_provenance_mut;
    use std::sync::atomic::{AtomicU64, Ordering};
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
const REPEATED: usize = 64;

/// Copies `count` elements one after the other, upwards: where the ranges overlap, elements that were written are read again.
///
/// # Safety
/// All bytes of both ranges are guest RAM.
#[inline(always)]
pub(crate) unsafe fn copy_elements<T: Scalar>(from: usize, to: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if count >= REPEATED {
        // SAFETY: the caller's promise.
        return unsafe { repeated::movs::<T>(from, to, count) };
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
        return unsafe { repeated::stos(to, count, value) };
    }
    for at in (0..count).map(|n| n * T::SIZE) {
        // SAFETY: the caller's promise.
        unsafe { T::store(to + at, value) };
    }
}

/// The host's repeated string instructions: what they promise is what the guest expects of its own.
#[cfg(target_arch = "x86_64")]
mod repeated {
    use super::Scalar;
    use std::arch::asm;

    /// # Safety
    /// As for [`copy_elements`](super::copy_elements).
    #[inline(always)]
    pub(super) unsafe fn movs<T: Scalar>(from: usize, to: usize, count: usize) {
        macro_rules! repeat {
            ($instruction:literal) => {
                // SAFETY: the caller's promise; the direction flag is clear outside of assembly.
                unsafe {
                    asm!($instruction, inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _,
                        options(nostack, preserves_flags));
                }
            };
        }
        match T::SIZE {
            1 => repeat!("rep movsb"),
            2 => repeat!("rep movsw"),
            4 => repeat!("rep movsd"),
            _ => repeat!("rep movsq"),
        }
    }

    /// # Safety
    /// As for [`fill`](super::fill).
    #[inline(always)]
    pub(super) unsafe fn stos<T: Scalar>(to: usize, count: usize, value: T) {
        let mut low = [0; 8];
        low[..T::SIZE.min(8)].copy_from_slice(&value.to_bytes()[..T::SIZE.min(8)]);
        macro_rules! repeat {
            ($instruction:literal) => {
                // SAFETY: as in `movs`.
                unsafe {
                    asm!($instruction, in("rax") u64::from_le_bytes(low), inout("rdi") to => _, inout("rcx") count => _,
                        options(nostack, preserves_flags));
                }
            };
        }
        match T::SIZE {
            1 => repeat!("rep stosb"),
            2 => repeat!("rep stosw"),
            4 => repeat!("rep stosd"),
            _ => repeat!("rep stosq"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `f` with the host address of 64 bytes: their numbers.
    fn with_bytes(f: impl FnOnce(usize)) -> [u8; 64] {
        #[repr(align(64))]
        struct Aligned([u8; 64]);
        let mut bytes = Aligned(std::array::from_fn(|n| n as u8));
        f((&raw mut bytes.0).expose_provenance());
        bytes.0
    }

    fn number(at: usize, size: usize) -> u128 {
        let bytes: [u8; 16] = std::array::from_fn(|n| if n < size { (at + n) as u8 } else { 0 });
        u128::from_le_bytes(bytes)
    }

    macro_rules! loads_and_stores {
        ($($accesses:ident, $t:ty;)*) => {$(
            for at in 0..=48 {
                let size = size_of::<$t>();
                with_bytes(|host| {
                    // SAFETY: 16 bytes at `at` are inside.
                    let loaded = unsafe { <$t>::load(host + at) };
                    assert_eq!(u128::from(loaded), number(at, size));
                    // SAFETY: as above.
                    let loaded = unsafe { portable::$accesses::load(host + at) };
                    assert_eq!(u128::from(loaded), number(at, size), "{size} bytes at {at}");
                });
                let wanted: [u8; 64] =
                    std::array::from_fn(|n| if (at..at + size).contains(&n) { 0xee } else { n as u8 });
                let value = <$t>::MAX / 255 * 0xee;
                // SAFETY: as above.
                assert_eq!(with_bytes(|host| unsafe { <$t>::store(host + at, value) }), wanted);
                // SAFETY: as above.
                let stored = with_bytes(|host| unsafe { portable::$accesses::store(host + at, value) });
                assert_eq!(stored, wanted, "{size} bytes at {at}");
            }
        )*};
    }

    #[test]
    fn every_size_at_every_offset() {
        loads_and_stores! {
            byte, u8;
            word, u16;
            dword, u32;
            qword, u64;
            xmmword, u128;
        }
    }

    #[test]
    fn copies_of_every_length_and_alignment() {
        for at in 0..16 {
            for len in 0..=40 {
                let mut data = [0xff; 40];
                // SAFETY: at most 56 bytes.
                with_bytes(|host| unsafe { copy_out(host + at, &mut data[..len]) });
                let wanted: Vec<u8> = (at..at + len).map(|n| n as u8).collect();
                assert_eq!(&data[..len], wanted);
                // SAFETY: as above.
                let changed = with_bytes(|host| unsafe { copy_in(host + at, &[0xee; 40][..len]) });
                let inside = |n: &usize| (at..at + len).contains(n);
                assert!((0..64).all(|n| changed[n] == if inside(&n) { 0xee } else { n as u8 }));
            }
        }
    }

    #[test]
    fn an_overlapping_copy_repeats_the_pattern() {
        // SAFETY: 44 bytes.
        let bytes = with_bytes(|host| unsafe { copy_elements::<u16>(host, host + 4, 20) });
        assert_eq!(bytes[..12], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(bytes[42..46], [2, 3, 44, 45]);
        // SAFETY: 9 bytes.
        let bytes = with_bytes(|host| unsafe { fill(host + 1, 2, 0x0403_0201_u32) });
        assert_eq!(bytes[..10], [0, 1, 2, 3, 4, 1, 2, 3, 4, 9]);
    }

    #[test]
    fn an_unaligned_exchange_is_one_inside_a_cache_line() {
        let changed = with_bytes(|host| {
            // SAFETY: all inside.
            unsafe {
                let wrong = compare_exchange_unaligned::<u32>(host + 1, 0, 1);
                assert_eq!(wrong, Some(Err(0x0403_0201)));
                let right = compare_exchange_unaligned::<u32>(host + 1, 0x0403_0201, 0xa0b0_c0d0);
                assert_eq!(right, Some(Ok(0x0403_0201)));
                assert_eq!(compare_exchange_unaligned::<u64>(host + 60, 0, 0), None);
            }
        });
        assert_eq!(changed[..6], [0, 0xd0, 0xc0, 0xb0, 0xa0, 5]);
    }
}
