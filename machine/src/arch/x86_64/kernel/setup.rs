//! The setup header: what a bzImage says to its loader, and the loader to the kernel (Linux,
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"). It lies at the same offset in the file
//! and in `boot_params`.

/// Where it begins and ends, in the file and in `boot_params` alike.
pub(in crate::arch::x86_64) const START: usize = 0x1f1;
const END: usize = 0x26c;

/// Offsets of fields that are read or written here, as that page gives them.
pub(in crate::arch::x86_64) mod at {
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// A setup header, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arch::x86_64) struct SetupHeader([u8; Self::LEN]);

impl SetupHeader {
    /// Bytes that it takes.
    pub(in crate::arch::x86_64) const LEN: usize = END - START;

    /// The header whose bytes begin with `bytes`; what is missing is zero, as the protocol reads older
    /// headers.
    pub(in crate::arch::x86_64) fn new(bytes: &[u8]) -> Self {
        SetupHeader(std::array::from_fn(|n| bytes.get(n).copied().unwrap_or(0)))
    }

    /// All of it.
    pub(in crate::arch::x86_64) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The little-endian field of `N` bytes at offset `at`.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at - START + n])
    }

    pub(in crate::arch::x86_64) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.field(at))
    }

    pub(in crate::arch::x86_64) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.field(at))
    }

    pub(in crate::arch::x86_64) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.field(at))
    }

    /// The same with other bytes at offset `at`.
    pub(in crate::arch::x86_64) fn with(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at - START..][..value.len()].copy_from_slice(value);
        self
    }
}
