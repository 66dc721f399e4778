//! Names for the addresses at which a guest leaves its processor: the device, and its register as the
//! device's specification calls it.

use crate::bus::RegisterNames;
use crate::vcpu::Kind;
use crate::virtio::mmio::{self, register};

/// Where a device is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) device: String,
    /// Whether it is a range of ports.
    pub(super) ports: bool,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) names: RegisterNames,
}

/// Ports of a PC that this machine does not have, which kernels look for all the same.
const ABSENT_PORTS: &[(u64, u64, &str)] = &[
    (0x20, 2, "(no PIC)"),
    (0x40, 4, "(no PIT)"),
    (0x60, 1, "(no keyboard)"),
    (0x61, 1, "(no NMI status)"),
    (0x70, 2, "(no RTC)"),
    (0x80, 1, "(delay port)"),
    (0xa0, 2, "(no PIC)"),
    (0xed, 1, "(delay port)"),
    (0x2e8, 8, "(no COM4)"),
    (0x2f8, 8, "(no COM2)"),
    (0x3e8, 8, "(no COM3)"),
    (0xcf8, 8, "(no PCI)"),
];

/// The name of what is at `addr`.
pub(super) fn name(places: &[Place], kind: Kind, addr: u64) -> String {
    let ports = match kind {
        Kind::PortIn | Kind::PortOut => true,
        Kind::MmioRead | Kind::MmioWrite => false,
        Kind::System => return "system event".to_owned(),
        Kind::Other => return "everything else".to_owned(),
    };
    let here = |start: u64, len: u64| (start..start + len).contains(&addr);
    if let Some(place) = places
        .iter()
        .find(|place| place.ports == ports && here(place.start, place.len))
    {
        return place.register(addr - place.start);
    }
    let absent = ABSENT_PORTS
        .iter()
        .find(|(start, len, _)| ports && here(*start, *len));
    match absent {
        Some((_, _, name)) => (*name).to_owned(),
        None => "(nothing)".to_owned(),
    }
}

impl Place {
    fn register(&self, offset: u64) -> String {
        let device = &self.device;
        match self.names.iter().find(|(at, _)| *at == offset) {
            Some((_, "")) => device.clone(),
            Some((_, register)) => format!("{device} {register}"),
            None if self.names == mmio::REGISTERS && offset >= register::CONFIG => {
                format!("{device} Config+{:#x}", offset - register::CONFIG)
            }
            None => format!("{device}+{offset:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::serial::Serial;

    #[test]
    fn addresses_have_the_names_of_the_specifications() {
        let places = [
            Place {
                device: "virtio root".into(),
                ports: false,
                start: 0xc000_1000,
                len: 0x1000,
                names: mmio::REGISTERS,
            },
            Place {
                device: "COM1".into(),
                ports: true,
                start: 0x3f8,
                len: 8,
                names: Serial::REGISTERS,
            },
        ];
        for (kind, addr, expected) in [
            (Kind::MmioRead, 0xc000_1060, "virtio root InterruptStatus"),
            (Kind::MmioWrite, 0xc000_1050, "virtio root QueueNotify"),
            (Kind::MmioRead, 0xc000_1104, "virtio root Config+0x4"),
            (Kind::MmioRead, 0xc000_1048, "virtio root+0x48"),
            (Kind::PortOut, 0x3f8, "COM1 RBR/THR"),
            (Kind::PortOut, 0xcf8, "(no PCI)"),
            (Kind::MmioRead, 0x3f8, "(nothing)"),
        ] {
            assert_eq!(name(&places, kind, addr), expected);
        }
    }
}
