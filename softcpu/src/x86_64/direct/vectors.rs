//! x87 and vector registers of a helper: the host's XSAVE area in its standard format, as `ptrace` reads and
//! writes it (`NT_X86_XSTATE`).
#![allow(unsafe_code)]

use std::arch::x86_64::__cpuid_count;

use crate::x86_64::state::xcr0;

/// Words of the legacy region, which is an image as FXSAVE makes it.
const LEGACY: usize = 64;
/// The header follows it; its first word says which components are not in their initial state.
const HEADER: usize = LEGACY;
/// Bytes of the component of the upper halves.
const UPPER_BYTES: u32 = 256;
const UPPER: usize = UPPER_BYTES as usize / 8;
/// The first word behind the header.
const COMPONENTS: usize = HEADER + 8;

/// What programs have in these registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors {
    /// x87, XMM and MXCSR.
    pub legacy: [u64; LEGACY],
    /// The upper halves of the YMM registers.
    pub upper: [u64; UPPER],
}

/// The host's area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The word at which the upper halves of the YMM registers begin, if the host has such registers.
    upper: Option<usize>,
    /// Programs of the host may write PKRU, which no bit of the header speaks of.
    pkru: bool,
}

impl Vectors {
    /// Nothing but zeros.
    pub const ZERO: Vectors = Vectors {
        legacy: [0; LEGACY],
        upper: [0; UPPER],
    };
}

impl Layout {
    pub fn of_host() -> Layout {
        // OSPKE.
        let pkru = __cpuid_count(7, 0).ecx >> 4 & 1 != 0;
        if !std::is_x86_feature_detected!("avx") {
            return Layout { upper: None, pkru };
        }
        // AVX is component 2: EAX says how many bytes it has, EBX where they begin.
        let leaf = __cpuid_count(13, 2);
        let at = leaf.ebx as usize / 8;
        let fits = leaf.eax == UPPER_BYTES && leaf.ebx.is_multiple_of(8) && at >= COMPONENTS;
        Layout {
            upper: fits.then_some(at),
            pkru,
        }
    }

    /// Words up to the end of what is read.
    pub fn words(self) -> usize {
        self.upper.map_or(COMPONENTS, |at| at + UPPER)
    }

    /// The registers of an area. Where it says that a component is in its initial state, the host has written
    /// that state.
    pub fn read(self, area: &[u64]) -> Vectors {
        let mut vectors = Vectors::ZERO;
        vectors.legacy.copy_from_slice(&area[..LEGACY]);
        // What the host's kernel says in the bytes that FXSAVE leaves to it.
        vectors.legacy[52..].fill(0);
        if let Some(at) = self.upper {
            vectors.upper.copy_from_slice(&area[at..at + UPPER]);
        }
        vectors
    }

    /// Whether a program may have used registers that are none of these: at once, from the area up to
    /// [`Layout::words`].
    pub fn may_be_beyond(self, area: &[u64]) -> bool {
        self.pkru || area[HEADER] & !(xcr0::X87 | xcr0::SSE | xcr0::AVX) != 0
    }

    /// Whether such registers are not as they were in another area. Both are whole.
    pub fn is_beyond(self, area: &[u64], initial: &[u64]) -> bool {
        let known = self.upper.map_or(0..0, |at| at..at + UPPER);
        let mut words = area.iter().zip(initial).enumerate().skip(COMPONENTS);
        words.any(|(at, (now, before))| now != before && !known.contains(&at))
    }

    /// The area with these registers; all other components are in their initial state.
    pub fn write(self, vectors: &Vectors, area: &mut [u64]) {
        area.fill(0);
        area[..LEGACY].copy_from_slice(&vectors.legacy);
        area[HEADER] = xcr0::X87 | xcr0::SSE;
        if let Some(at) = self.upper {
            area[HEADER] |= xcr0::AVX;
            area[at..at + UPPER].copy_from_slice(&vectors.upper);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host's own area, as XSAVE writes it.
    #[repr(C, align(64))]
    struct Area([u64; 1024]);

    #[target_feature(enable = "xsave,avx")]
    fn host_area(upper: [u64; 2]) -> Area {
        use std::arch::x86_64::_mm256_set_epi64x;
        let mut area = Area([0; 1024]);
        let value = _mm256_set_epi64x(upper[1] as i64, upper[0] as i64, 4, 3);
        // SAFETY: the area has more bytes than the components that are asked for, and lies at a multiple of 64.
        unsafe {
            std::arch::asm!(
                "xsave64 [{area}]",
                area = in(reg) &raw mut area,
                in("eax") 7,
                in("edx") 0,
                in("ymm7") value,
            );
        }
        area
    }

    #[test]
    fn the_layout_is_the_hosts() {
        let layout = Layout::of_host();
        if !std::is_x86_feature_detected!("avx") || !std::is_x86_feature_detected!("xsave") {
            assert_eq!(layout.upper, None);
            return;
        }
        let upper = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00];
        // SAFETY: the host has both.
        let area = unsafe { host_area(upper) };
        let vectors = layout.read(&area.0);
        assert_eq!(vectors.upper[14..16], upper);
        assert_eq!(vectors.legacy[34..36], [3, 4]);
        assert!(layout.words() <= area.0.len());
    }

    #[test]
    fn an_area_holds_what_was_written_and_nothing_else() {
        let vectors = Vectors {
            legacy: std::array::from_fn(|n| if n < 52 { n as u64 } else { 0 }),
            upper: std::array::from_fn(|n| 100 + n as u64),
        };
        for (upper, components) in [(None, 0b11), (Some(72), 0b111), (Some(80), 0b111)] {
            let layout = Layout { upper, pkru: false };
            let mut area = vec![u64::MAX; layout.words() + 20];
            layout.write(&vectors, &mut area);
            assert_eq!(area[HEADER], components);
            assert_eq!(area[HEADER + 1..COMPONENTS], [0; 7]);
            assert!(area[layout.words()..].iter().all(|word| *word == 0));
            let expected = Vectors {
                upper: if upper.is_some() {
                    vectors.upper
                } else {
                    [0; UPPER]
                },
                ..vectors
            };
            assert_eq!(layout.read(&area), expected);
        }
    }

    #[test]
    fn registers_that_the_guest_does_not_have_are_found() {
        for upper in [None, Some(72), Some(80)] {
            let layout = Layout { upper, pkru: false };
            let initial = vec![0; 200];
            let mut area = initial.clone();
            area[HEADER] = 7;
            assert!(!layout.may_be_beyond(&area));
            area[HEADER] = 0xe7;
            assert!(layout.may_be_beyond(&area));
            // What is in use may still be as it was at first.
            assert!(!layout.is_beyond(&area, &initial));
            for (at, known) in [(0, true), (HEADER, true), (76, upper == Some(72)), (199, false)] {
                let mut used = area.clone();
                used[at] ^= 1;
                assert_eq!(layout.is_beyond(&used, &initial), !known, "{at} {upper:?}");
            }
        }
        let layout = Layout {
            upper: None,
            pkru: true,
        };
        assert!(layout.may_be_beyond(&[0; 200]));
    }
}
