//! Where the local APIC's registers are, and what may be written to them.

/// Bits of the APIC base MSR.
pub(super) mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = 0xfee0_0000;
    /// Where the address may be: physical ones have 46 bits. All other bits are reserved.
    pub const ADDRESSES: u64 = 0x3fff_ffff_f000;

    /// Whether the mode may change so: x2APIC mode is entered from xAPIC mode, and left by disabling the
    /// APIC.
    pub const fn may_change(from: u64, to: u64) -> bool {
        const X2: u64 = ENABLE | X2APIC;
        !matches!((from & X2, to & X2), (_, X2APIC) | (0, X2) | (X2, ENABLE))
    }
}

/// Register numbers: MSR minus 0x800, offset in the page divided by 16.
pub(super) mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const TIMER: u32 = 0x32;
    pub const ERROR: u32 = 0x37;
    pub const INITIAL: u32 = 0x38;
    pub const CURRENT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;

    /// What RDMSR reads in x2APIC mode (Intel SDM vol. 3, table 11-6).
    pub const fn is_readable(number: u32) -> bool {
        matches!(
            number,
            ID | VERSION | TPR | PPR | LDR | SVR | ISR..ESR | ESR | ICR | TIMER..=DIVIDE
        ) && !matches!(number, 0x3a..DIVIDE)
    }

    /// The bits that WRMSR may set in x2APIC mode, where it may write at all.
    pub const fn writable_bits(number: u32) -> Option<u64> {
        Some(match number {
            TPR | SELF_IPI => 0xff,
            EOI | ESR => 0,
            SVR => 0x3ff,
            ICR => !0xfff3_2000,
            TIMER..=ERROR => 0x7_f7ff,
            INITIAL => 0xffff_ffff,
            DIVIDE => 0xb,
            _ => return None,
        })
    }
}
