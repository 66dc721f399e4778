//! Power-off and reset: the sleep and reset registers of hardware-reduced ACPI, and the two ports that
//! software knows from PC chipsets.

use crate::bus::{Action, BusDevice, RegisterNames};

/// Registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7, §4.8.3.6), one byte each, in one range.
#[derive(Debug, Default)]
pub struct AcpiPower;

impl AcpiPower {
    /// Bytes of address space.
    pub const SIZE: u64 = 3;
    /// `SLEEP_CONTROL_REG`: a write of sleep type and enable bit sleeps.
    pub(crate) const SLEEP_CONTROL: u64 = 0;
    /// `SLEEP_STATUS_REG`: reads 0, since this machine never wakes.
    pub(crate) const SLEEP_STATUS: u64 = 1;
    /// `RESET_REG`: a write of [`RESET_VALUE`](Self::RESET_VALUE) resets.
    pub const RESET: u64 = 2;
    /// The value for the FADT's `RESET_VALUE`.
    pub(crate) const RESET_VALUE: u8 = 1;
    /// `SLP_TYP` of the state S5, soft off: what the DSDT's `\_S5` must say.
    pub const S5: u8 = 5;

    /// ACPI 6.5 §4.8.3.
    pub(crate) const REGISTERS: RegisterNames = &[
        (Self::SLEEP_CONTROL, "SLEEP_CONTROL_REG"),
        (Self::SLEEP_STATUS, "SLEEP_STATUS_REG"),
        (Self::RESET, "RESET_REG"),
    ];
}

/// `SLP_EN` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;

impl BusDevice for AcpiPower {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (Self::SLEEP_CONTROL, &[value]) if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == Self::S5 => {
                Action::Shutdown
            }
            (Self::RESET, &[Self::RESET_VALUE]) => Action::Reset,
            _ => Action::None,
        }
    }
}

/// The keyboard controller's command port 0x64, as far as a reset goes: command 0xfe pulses the processor's
/// reset line.
#[derive(Debug, Default)]
pub struct KeyboardReset;

impl KeyboardReset {
    /// The I/O port.
    pub const PORT: u64 = 0x64;
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // The status "input buffer empty": Linux polls for it up to 65,536 times before it sends the command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        if data == [0xfe] {
            Action::Reset
        } else {
            Action::None
        }
    }
}

/// The reset control register 0xcf9 of PC chipsets: bit 2 resets.
#[derive(Debug, Default)]
pub struct ResetControl(u8);

impl ResetControl {
    /// The I/O port.
    pub const PORT: u64 = 0xcf9;

    /// What a snapshot needs.
    pub fn save(&self) -> u8 {
        self.0
    }

    /// Goes on from what was saved. Any value can be written to the register, but for the bit that acts.
    pub fn restore(&mut self, value: u8) {
        self.0 = value & !4;
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [value] = data {
            *value = self.0;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        let &[value] = data else { return Action::None };
        self.0 = value & !4;
        if value & 4 != 0 {
            Action::Reset
        } else {
            Action::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_writes_act() {
        let mut acpi = AcpiPower;
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[0x34]), Action::Shutdown);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[0x14]), Action::None);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[0x20]), Action::None);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[0x34, 0]), Action::None);
        assert_eq!(acpi.write(AcpiPower::RESET, &[1]), Action::Reset);
        assert_eq!(acpi.write(AcpiPower::RESET, &[2]), Action::None);
        assert_eq!(acpi.write(AcpiPower::SLEEP_STATUS, &[0x80]), Action::None);
        let mut status = [0xff];
        acpi.read(AcpiPower::SLEEP_STATUS, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn legacy_ports_reset() {
        assert_eq!(KeyboardReset.write(0, &[0xfe]), Action::Reset);
        assert_eq!(KeyboardReset.write(0, &[0xd1]), Action::None);
        let mut control = ResetControl::default();
        assert_eq!(control.write(0, &[2]), Action::None);
        let mut value = [0];
        control.read(0, &mut value);
        assert_eq!(value, [2]);
        assert_eq!(control.write(0, &[6]), Action::Reset);
    }
}
