//! Devices that are not virtio: serial port, reset and power, RTC, boot timer, IOAPIC.
