//! The address map of the x86_64 machine. All addresses are guest-physical.
//!
//! ```text
//! 0x0000_0500  GDT, IDT                     0x000e_fff0  generation id
//! 0x0000_7000  boot_params ("zero page")    0x000f_0000  SMBIOS entry point and structures
//! 0x0000_9000  page tables                  0x0010_0000  RAM: kernel ... initramfs at its end
//! 0x0002_0000  kernel command line          0xc000_0000  boot timer, then virtio-mmio, one page each
//! 0x0009_fc00  end of conventional memory   0xfec0_0000  IOAPIC; 0xfee0_0000 local APICs
//! 0x000e_0000  ACPI tables                  0x1_0000_0000  RAM above the gap
//! ```

/// First address of the hole that devices live in: RAM from here on continues at [`HIGH_RAM`].
pub const GAP: u64 = 0xc000_0000;
/// Where RAM continues above the 32-bit devices.
pub const HIGH_RAM: u64 = 1 << 32;
/// Least RAM of a machine in bytes: the kernel's first megabytes, itself and an initramfs need some room.
pub const MIN_RAM: u64 = 32 << 20;
/// Most RAM of a machine in bytes: 1 TiB leaves 46-bit physical addresses ample room.
pub const MAX_RAM: u64 = 1 << 40;
/// Most CPUs of a machine. Their APIC ids fit the 8-bit fields of MADT local APIC entries.
pub const MAX_CPUS: u8 = 32;

/// Global descriptor table at the kernel's entry: 4 descriptors of 8 bytes.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table at the kernel's entry; empty.
pub const IDT: u64 = 0x520;
/// `struct boot_params` (Linux boot protocol, "zero page"), one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Initial stack, growing down. The 64-bit protocol asks for none, but a bzImage's first instructions may use
/// it.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Level 4 page table; the level 3 and level 2 tables follow, one page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, zero terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes with its final zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory, where the extended BIOS data area of a PC begins.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables: the RSDP first, found by `boot_params` and by scanning alike (ACPI 6.5 §5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI tables, exclusive.
pub const ACPI_END: u64 = GENERATION;
/// Generation id of the virtual machine: 16 bytes beside the tables, which no kernel takes for RAM.
pub const GENERATION: u64 = 0xe_fff0;
/// SMBIOS 3 entry point, then the structures (SMBIOS 3.7 §5.2.2: on a 16-byte boundary in 0xf0000..0x100000).
pub const SMBIOS: u64 = 0xf_0000;
/// End of the SMBIOS structures, exclusive.
pub const SMBIOS_END: u64 = RESET_VECTOR;
/// Where a processor in real mode begins after a reset, as software reaches it with a far jump to ffff:0000.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above the first megabyte: kernels load here or higher.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Boot timer: the guest writes one byte per event.
pub const BOOT_TIMER: u64 = GAP;
/// First virtio-mmio transport; the others follow, [`VIRTIO_MMIO_SIZE`](super::super::VIRTIO_MMIO_SIZE) bytes
/// each.
pub const VIRTIO_MMIO: u64 = GAP + 0x1000;
/// Interrupt of virtio-mmio transport 0; transport `n` has `VIRTIO_GSI + n`.
pub const VIRTIO_GSI: u32 = 5;
/// Most virtio-mmio transports: the IOAPIC's pins from [`VIRTIO_GSI`] on.
pub const MAX_VIRTIO: usize = IOAPIC_PINS as usize - VIRTIO_GSI as usize;
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Pins of the IOAPIC: its global system interrupts are 0..24.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers of whichever CPU looks.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for itself (KVM API, `KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Interrupt of the generation id.
pub const GENERATION_GSI: u32 = 3;

/// First serial port.
pub const COM1: u16 = 0x3f8;
/// Ports of a serial port.
pub const COM_PORTS: u64 = 8;
/// Interrupt of the first serial port.
pub const COM1_GSI: u32 = 4;
/// ACPI sleep control, sleep status and reset registers, one byte each, in this order (ACPI 6.5 §4.8.3).
pub const ACPI_PM: u16 = 0x600;
/// Command port of the keyboard controller that is not there: a write of 0xfe still resets the machine.
pub const I8042_COMMAND: u16 = 0x64;
/// Reset control of PC chipsets: a write with bit 2 set resets the machine.
pub const RESET_CONTROL: u16 = 0xcf9;
