//! Accesses of every size at every offset.

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

type Exchange<T> = unsafe fn(usize, T, T) -> Option<Result<T, T>>;

/// The exchange of four bytes, and of eight that lie across two cache lines.
fn exchanges(four: Exchange<u32>, eight: Exchange<u64>) {
    let changed = with_bytes(|host| {
        // SAFETY: all inside.
        unsafe {
            assert_eq!(four(host + 1, 0, 1), Some(Err(0x0403_0201)));
            assert_eq!(four(host + 1, 0x0403_0201, 0xa0b0_c0d0), Some(Ok(0x0403_0201)));
            assert_eq!(eight(host + 60, 0, 0), None);
        }
    });
    assert_eq!(changed[..6], [0, 0xd0, 0xc0, 0xb0, 0xa0, 5]);
}

#[test]
fn an_unaligned_exchange_is_one_where_the_host_can() {
    exchanges(compare_exchange_unaligned, compare_exchange_unaligned);
    exchanges(
        portable::compare_exchange_unaligned,
        portable::compare_exchange_unaligned,
    );
}
