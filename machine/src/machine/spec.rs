//! The specification of a machine, and how it can end: plain data.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::accel::Chosen;
use crate::arch::Architecture;
use crate::devices::VirtioSpec;
use crate::memory::Part;
use crate::timeline::Timeline;
use crate::virtio::determinism::Determinism;

/// Everything that `Machine::build` needs to know. A reset of the machine means to build anew from
/// a new spec.
pub struct Spec {
    /// The guest's architecture: that of its kernel.
    pub architecture: Architecture,
    /// Number of CPUs, 1 to the `max_cpus` of the architecture's `Layout`.
    pub cpus: u8,
    /// RAM in bytes, a multiple of 1 MiB between the layout's `min_ram` and `max_ram`.
    pub memory: u64,
    /// What runs the guest's instructions: one that counts them exactly where every run is to be the same
    /// (`determinism`).
    pub accel: Arc<Chosen>,
    /// ELF `vmlinux`, bzImage or (aarch64) `Image`.
    pub kernel: Part,
    /// Uncompressed or compressed cpio archive, as the kernel likes it.
    pub initrd: Option<Part>,
    /// Kernel command line, complete: the machine adds nothing to it.
    pub cmdline: String,
    /// First serial port; `None` leaves it out of the machine.
    pub serial: Option<Serial>,
    /// virtio devices in the order of their transports: the first block device is the guest's `vda`.
    pub devices: Vec<Device>,
    /// System UUID as the guest sees it (SMBIOS or device tree), 16 bytes in reading order.
    pub uuid: Option<[u8; 16]>,
    /// Makes every run the same, if it is enabled: instructions are time, and devices work in step with
    /// the one processor. Threads of the host that answer the guest take part in it.
    pub determinism: Determinism,
    /// Whether the accelerator's own statistics are read at each step of the boot. Each reading costs a
    /// system call for the machine and one for each of its processors.
    pub statistics: bool,
    /// Where boot events are noted.
    pub timeline: Arc<Timeline>,
}

/// A virtio device of the machine, with the name that messages and exit profiles give it: `vda`, `console`,
/// `net0`.
pub struct Device {
    /// Unique in the machine.
    pub name: String,
    /// The device.
    pub spec: VirtioSpec,
}

/// What is connected to a serial port.
pub struct Serial {
    /// Takes what the guest prints.
    pub output: Box<dyn Write + Send>,
    /// Gives what a person types, read without blocking; `None` for output only.
    pub input: Option<OwnedFd>,
}

pub use crate::vcpu::End as Outcome;
