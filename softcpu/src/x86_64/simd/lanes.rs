//! A 128-bit register as lanes. The compiler turns these loops into the host's own vector instructions.

macro_rules! lanes {
    ($t:ty, $n:literal, $split:ident, $join:ident, $map:ident, $zip:ident) => {
        #[doc = concat!("The ", stringify!($n), " lanes of a register, lowest first.")]
        #[inline(always)]
        pub fn $split(v: u128) -> [$t; $n] {
            let bytes = v.to_le_bytes();
            const SIZE: usize = size_of::<$t>();
            std::array::from_fn(|i| <$t>::from_le_bytes(std::array::from_fn(|byte| bytes[i * SIZE + byte])))
        }

        #[doc = concat!("A register of ", stringify!($n), " lanes.")]
        #[inline(always)]
        pub fn $join(lanes: [$t; $n]) -> u128 {
            const SIZE: usize = size_of::<$t>();
            let mut bytes = [0; 16];
            for (chunk, lane) in bytes.chunks_exact_mut(SIZE).zip(lanes) {
                chunk.copy_from_slice(&lane.to_le_bytes());
            }
            u128::from_le_bytes(bytes)
        }

        /// Applies a function to every lane.
        #[inline(always)]
        pub fn $map(v: u128, f: impl FnMut($t) -> $t) -> u128 {
            $join($split(v).map(f))
        }

        /// Applies a function to every pair of lanes.
        #[inline(always)]
        pub fn $zip(a: u128, b: u128, mut f: impl FnMut($t, $t) -> $t) -> u128 {
            let (a, b) = ($split(a), $split(b));
            $join(std::array::from_fn(|i| f(a[i], b[i])))
        }
    };
}

lanes!(u8, 16, split8, join8, map8, zip8);
lanes!(u16, 8, split16, join16, map16, zip16);
lanes!(u32, 4, split32, join32, map32, zip32);
lanes!(u64, 2, split64, join64, map64, zip64);

/// `v` with its low 32 bits replaced.
#[inline(always)]
pub const fn with_low32(v: u128, low: u32) -> u128 {
    v & !0xffff_ffff | low as u128
}

/// `v` with its low 64 bits replaced.
#[inline(always)]
pub const fn with_low64(v: u128, low: u64) -> u128 {
    v & !(u64::MAX as u128) | low as u128
}
