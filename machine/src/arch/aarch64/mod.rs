//! arm64: Linux's `Image` boot protocol and a device tree.

mod fdt;
pub mod gicv3;
mod image;
pub mod layout;

use super::{Controller, Error, Layout, Platform, put};
use crate::bus::At;
use crate::memory::Memory;

pub(super) use image::{Kernel, load};

/// The address map as the machine needs it.
pub(super) const LAYOUT: Layout = Layout {
    min_ram: layout::MIN_RAM,
    max_ram: layout::MAX_RAM,
    max_cpus: layout::MAX_CPUS,
    boot_timer: layout::BOOT_TIMER,
    virtio: layout::VIRTIO_MMIO,
    virtio_gsi: layout::VIRTIO_GSI,
    max_virtio: layout::MAX_VIRTIO,
    serial: At::Memory(layout::SERIAL),
    serial_gsi: layout::SERIAL_GSI,
    generation: layout::GENERATION,
    generation_gsi: layout::GENERATION_GSI,
    // No device wants memory in one piece, for which Debian's kernel would keep 64 MiB back: half of a small
    // machine.
    command_line: "cma=0",
};

/// The first CPU's registers at the kernel's entry (Linux, Documentation/arch/arm64/booting.rst, "Call the
/// kernel image"). What is not here is zero or as after reset: EL1, interrupts masked, MMU and caches off.
/// The other CPUs are off until PSCI's `CPU_ON`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// First instruction.
    pub pc: u64,
    /// Physical address of the device tree.
    pub x0: u64,
}

/// RAM of `size` bytes as (guest-physical address, length) pairs.
pub(super) fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    vec![(layout::RAM, size)]
}

/// Writes the device tree.
pub(super) fn prepare(memory: &Memory, kernel: &Kernel, platform: &Platform<'_>) -> Result<Boot, Error> {
    let tree = fdt::tree(memory, kernel, platform)?;
    if tree.len() as u64 > layout::FDT_MAX {
        return Err(Error::Tables {
            what: "the device tree",
            len: tree.len(),
            max: layout::FDT_MAX,
        });
    }
    put(memory, "the device tree", layout::FDT, &tree)?;
    Ok(Boot {
        pc: kernel.entry,
        x0: layout::FDT,
    })
}

/// The affinity (MPIDR_EL1 without its flag bits) that KVM gives CPU `id`: 16 CPUs a cluster, because one
/// software-generated interrupt of a GICv3 reaches at most that many.
pub(crate) const fn mpidr(id: u8) -> u64 {
    (id as u64 & 0xf) | (id as u64 >> 4) << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_an_affinity_of_its_own() {
        let all: std::collections::BTreeSet<_> = (0..layout::MAX_CPUS).map(mpidr).collect();
        assert_eq!(all.len(), usize::from(layout::MAX_CPUS));
        assert_eq!((mpidr(15), mpidr(16), mpidr(31)), (0x0f, 0x100, 0x10f));
    }

    #[test]
    fn devices_do_not_overlap() {
        use layout::*;
        let redistributors = u64::from(MAX_CPUS) * GICV3_REDISTRIBUTOR_SIZE;
        let last = LAYOUT.virtio_slot(MAX_VIRTIO - 1).unwrap();
        assert_eq!(last.gsi, GENERATION_GSI - 1);
        let places = [
            (GIC_DISTRIBUTOR, GICV3_DISTRIBUTOR_SIZE),
            (GICV2_CPU_INTERFACE, GICV2_CPU_INTERFACE_SIZE),
            (GICV3_REDISTRIBUTORS, redistributors),
            (SERIAL, 0x1000),
            (RTC, 0x1000),
            (BOOT_TIMER, 0x1000),
            (VIRTIO_MMIO, last.addr + 0x1000 - VIRTIO_MMIO),
            (RAM, MAX_RAM),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
