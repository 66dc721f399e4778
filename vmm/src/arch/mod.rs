//! Guest architectures. Which one a machine has is data: it follows from its kernel, not from the host.
//!
//! Each directory offers the same few functions, behind those here: the address map ([`layout`]), where RAM lies ([`ram_regions`]), and
//! [`prepare`]: kernel and initramfs into RAM, what the guest reads of its machine beside them (ACPI or a device
//! tree), and the first CPU's registers at the kernel's entry.

pub mod aarch64;
pub mod x86_64;

use std::path::PathBuf;

pub use ami::Architecture;

use crate::memory::{Memory, Part, PartError};

/// Bytes of one virtio-mmio transport's registers, device configuration included.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the kernel {path} cannot be used: {why}; try {wanted}
    #[error("the kernel {path} cannot be used: {why}; try {wanted}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What can be used.
        wanted: &'static str,
    },
    /// {what} needs {needed} bytes but only {free} bytes of RAM are free for it; try a larger --memory
    #[error(
        "{what} needs {needed} bytes but only {free} bytes of RAM are free for it; try a larger --memory"
    )]
    Room {
        /// Kernel or initramfs.
        what: &'static str,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// the kernel command line has {len} bytes; this kernel takes at most {max}
    #[error("the kernel command line has {len} bytes; this kernel takes at most {max}")]
    Cmdline {
        /// Its length in bytes.
        len: usize,
        /// Most bytes that fit, without the final zero.
        max: usize,
    },
    /// {0}
    #[error(transparent)]
    Part(#[from] PartError),
    /// {what} of {len} bytes do not fit their {max} bytes of guest memory
    #[error("{what} of {len} bytes do not fit their {max} bytes of guest memory")]
    Tables {
        /// Which tables.
        what: &'static str,
        /// Their length in bytes.
        len: usize,
        /// Bytes set aside for them.
        max: u64,
    },
    /// the device tree cannot be written: {0}
    #[error("the device tree cannot be written: {0}")]
    Fdt(#[from] vm_fdt::Error),
    /// writing {what} to guest memory failed: {source}
    #[error("writing {what} to guest memory failed: {source}")]
    Write {
        /// What was written.
        what: &'static str,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
}

/// Where a device's registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// From this I/O port on.
    Port(u16),
    /// From this guest-physical address on.
    Memory(u64),
}

/// The address map as the machine needs it. All addresses are guest-physical.
#[derive(Debug)]
pub struct Layout {
    /// Least RAM in bytes.
    pub min_ram: u64,
    /// Most RAM in bytes.
    pub max_ram: u64,
    /// Most CPUs.
    pub max_cpus: u8,
    /// Boot timer, one page: the guest writes one byte per event.
    pub boot_timer: u64,
    /// First virtio-mmio transport; the others follow, [`VIRTIO_MMIO_SIZE`] bytes each.
    pub virtio: u64,
    /// Interrupt of the first transport; the others follow.
    pub virtio_gsi: u32,
    /// Most transports.
    pub max_virtio: usize,
    /// First serial port, a 16550.
    pub serial: At,
    /// Its interrupt.
    pub serial_gsi: u32,
    /// Words for Linux's command line: what is true of this machine and what its tables cannot say.
    pub command_line: &'static str,
}

impl Layout {
    /// The place of transport `n`; `None` when there are no more interrupts for it.
    pub fn virtio_slot(&self, n: usize) -> Option<VirtioSlot> {
        (n < self.max_virtio).then(|| VirtioSlot {
            addr: self.virtio + n as u64 * VIRTIO_MMIO_SIZE,
            gsi: self.virtio_gsi + n as u32,
        })
    }
}

/// A virtio-mmio transport as the guest's tables describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical address of its registers, [`VIRTIO_MMIO_SIZE`] bytes.
    pub addr: u64,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

/// The interrupt controller that an accelerator gives the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// x86: local APICs and one IOAPIC.
    Apic,
    /// Arm's Generic Interrupt Controller, architecture version 2.
    GicV2,
    /// Arm's Generic Interrupt Controller, architecture version 3.
    GicV3,
}

/// What the guest is told of the machine that it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// Number of CPUs, 1 to [`Layout::max_cpus`].
    pub cpus: u8,
    /// Kernel command line without a final zero.
    pub cmdline: &'a str,
    /// virtio-mmio transports.
    pub virtio: &'a [VirtioSlot],
    /// Whether the serial port is there.
    pub serial: bool,
    /// System UUID, as its 16 bytes in the order that a person reads them.
    pub uuid: Option<[u8; 16]>,
    /// What delivers interrupts.
    pub controller: Controller,
}

/// The first CPU's registers at the kernel's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// Of an x86_64 machine.
    X86_64(x86_64::Boot),
    /// Of an arm64 machine.
    Aarch64(aarch64::Boot),
}

/// The address map of machines of `architecture`.
pub fn layout(architecture: Architecture) -> &'static Layout {
    match architecture {
        Architecture::X86_64 => &x86_64::LAYOUT,
        Architecture::Arm64 => &aarch64::LAYOUT,
    }
}

/// RAM of `size` bytes as (guest-physical address, length) pairs.
pub fn ram_regions(architecture: Architecture, size: u64) -> Vec<(u64, u64)> {
    match architecture {
        Architecture::X86_64 => x86_64::ram_regions(size),
        Architecture::Arm64 => aarch64::ram_regions(size),
    }
}

/// Puts `kernel` and `initrd` into RAM, writes everything that the guest reads before it has drivers, and returns how its
/// first CPU begins.
pub fn prepare(
    architecture: Architecture,
    memory: &Memory,
    kernel: &Part,
    initrd: Option<&Part>,
    platform: &Platform<'_>,
) -> Result<Boot, Error> {
    match architecture {
        Architecture::X86_64 => x86_64::prepare(memory, kernel, initrd, platform).map(Boot::X86_64),
        Architecture::Arm64 => aarch64::prepare(memory, kernel, initrd, platform).map(Boot::Aarch64),
    }
}

/// Writes `bytes` at `at` and says what they were when that fails.
fn put(memory: &Memory, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), Error> {
    use crate::memory::{Bytes, GuestAddress};
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|source| Error::Write { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transport_has_its_own_page_and_interrupt() {
        for architecture in [Architecture::X86_64, Architecture::Arm64] {
            let layout = layout(architecture);
            let slots: Vec<_> = (0..).map_while(|n| layout.virtio_slot(n)).collect();
            assert!(slots.len() >= 12);
            for pair in slots.windows(2) {
                assert_eq!(pair[0].addr + VIRTIO_MMIO_SIZE, pair[1].addr);
                assert_eq!(pair[0].gsi + 1, pair[1].gsi);
            }
            assert!(slots.iter().all(|slot| slot.gsi != layout.serial_gsi));
            let devices = layout.boot_timer..slots.last().unwrap().addr + VIRTIO_MMIO_SIZE;
            for (start, len) in ram_regions(architecture, layout.min_ram) {
                assert!(start + len <= devices.start || start >= devices.end);
            }
        }
    }
}
