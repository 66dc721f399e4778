//! Memory types, which have no effect here: the page attribute table and the memory type range registers
//! (Intel SDM vol. 3, §12.11 and §12.12). They keep what is written, and refuse what a processor refuses.

use crate::x86_64::state::PHYSICAL_BITS;

/// Eight variable ranges, fixed ranges, write combining.
const CAPABILITIES: u64 = 0x508;
const MTRR_CAP: u32 = 0xfe;
/// Pairs of base and mask.
const VARIABLE: u32 = 0x200;
const VARIABLE_END: u32 = 0x20f;
/// 64 KiB, 16 KiB and 4 KiB ranges below 1 MiB.
const FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const PAT: u32 = 0x277;
const DEFAULT: u32 = 0x2ff;

/// Bits of a range that are no part of an address.
const ABOVE: u64 = !((1 << PHYSICAL_BITS) - 1);

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MemoryTypes {
    pat: u64,
    default: u64,
    variable: [u64; 16],
    fixed: [u64; FIXED.len()],
}

impl MemoryTypes {
    /// As firmware leaves them: everything is write-back.
    pub fn new() -> MemoryTypes {
        MemoryTypes {
            pat: 0x0007_0406_0007_0406,
            default: 0xc06,
            variable: [0; 16],
            fixed: [0x0606_0606_0606_0606; FIXED.len()],
        }
    }

    /// Whether each has a value that can be written to it.
    pub fn is_valid(&self) -> bool {
        let MemoryTypes {
            pat,
            default,
            variable,
            fixed,
        } = self;
        let pairs = (VARIABLE..).zip(variable).chain(FIXED.into_iter().zip(fixed));
        let mut scratch = self.clone();
        pairs
            .chain([(PAT, pat), (DEFAULT, default)])
            .all(|(msr, value)| scratch.write(msr, *value))
    }

    /// RDMSR; `None` where it is none of these.
    pub fn read(&self, msr: u32) -> Option<u64> {
        Some(match msr {
            MTRR_CAP => CAPABILITIES,
            VARIABLE..=VARIABLE_END => self.variable[(msr - VARIABLE) as usize],
            PAT => self.pat,
            DEFAULT => self.default,
            _ => self.fixed[FIXED.iter().position(|fixed| *fixed == msr)?],
        })
    }

    /// WRMSR; `false` where it is none of these, or the value is not valid.
    pub fn write(&mut self, msr: u32, value: u64) -> bool {
        let Some((register, valid)) = self.register(msr, value) else {
            return false;
        };
        if valid {
            *register = value;
        }
        valid
    }

    fn register(&mut self, msr: u32, value: u64) -> Option<(&mut u64, bool)> {
        let all = |valid: fn(u8) -> bool| value.to_le_bytes().into_iter().all(valid);
        Some(match msr {
            VARIABLE..=VARIABLE_END => {
                let number = msr - VARIABLE;
                let valid = match number % 2 {
                    0 => is_range_type(value as u8) && value & (0xf00 | ABOVE) == 0,
                    _ => value & (0x7ff | ABOVE) == 0,
                };
                (&mut self.variable[number as usize], valid)
            }
            PAT => (&mut self.pat, all(is_page_type)),
            DEFAULT => (
                &mut self.default,
                is_range_type(value as u8) && value & !0xcff == 0,
            ),
            _ => {
                let number = FIXED.iter().position(|fixed| *fixed == msr)?;
                (&mut self.fixed[number], all(is_range_type))
            }
        })
    }
}

/// Uncacheable, write combining, write-through, write-protected, write-back.
fn is_range_type(memory_type: u8) -> bool {
    matches!(memory_type, 0 | 1 | 4 | 5 | 6)
}

/// Pages may also be weakly uncacheable.
fn is_page_type(memory_type: u8) -> bool {
    is_range_type(memory_type) || memory_type == 7
}
