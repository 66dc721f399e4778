//! x86_64: Linux's 64-bit and 32-bit boot protocols, ACPI and SMBIOS.

mod acpi;
mod boot;
mod kernel;
pub mod layout;
mod params;
mod smbios;
pub mod testing;

use super::{Error, Layout, Platform, VirtioSlot, put};
use crate::bus::At;
use crate::memory::Memory;

use boot::boot_state;
pub use boot::{Boot, CODE_SELECTOR, boot_state_at};
pub(super) use kernel::{Kernel, load};
pub use softcpu::Segment;

/// Values written into tables as "who made this".
const OEM_ID: [u8; 6] = *b"KILN  ";
const OEM_TABLE_ID: [u8; 8] = *b"KILNVMM ";
const OEM_REVISION: u32 = 1;

/// The address map as the machine needs it.
pub(super) const LAYOUT: Layout = Layout {
    min_ram: layout::MIN_RAM,
    max_ram: layout::MAX_RAM,
    max_cpus: layout::MAX_CPUS,
    boot_timer: layout::BOOT_TIMER,
    virtio: layout::VIRTIO_MMIO,
    virtio_gsi: layout::VIRTIO_GSI,
    max_virtio: layout::MAX_VIRTIO,
    serial: At::Port(layout::COM1),
    serial_gsi: layout::COM1_GSI,
    generation: layout::GENERATION,
    generation_gsi: layout::GENERATION_GSI,
    // A reset is to be ACPI's: on a machine whose ACPI is hardware-reduced, Linux wants EFI's for it, and
    // where there is none it jumps to a BIOS that is not there. There is no PCI, and one serial port: each
    // search that finds none is dozens of exits.
    command_line: "reboot=acpi pci=off 8250.nr_uarts=1",
};

/// RAM of `size` bytes as (guest-physical address, length) pairs around the 32-bit gap.
pub(super) fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::GAP);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((layout::HIGH_RAM, size - low));
    }
    regions
}

/// Writes everything that the guest reads before it has drivers: ACPI, SMBIOS, the command line,
/// `boot_params` with the memory map, descriptor and page tables.
pub(super) fn prepare(memory: &Memory, kernel: &Kernel, platform: &Platform<'_>) -> Result<Boot, Error> {
    acpi::write(memory, platform)?;
    smbios::write(memory, platform.uuid)?;
    params::write(memory, kernel, platform.cmdline)?;
    boot::write(memory, kernel.entry)?;
    Ok(boot_state(kernel))
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
}
