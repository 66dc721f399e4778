//! What a machine is made of, and how it can end: plain data.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::accel::Choice;
use crate::memory::Part;
use crate::timeline::Timeline;
use crate::virtio::VirtioDevice;

/// Everything that `Machine::build` needs to know. A reset of the machine means to build anew from
/// a new spec.
pub struct Spec {
    /// Number of CPUs, 1 to `arch::layout::MAX_CPUS`.
    pub cpus: u8,
    /// RAM in bytes, a multiple of 1 MiB between `arch::layout::MIN_RAM` and `arch::layout::MAX_RAM`.
    pub memory: u64,
    /// What is to run the guest's instructions.
    pub accel: Choice,
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
    /// System UUID as the guest sees it (SMBIOS), 16 bytes in reading order.
    pub uuid: Option<[u8; 16]>,
    /// Where boot events are noted.
    pub timeline: Arc<Timeline>,
}

/// A virtio device of the machine, with the name that messages and exit profiles give it: `root`, `console`, `net0`.
pub struct Device {
    /// Unique in the machine.
    pub name: String,
    /// The device itself.
    pub device: Box<dyn VirtioDevice>,
}

/// What is connected to a serial port.
pub struct Serial {
    /// Takes what the guest prints.
    pub output: Box<dyn Write + Send>,
    /// Gives what a person types, read without blocking; `None` for output only.
    pub input: Option<OwnedFd>,
}

pub use crate::vcpu::End as Outcome;
