//! The address map of the arm64 machine. All addresses are guest-physical.
//!
//! ```text
//! 0x0800_0000  GIC distributor              0x0900_0000  serial port
//! 0x0801_0000  GICv2 CPU interface          0x0901_0000  real-time clock
//! 0x080a_0000  GICv3 redistributors         0x0a00_0000  boot timer, then virtio-mmio, one page each
//!
//! 0x4000_0000  RAM: device tree, then the generation id
//! 0x4020_0000  kernel ... initramfs at the end of RAM
//! ```

/// First address of RAM.
pub const RAM: u64 = 0x4000_0000;
/// Least RAM of a machine in bytes: device tree, kernel and initramfs need some room.
pub const MIN_RAM: u64 = 32 << 20;
/// Most RAM of a machine in bytes: what is left of 40-bit guest-physical addresses, KVM's default on arm64.
pub const MAX_RAM: u64 = (1 << 40) - RAM;
/// Most CPUs of a machine. With a GICv2 there are at most [`GICV2_MAX_CPUS`].
pub const MAX_CPUS: u8 = 32;
/// Most CPUs of a machine with a GICv2 (GICv2 architecture §1.4.2).
pub const GICV2_MAX_CPUS: u8 = 8;

/// Device tree, at most [`FDT_MAX`] bytes (Linux, Documentation/arch/arm64/booting.rst).
pub const FDT: u64 = RAM;
/// Most bytes of a device tree, with a page for the generation id behind it.
pub const FDT_MAX: u64 = (2 << 20) - GENERATION_SIZE;
/// Generation id of the virtual machine: 16 bytes in a page of its own, which is reserved.
pub const GENERATION: u64 = FDT + FDT_MAX;
/// Bytes that are reserved for it.
pub const GENERATION_SIZE: u64 = 0x1000;
/// Where the kernel's image begins, before its own offset is added; a multiple of 2 MiB.
pub const KERNEL: u64 = GENERATION + GENERATION_SIZE;
/// The initramfs must lie within this many bytes of the GiB in which the kernel begins (booting.rst, "Setup
/// the device tree").
pub const INITRD_WINDOW: u64 = 32 << 30;
/// Longest command line in bytes with its final zero: `COMMAND_LINE_SIZE` of Linux on arm64.
pub const CMDLINE_MAX: usize = 2048;

/// Distributor of either GIC.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// Bytes of a GICv3 distributor (GICv3 architecture §12.8).
pub const GICV3_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// First GICv3 redistributor; the others follow in the order of the CPUs.
pub const GICV3_REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of one CPU's redistributor: two frames of 64 KiB (GICv3 architecture §12.10).
pub const GICV3_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Bytes of a GICv2 distributor.
pub const GICV2_DISTRIBUTOR_SIZE: u64 = 0x1000;
/// CPU interface of a GICv2.
pub const GICV2_CPU_INTERFACE: u64 = 0x0801_0000;
/// Bytes of a GICv2 CPU interface.
pub const GICV2_CPU_INTERFACE_SIZE: u64 = 0x2000;
/// Shared peripheral interrupts: global system interrupt `n` is SPI `n`, which is interrupt id 32 + `n`.
pub const SPIS: u32 = 32;
/// Interrupt ids before the shared ones: software-generated and private ones.
pub const FIRST_SPI: u32 = 32;

/// Serial port: a 16550 with its registers one byte apart.
pub const SERIAL: u64 = 0x0900_0000;
/// Interrupt of the serial port.
pub const SERIAL_GSI: u32 = 0;
/// Real-time clock: a PL031.
pub const RTC: u64 = 0x0901_0000;
/// Boot timer: the guest writes one byte per event.
pub const BOOT_TIMER: u64 = 0x0a00_0000;
/// First virtio-mmio transport; the others follow, one page each.
pub const VIRTIO_MMIO: u64 = BOOT_TIMER + 0x1000;
/// Interrupt of virtio-mmio transport 0; transport `n` has `VIRTIO_GSI + n`.
pub const VIRTIO_GSI: u32 = 1;
/// Most virtio-mmio transports: the interrupts from [`VIRTIO_GSI`] on, but for the last.
pub const MAX_VIRTIO: usize = (GENERATION_GSI - VIRTIO_GSI) as usize;
/// Interrupt of the generation id.
pub const GENERATION_GSI: u32 = SPIS - 1;
