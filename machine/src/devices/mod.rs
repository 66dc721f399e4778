//! Devices that are not virtio: the serial port, power control, and what a machine needs besides.

pub mod boot_timer;
pub mod ioapic;
pub mod power;
pub mod rtc;
pub mod serial;
