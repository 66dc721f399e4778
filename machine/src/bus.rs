//! Address ranges and the devices behind them, for memory-mapped and port I/O alike.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What the machine has to do after a device has taken a write.
///
/// Devices answer with data instead of calling back into the machine under a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Nothing beyond the write itself.
    #[default]
    None,
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest asked for power-off.
    Shutdown,
}

/// A device that occupies a range of a [`Bus`].
///
/// Offsets are relative to the start of the range. `data` is 1, 2, 4 or 8 bytes, little endian. Any offset
/// and any width may arrive: the guest chooses both.
pub trait BusDevice: Send {
    /// Fills `data`. A device that does not decode the access leaves `data` as it is: the bus has filled it
    /// with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`. A device that does not decode the access ignores it.
    fn write(&mut self, offset: u64, data: &[u8]) -> Action;
}

/// Where a device's registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// From this I/O port on.
    Port(u16),
    /// From this guest-physical address on.
    Memory(u64),
}

/// What a device's specification calls its registers, by offset, sorted.
pub(crate) type RegisterNames = &'static [(u64, &'static str)];

/// A device as the bus holds it.
pub(crate) type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a device could not be put on the bus.
#[derive(Debug, displaydoc::Display, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// the range {start:#x}+{len:#x} is empty, wraps around or overlaps the range at {other:#x}
    Range {
        /// First address of the refused range.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// Start of the range that is in the way (the refused one's own when it is malformed).
        other: u64,
    },
}

/// Devices by address. Built once, before the first vCPU runs; read-only afterwards, so looking up takes no
/// lock.
#[derive(Default)]
pub struct Bus {
    /// start -> (length, device).
    ///
    /// Lock order, outermost first: the machine handle's list of transports; one device, here; what that
    /// device locks itself, which is what a console or balloon shares with its user, a serial port's output,
    /// a worker's gate, the exits up to an event of the boot; last the interrupt controller and the mailboxes
    /// of software processors. A device stays locked while it waits for its worker: to stop it, and in step
    /// with the processor to have a doorbell served. So a worker, and whatever a worker waits for, never
    /// locks a device.
    ranges: BTreeMap<u64, (u64, SharedDevice)>,
}

impl Bus {
    /// Puts `device` at `[start, start + len)`.
    pub fn insert(&mut self, start: u64, len: u64, device: SharedDevice) -> Result<(), Error> {
        let clash = |other| Error::Range { start, len, other };
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(clash(start))?;
        if let Some((&other, &(other_len, _))) = self.ranges.range(..end).next_back()
            && other + other_len > start
        {
            return Err(clash(other));
        }
        self.ranges.insert(start, (len, device));
        Ok(())
    }

    /// Reads at `addr`. Where no device answers, `data` is all ones, as on an undriven bus.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(addr, data.len()) {
            lock(device).read(offset, data);
        }
    }

    /// Writes at `addr`. Where no device answers, the write is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) -> Action {
        match self.find(addr, data.len()) {
            Some((offset, device)) => lock(device).write(offset, data),
            None => Action::None,
        }
    }

    fn find(&self, addr: u64, width: usize) -> Option<(u64, &SharedDevice)> {
        let (&start, (len, device)) = self.ranges.range(..=addr).next_back()?;
        let offset = addr - start;
        (offset.checked_add(width as u64)? <= *len).then_some((offset, device))
    }
}

/// A device whose worker panicked is still a device: its registers stay readable.
fn lock<'a>(
    device: &'a Mutex<dyn BusDevice + 'static>,
) -> std::sync::MutexGuard<'a, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Action {
            self.0.push((offset, data.to_vec()));
            Action::Reset
        }
    }

    fn echo() -> SharedDevice {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x100, echo()).unwrap();
        let mut data = [0; 2];
        bus.read(0x1010, &mut data);
        assert_eq!(data, [0x10, 0x10]);
        assert_eq!(bus.write(0x10fc, &[1, 2, 3, 4]), Action::Reset);
    }

    #[test]
    fn an_unclaimed_address_reads_as_ones() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x100, echo()).unwrap();
        for addr in [0xfff, 0x10fd, 0x1100, u64::MAX] {
            let mut data = [0; 4];
            bus.read(addr, &mut data);
            assert_eq!(data, [0xff; 4], "{addr:#x}");
            assert_eq!(bus.write(addr, &data), Action::None);
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x100, echo()).unwrap();
        for (start, len) in [
            (0x1000, 1),
            (0xfff, 2),
            (0x10ff, 1),
            (0, 0x2000),
            (5, 0),
            (u64::MAX, 2),
        ] {
            assert!(bus.insert(start, len, echo()).is_err(), "{start:#x}+{len:#x}");
        }
        bus.insert(0x1100, 1, echo()).unwrap();
    }
}
