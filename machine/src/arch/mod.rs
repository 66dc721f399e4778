//! Guest architectures. The kernel determines the architecture of a machine, not the host.
//!
//! Each directory offers the same few functions, behind those here: the address map ([`layout`]), where RAM
//! lies ([`ram_regions`]), [`load`]: kernel and initramfs into RAM, and [`prepare`]: what the guest reads of its
//! machine beside them (ACPI or a device tree), and the first CPU's registers at the kernel's entry.

pub mod aarch64;
mod kernel;
pub mod x86_64;

use std::path::PathBuf;

pub use ami::Architecture;
pub use kernel::KernelError;

use crate::bus::At;
use crate::memory::{Memory, Part, PartError};

/// Bytes of one virtio-mmio transport's registers, device configuration included.
pub(crate) const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// Why the guest's memory could not be prepared.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// the kernel {path} cannot be used: {source}; try {wanted}
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KernelError,
        /// What can be used.
        wanted: &'static str,
    },
    /// {what} needs {needed} bytes and {free} bytes of RAM are free for it; try a machine with more memory
    Room {
        /// Kernel or initramfs.
        what: &'static str,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// the kernel command line has {len} bytes; this kernel takes at most {max}
    Cmdline {
        /// Its length in bytes.
        len: usize,
        /// Most bytes that fit, without the final zero.
        max: usize,
    },
    /// {0}
    Part(#[from] PartError),
    /// {what} of {len} bytes do not fit their {max} bytes of guest memory
    Tables {
        /// Which tables.
        what: &'static str,
        /// Their length in bytes.
        len: usize,
        /// Bytes set aside for them.
        max: u64,
    },
    /// the device tree cannot be written: {0}
    Fdt(#[from] vm_fdt::Error),
    /// writing {what} to guest memory failed: {source}
    Write {
        /// What was written.
        what: &'static str,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
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
    /// The generation id, 16 bytes of RAM that the kernel leaves alone.
    pub generation: u64,
    /// Its interrupt.
    pub generation_gsi: u32,
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

/// What the guest's tables describe of the machine that it runs on.
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
        Architecture::X86_64 | Architecture::I386 => &x86_64::LAYOUT,
        Architecture::Arm64 => &aarch64::LAYOUT,
    }
}

/// RAM of `size` bytes as (guest-physical address, length) pairs.
pub fn ram_regions(architecture: Architecture, size: u64) -> Vec<(u64, u64)> {
    match architecture {
        Architecture::X86_64 | Architecture::I386 => x86_64::ram_regions(size),
        Architecture::Arm64 => aarch64::ram_regions(size),
    }
}

/// A kernel and its initramfs that lie in guest RAM.
#[derive(Debug)]
pub struct Loaded(Kernel);

#[derive(Debug)]
enum Kernel {
    X86_64(x86_64::Kernel),
    Aarch64(aarch64::Kernel),
}

/// Puts `kernel` and `initrd` into RAM.
pub fn load(
    architecture: Architecture,
    memory: &Memory,
    kernel: &Part,
    initrd: Option<&Part>,
) -> Result<Loaded, Error> {
    match architecture {
        Architecture::X86_64 | Architecture::I386 => x86_64::load(memory, kernel, initrd).map(Kernel::X86_64),
        Architecture::Arm64 => aarch64::load(memory, kernel, initrd).map(Kernel::Aarch64),
    }
    .map(Loaded)
}

/// Writes everything that the guest reads before it has drivers, and returns how its first CPU begins.
pub fn prepare(memory: &Memory, Loaded(kernel): &Loaded, platform: &Platform<'_>) -> Result<Boot, Error> {
    match kernel {
        Kernel::X86_64(kernel) => x86_64::prepare(memory, kernel, platform).map(Boot::X86_64),
        Kernel::Aarch64(kernel) => aarch64::prepare(memory, kernel, platform).map(Boot::Aarch64),
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
        for architecture in Architecture::ALL {
            let layout = layout(architecture);
            let slots: Vec<_> = (0..).map_while(|n| layout.virtio_slot(n)).collect();
            assert!(slots.len() >= 12);
            for pair in slots.windows(2) {
                assert_eq!(pair[0].addr + VIRTIO_MMIO_SIZE, pair[1].addr);
                assert_eq!(pair[0].gsi + 1, pair[1].gsi);
            }
            let others = [layout.serial_gsi, layout.generation_gsi];
            assert!(slots.iter().all(|slot| !others.contains(&slot.gsi)));
            let devices = layout.boot_timer..slots.last().unwrap().addr + VIRTIO_MMIO_SIZE;
            for (start, len) in ram_regions(architecture, layout.min_ram) {
                assert!(start + len <= devices.start || start >= devices.end);
            }
        }
    }

    /// Both machines' figures, as the page shows them side by side.
    #[test]
    fn machine_md_agrees_with_the_code() {
        let page = include_str!("../../../docs/machine.md");
        /// The cells of the row that begins with `first`, or that has it in its third column.
        fn row<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
            let rows = page.lines().filter(|line| line.starts_with('|'));
            let mut cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
            let found = cells.find(|row: &Vec<_>| row.first() == Some(&first) || row.get(2) == Some(&first));
            found.unwrap_or_else(|| panic!("there is no row for {first}"))
        }
        fn address(value: u64) -> String {
            match value {
                0..0x1_0000 => format!("0x{value:x}"),
                0x1_0000..0x1_0000_0000 => format!("0x{:x}_{:04x}", value >> 16, value & 0xffff),
                _ => format!(
                    "0x{:x}_{:04x}_{:04x}",
                    value >> 32,
                    value >> 16 & 0xffff,
                    value & 0xffff
                ),
            }
        }
        use aarch64::layout as arm;
        use x86_64::layout as pc;
        let places = [
            (pc::GDT, 0, "GDT"),
            (pc::BOOT_PARAMS, 0, "boot_params"),
            (pc::PAGE_TABLES, 0, "page tables"),
            (pc::CMDLINE, 0, "command line"),
            (pc::LOW_RAM_END, 0, "conventional memory"),
            (pc::ACPI, 0, "ACPI"),
            (pc::GENERATION, 0, "generation id"),
            (pc::SMBIOS, 0, "SMBIOS"),
            (pc::RESET_VECTOR, 0, "reset vector"),
            (pc::HIGH_MEMORY, 0, "RAM: kernel"),
            (pc::BOOT_TIMER, 0, "boot timer"),
            (pc::VIRTIO_MMIO, 0, "virtio-mmio"),
            (pc::IOAPIC, 0, "IOAPIC"),
            (pc::LAPIC, 0, "local APICs"),
            (pc::KVM_TSS, 0, "KVM on Intel"),
            (pc::HIGH_RAM, 0, "RAM above the gap"),
            (arm::GIC_DISTRIBUTOR, 2, "GIC distributor"),
            (arm::GICV2_CPU_INTERFACE, 2, "GICv2 CPU interface"),
            (arm::GICV3_REDISTRIBUTORS, 2, "GICv3 redistributors"),
            (arm::SERIAL, 2, "serial port"),
            (arm::RTC, 2, "real-time clock"),
            (arm::BOOT_TIMER, 2, "boot timer"),
            (arm::VIRTIO_MMIO, 2, "virtio-mmio"),
            (arm::FDT, 2, "device tree"),
            (arm::GENERATION, 2, "generation id"),
            (arm::KERNEL, 2, "kernel"),
        ];
        for (place, column, what) in places {
            let cells = row(page, &address(place));
            assert_eq!(cells[column], address(place), "{what}");
            assert!(cells[column + 1].contains(what), "{what} is not at {cells:?}");
        }
        let gib = |bytes: u64| format!("{} GiB", bytes >> 30);
        for (what, x86_64, arm64) in [
            ("CPUs", pc::MAX_CPUS.to_string(), arm::MAX_CPUS.to_string()),
            (
                "CPUs",
                "startup IPI".into(),
                format!("({} with", arm::GICV2_MAX_CPUS),
            ),
            ("memory", "1 TiB".into(), gib(arm::MAX_RAM)),
            (
                "interrupts",
                format!("{} pins", pc::IOAPIC_PINS),
                format!("{} shared", arm::SPIS),
            ),
            (
                "virtio-mmio transports",
                format!("up to {},", pc::MAX_VIRTIO),
                format!("up to {},", arm::MAX_VIRTIO),
            ),
            ("boot timer", address(pc::BOOT_TIMER), address(arm::BOOT_TIMER)),
            ("serial port", format!("{:#x}", pc::COM1), address(arm::SERIAL)),
            ("power-off", format!("{:#x}", pc::ACPI_PM), "PSCI".into()),
        ] {
            let cells = row(page, what);
            assert!(
                cells[1].contains(&x86_64) && cells[2].contains(&arm64),
                "{cells:?}"
            );
        }
        let (_, interrupts) = page.split_once("## Interrupts").unwrap();
        let serial = [pc::COM1_GSI, arm::SERIAL_GSI].map(|gsi| gsi.to_string());
        assert_eq!(row(interrupts, "serial port")[1..], serial);
        let generation = [pc::GENERATION_GSI, arm::GENERATION_GSI].map(|gsi| gsi.to_string());
        assert_eq!(row(interrupts, "generation id")[1..], generation);
        let virtio = [pc::VIRTIO_GSI, arm::VIRTIO_GSI].map(|gsi| format!("{gsi} + *n*"));
        assert_eq!(row(interrupts, "virtio transport *n*")[1..], virtio);
    }
}
