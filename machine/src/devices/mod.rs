//! All devices of a machine, built from their descriptions.
//!
//! Devices that are not virtio are in this directory, virtio devices in [`virtio`](crate::virtio). The two
//! tables are here: [`VirtioSpec`] has a line for each kind of virtio device, [`fixed`] one for each device
//! that every machine of an architecture has. To add a device, write its file and add its line.

use std::sync::{Arc, Mutex};

use ami::Architecture;

use crate::arch::aarch64::layout as arm;
use crate::arch::x86_64::layout as pc;
use crate::bus::{At, BusDevice, RegisterNames, SharedDevice};
use crate::virtio::balloon::BalloonSpec;
use crate::virtio::block::DiskSpec;
use crate::virtio::console::ConsoleSpec;
use crate::virtio::net::NetSpec;
use crate::virtio::rng::RngSpec;
use crate::virtio::vsock::VsockSpec;
use crate::virtio::{self, VirtioDevice};
use power::{AcpiPower, KeyboardReset};
use rtc::Clock;

pub mod boot_timer;
pub mod ioapic;
pub mod power;
pub mod rtc;
pub mod serial;
mod state;

pub use state::{FixedDevices, FixedState};

/// A virtio device, as it is to be.
pub enum VirtioSpec {
    /// The memory balloon.
    Balloon(BalloonSpec),
    /// A disk.
    Disk(DiskSpec),
    /// A console, the guest's `hvc0`.
    Console(ConsoleSpec),
    /// A network card.
    Net(NetSpec),
    /// The source of entropy.
    Rng(RngSpec),
    /// The socket device.
    Vsock(VsockSpec),
}

impl VirtioSpec {
    /// Its virtio device id.
    pub fn id(&self) -> u32 {
        use virtio_bindings::virtio_ids as ids;
        match self {
            VirtioSpec::Balloon(_) => ids::VIRTIO_ID_BALLOON,
            VirtioSpec::Disk(_) => ids::VIRTIO_ID_BLOCK,
            VirtioSpec::Console(_) => ids::VIRTIO_ID_CONSOLE,
            VirtioSpec::Net(_) => ids::VIRTIO_ID_NET,
            VirtioSpec::Rng(_) => ids::VIRTIO_ID_RNG,
            VirtioSpec::Vsock(_) => ids::VIRTIO_ID_VSOCK,
        }
    }

    /// Builds the device.
    ///
    /// # Errors
    /// When the host does not give what the device needs of it.
    pub fn build(self) -> Result<Box<dyn VirtioDevice>, virtio::Error> {
        Ok(match self {
            VirtioSpec::Balloon(spec) => Box::new(spec.build()),
            VirtioSpec::Disk(spec) => Box::new(spec.build()?),
            VirtioSpec::Console(spec) => Box::new(spec.build()),
            VirtioSpec::Net(spec) => Box::new(spec.build()),
            VirtioSpec::Rng(spec) => Box::new(spec.build()),
            VirtioSpec::Vsock(spec) => Box::new(spec.build()?),
        })
    }
}

/// A device and where the guest finds its registers.
pub struct Mapped {
    /// What exit profiles call it.
    pub name: String,
    /// Where its registers begin.
    pub at: At,
    /// Bytes of its registers.
    pub len: u64,
    /// What its specification calls them.
    pub registers: RegisterNames,
    /// The device itself.
    pub device: SharedDevice,
}

impl Mapped {
    /// A device of which the bus is the only user.
    fn new(
        name: &str,
        at: At,
        len: u64,
        registers: RegisterNames,
        device: impl BusDevice + 'static,
    ) -> Mapped {
        Mapped::shared(name, at, len, registers, Arc::new(Mutex::new(device)))
    }

    /// A device that others use, too.
    fn shared(name: &str, at: At, len: u64, registers: RegisterNames, device: SharedDevice) -> Mapped {
        Mapped {
            name: name.to_owned(),
            at,
            len,
            registers,
            device,
        }
    }
}

/// A device whose one register has no name of its own.
const ONE_REGISTER: RegisterNames = &[(0, "")];

/// The devices that every machine of `architecture` has, besides interrupt controller, serial port and boot
/// timer, and those of them that a snapshot is to ask. On arm64 the accelerator carries out PSCI's power-off
/// and reset; a PC needs no clock, for its hypervisor gives the time.
pub fn fixed(architecture: Architecture) -> (Vec<Mapped>, FixedDevices) {
    let (acpi, keyboard, reset) = (
        At::Port(pc::ACPI_PM),
        At::Port(pc::I8042_COMMAND),
        At::Port(pc::RESET_CONTROL),
    );
    let rtc = At::Memory(arm::RTC);
    let mut stateful = FixedDevices::default();
    let mapped = match architecture {
        Architecture::X86_64 | Architecture::I386 => {
            let control = stateful.reset_control.insert(Arc::default());
            vec![
                Mapped::new("ACPI", acpi, AcpiPower::SIZE, AcpiPower::REGISTERS, AcpiPower),
                Mapped::new("reset", keyboard, 1, ONE_REGISTER, KeyboardReset),
                Mapped::shared("reset", reset, 1, ONE_REGISTER, Arc::clone(control) as _),
            ]
        }
        Architecture::Arm64 => {
            let clock = stateful.clock.insert(Arc::default());
            vec![Mapped::shared(
                "RTC",
                rtc,
                Clock::SIZE,
                Clock::REGISTERS,
                Arc::clone(clock) as _,
            )]
        }
    };
    (mapped, stateful)
}
