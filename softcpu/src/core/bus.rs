//! The bus: accesses of a processor that do not go to RAM.

/// Whether the processor goes on after a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BusResult {
    /// It does.
    #[default]
    Continue,
    /// [`Cpu::run`](crate::Cpu::run) comes back after this instruction.
    Stop,
}

/// Devices and diagnostics. Called on the processor's thread. Where nothing answers, loads give ones and
/// stores vanish.
pub trait Bus {
    /// A load from an address that is not RAM; fills `data` (1 to 8 bytes).
    fn mmio_read(&mut self, _addr: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// A store to an address that is not RAM (1 to 8 bytes, little endian).
    fn mmio_write(&mut self, _addr: u64, _data: &[u8]) -> BusResult {
        BusResult::Continue
    }
    /// Port input; fills `data` (1, 2 or 4 bytes).
    fn port_read(&mut self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// Port output (1, 2 or 4 bytes, little endian).
    fn port_write(&mut self, _port: u16, _data: &[u8]) -> BusResult {
        BusResult::Continue
    }
    /// The guest met something that this processor does not have: an instruction (which raised #UD), or a
    /// mode. Called once for each `what`.
    fn unimplemented(&mut self, what: &str, rip: u64);
    /// Where instructions are time, devices may bring in what came from outside only in here: it is called at
    /// instants that do not depend on the host, which are every 2^20 nanoseconds of guest time, and before
    /// HLT jumps ahead.
    fn poll(&mut self) {}
}

/// A bus without devices.
#[derive(Debug, Default)]
pub struct NoBus;

impl Bus for NoBus {
    fn unimplemented(&mut self, _what: &str, _rip: u64) {}
}
