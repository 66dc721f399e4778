//! x86_64: Linux's 64-bit boot protocol, ACPI and SMBIOS.

mod acpi;
mod boot;
mod kernel;
pub mod layout;
mod params;
mod smbios;

use std::path::PathBuf;

use crate::memory::{GuestMemoryBackend, Memory, PartError};

pub use boot::{Boot, CODE_SELECTOR, Segment, boot_state, boot_state_at};
pub use kernel::{Kernel, load};

/// Values written into tables as "who made this".
const OEM_ID: [u8; 6] = *b"KILN  ";
const OEM_TABLE_ID: [u8; 8] = *b"KILNVMM ";
const OEM_REVISION: u32 = 1;

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the kernel {path} cannot be used: {why}; try a 64-bit x86 vmlinux or bzImage
    #[error("the kernel {path} cannot be used: {why}; try a 64-bit x86 vmlinux or bzImage")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
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
    /// writing {what} to guest memory failed: {source}
    #[error("writing {what} to guest memory failed: {source}")]
    Write {
        /// What was written.
        what: &'static str,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
}

/// A virtio-mmio transport as the guest's tables describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical address of its registers, [`layout::VIRTIO_MMIO_SIZE`] bytes.
    pub addr: u64,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

impl VirtioSlot {
    /// The place of transport `n`; `None` when there are no more interrupts for it.
    pub fn nth(n: usize) -> Option<Self> {
        (n < layout::MAX_VIRTIO).then(|| VirtioSlot {
            addr: layout::VIRTIO_MMIO + n as u64 * layout::VIRTIO_MMIO_SIZE,
            gsi: layout::VIRTIO_GSI + n as u32,
        })
    }
}

/// What the guest is told of the machine that it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// Number of CPUs, 1 to [`layout::MAX_CPUS`]; APIC ids are 0, 1, 2, ...
    pub cpus: u8,
    /// Kernel command line without a final zero.
    pub cmdline: &'a str,
    /// virtio-mmio transports.
    pub virtio: &'a [VirtioSlot],
    /// Whether COM1 is there.
    pub serial: bool,
    /// System UUID (SMBIOS type 1), as its 16 bytes in the order that a person reads them.
    pub uuid: Option<[u8; 16]>,
}

/// RAM of `size` bytes as (guest-physical address, length) pairs around the 32-bit gap.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::GAP);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((layout::HIGH_RAM, size - low));
    }
    regions
}

/// Writes everything that the guest reads before it has drivers: ACPI, SMBIOS, the command line, `boot_params` with the
/// memory map, descriptor and page tables.
pub fn write_tables(memory: &Memory, kernel: &Kernel, platform: &Platform<'_>) -> Result<(), Error> {
    acpi::write(memory, platform)?;
    smbios::write(memory, platform.uuid)?;
    params::write(memory, kernel, platform.cmdline)?;
    boot::write(memory)
}

/// Writes `bytes` at `at` and says what they were when that fails.
fn put(memory: &Memory, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), Error> {
    use crate::memory::{Bytes, GuestAddress};
    debug_assert!(memory.num_regions() > 0);
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|source| Error::Write { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_gap() {
        assert_eq!(ram_regions(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram_regions(layout::GAP), [(0, layout::GAP)]);
        assert_eq!(
            ram_regions(4 << 30),
            [(0, layout::GAP), (layout::HIGH_RAM, 1 << 30)]
        );
    }

    #[test]
    fn every_transport_has_its_own_page_and_pin() {
        let slots: Vec<_> = (0..).map_while(VirtioSlot::nth).collect();
        assert!(slots.len() >= 12);
        for pair in slots.windows(2) {
            assert_eq!(pair[0].addr + layout::VIRTIO_MMIO_SIZE, pair[1].addr);
            assert_eq!(pair[0].gsi + 1, pair[1].gsi);
        }
        assert!(slots.last().unwrap().gsi < layout::IOAPIC_PINS);
        assert!(slots.iter().all(|slot| slot.gsi != layout::COM1_GSI));
    }
}
