//! Names for the addresses at which a guest leaves its processor: the device, and its register as the device's
//! specification calls it.

use crate::devices::boot_timer::BootTimer;
use crate::vcpu::Kind;
use crate::virtio::mmio::register as virtio;

/// Register names by offset, sorted.
pub(super) type Names = &'static [(u64, &'static str)];

/// Where a device is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) device: String,
    /// Whether it is a range of ports.
    pub(super) ports: bool,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) names: Names,
}

/// VIRTIO 1.3 table 4.1.
pub(super) const VIRTIO_MMIO: Names = &[
    (virtio::MAGIC_VALUE, "MagicValue"),
    (virtio::VERSION, "Version"),
    (virtio::DEVICE_ID, "DeviceID"),
    (virtio::VENDOR_ID, "VendorID"),
    (virtio::DEVICE_FEATURES, "DeviceFeatures"),
    (virtio::DEVICE_FEATURES_SEL, "DeviceFeaturesSel"),
    (virtio::DRIVER_FEATURES, "DriverFeatures"),
    (virtio::DRIVER_FEATURES_SEL, "DriverFeaturesSel"),
    (virtio::QUEUE_SEL, "QueueSel"),
    (virtio::QUEUE_SIZE_MAX, "QueueSizeMax"),
    (virtio::QUEUE_SIZE, "QueueSize"),
    (virtio::QUEUE_READY, "QueueReady"),
    (virtio::QUEUE_NOTIFY, "QueueNotify"),
    (virtio::INTERRUPT_STATUS, "InterruptStatus"),
    (virtio::INTERRUPT_ACK, "InterruptACK"),
    (virtio::STATUS, "Status"),
    (virtio::QUEUE_DESC_LOW, "QueueDescLow"),
    (virtio::QUEUE_DESC_HIGH, "QueueDescHigh"),
    (virtio::QUEUE_DRIVER_LOW, "QueueDriverLow"),
    (virtio::QUEUE_DRIVER_HIGH, "QueueDriverHigh"),
    (virtio::QUEUE_DEVICE_LOW, "QueueDeviceLow"),
    (virtio::QUEUE_DEVICE_HIGH, "QueueDeviceHigh"),
    (0x0ac, "SHMSel"),
    (virtio::SHM_LEN_LOW, "SHMLenLow"),
    (0x0b4, "SHMLenHigh"),
    (0x0b8, "SHMBaseLow"),
    (virtio::SHM_BASE_HIGH, "SHMBaseHigh"),
    (virtio::CONFIG_GENERATION, "ConfigGeneration"),
];
/// 16550 registers, reading / writing where they differ.
pub(super) const UART: Names = &[
    (0, "RBR/THR"),
    (1, "IER"),
    (2, "IIR/FCR"),
    (3, "LCR"),
    (4, "MCR"),
    (5, "LSR"),
    (6, "MSR"),
    (7, "SCR"),
];
/// ARM PrimeCell Real Time Clock (PL031) Technical Reference Manual, table 3-1.
pub(super) const PL031: Names = &[
    (0x00, "RTCDR"),
    (0x04, "RTCMR"),
    (0x08, "RTCLR"),
    (0x0c, "RTCCR"),
    (0x10, "RTCIMSC"),
    (0x14, "RTCRIS"),
    (0x18, "RTCMIS"),
    (0x1c, "RTCICR"),
];
/// ACPI 6.5 §4.8.3.
pub(super) const ACPI_PM: Names = &[
    (0, "SLEEP_CONTROL_REG"),
    (1, "SLEEP_STATUS_REG"),
    (2, "RESET_REG"),
];
/// Our own device.
pub(super) const BOOT_TIMER: Names = &[
    (BootTimer::MARK, "MARK"),
    (BootTimer::KERNEL_AGE, "KERNEL_AGE"),
    (BootTimer::HOST_TIME, "HOST_TIME"),
];
/// One register has no name of its own.
pub(super) const ONE: Names = &[(0, "")];

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
            None if self.names == VIRTIO_MMIO && offset >= virtio::CONFIG => {
                format!("{device} Config+{:#x}", offset - virtio::CONFIG)
            }
            None => format!("{device}+{offset:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_names_of_the_specifications() {
        let places = [
            Place {
                device: "virtio root".into(),
                ports: false,
                start: 0xc000_1000,
                len: 0x1000,
                names: VIRTIO_MMIO,
            },
            Place {
                device: "COM1".into(),
                ports: true,
                start: 0x3f8,
                len: 8,
                names: UART,
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
