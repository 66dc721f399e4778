//! The serial port: a 16550A with its FIFO (crate `vm-superio`).

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{Action, BusDevice, RegisterNames};
use crate::irq::Interrupt;
use crate::state::Refused;

/// What the guest types to, as bytes that go nowhere else.
pub type Output = Box<dyn Write + Send>;

/// What a snapshot holds of it: its registers, and what is in its FIFO.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

/// A serial port of eight registers.
pub struct Serial {
    uart: Uart<Edge, Room, Output>,
    room: Arc<OnceLock<EventFd>>,
}

struct Edge(Arc<dyn Interrupt>);

impl Trigger for Edge {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Signals that the guest has read all of its input, once that was asked for.
struct Room(Arc<OnceLock<EventFd>>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(event) = self.0.get() {
            // It fails only when the counter is full, and then it is readable already.
            let _ = event.write(1);
        }
    }
}

impl Serial {
    /// Registers, in bytes of address space.
    pub const SIZE: u64 = 8;
    /// 16550 registers, reading / writing where they differ.
    pub(crate) const REGISTERS: RegisterNames = &[
        (0, "RBR/THR"),
        (1, "IER"),
        (2, "IIR/FCR"),
        (3, "LCR"),
        (4, "MCR"),
        (5, "LSR"),
        (6, "MSR"),
        (7, "SCR"),
    ];

    /// A port that interrupts through `line` and writes to `output` byte by byte, flushing each: a byte that
    /// `output` does not take is lost, as on a wire.
    pub fn new(line: Arc<dyn Interrupt>, output: Output) -> Self {
        let room = Arc::default();
        let uart = Uart::with_events(Edge(line), Room(Arc::clone(&room)), output);
        Serial { uart, room }
    }

    /// A port that goes on from what was saved. May raise an edge: the interrupt controller is restored after
    /// it, and has the one that was raised before.
    ///
    /// # Errors
    /// When the state is none that the chip can be in.
    pub fn restored(line: Arc<dyn Interrupt>, output: Output, state: &SerialState) -> Result<Self, Refused> {
        let SerialState {
            divisor,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input,
        } = state;
        let room = Arc::default();
        let state = vm_superio::SerialState {
            baud_divisor_low: divisor[0],
            baud_divisor_high: divisor[1],
            interrupt_enable: *interrupt_enable,
            interrupt_identification: *interrupt_identification,
            line_control: *line_control,
            line_status: *line_status,
            modem_control: *modem_control,
            modem_status: *modem_status,
            scratch: *scratch,
            in_buffer: input.clone(),
        };
        let uart = Uart::from_state(&state, Edge(line), Room(Arc::clone(&room)), output)
            .map_err(|_| Refused::Invalid("the input of the serial port"))?;
        Ok(Serial { uart, room })
    }

    /// What a snapshot needs.
    pub fn save(&self) -> SerialState {
        let vm_superio::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.uart.state();
        SerialState {
            divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input: in_buffer,
        }
    }

    /// Readable when the guest has emptied its input, so that [`input`](Serial::input) may go on.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn room(&self) -> io::Result<EventFd> {
        if self.room.get().is_none() {
            // Another thread may have set it meanwhile: one is as good as the other.
            let _ = self.room.set(EventFd::new(EFD_NONBLOCK)?);
        }
        match self.room.get() {
            Some(event) => event.try_clone(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Gives the guest as much of `bytes` as its FIFO takes (64 at most) and returns how much that was. Send
    /// the rest when [`room`](Serial::room) is readable.
    pub fn input(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.uart.enqueue_raw_bytes(bytes) {
            Ok(taken) => Ok(taken),
            Err(Error::FullFifo) => Ok(0),
            Err(Error::Trigger(error) | Error::IOError(error)) => Err(error),
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(register), [byte]) = (u8::try_from(offset), data) {
            *byte = self.uart.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (Ok(register), &[byte]) = (u8::try_from(offset), data)
            && let Err(error) = self.uart.write(register, byte)
        {
            tracing::debug!("serial port: {error:?}");
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::CountingLine;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (Serial, Arc<CountingLine>, Shared) {
        let (line, output) = (Arc::new(CountingLine::default()), Shared::default());
        (Serial::new(line.clone(), Box::new(output.clone())), line, output)
    }

    fn read(port: &mut Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let (mut port, _, output) = port();
        for &byte in b"hello" {
            port.write(0, &[byte]);
        }
        port.write(0, b"no"); // two bytes at once are no register access
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_waits_for_room() {
        let (mut port, line, _) = port();
        port.write(1, &[1]); // interrupt on received data
        let typed: Vec<u8> = (0..100).collect();
        let taken = port.input(&typed).unwrap();
        assert_eq!((taken, line.edges()), (64, 1));
        assert_eq!(port.input(&typed[taken..]).unwrap(), 0);
        let room = port.room().unwrap();
        assert!(room.read().is_err(), "nothing was read yet");
        let mut got: Vec<u8> = (0..64).map(|_| read(&mut port, 0)).collect();
        assert_eq!(read(&mut port, 5) & 1, 0, "no data ready");
        room.read().unwrap();
        assert_eq!(port.input(&typed[taken..]).unwrap(), 36);
        got.extend((0..36).map(|_| read(&mut port, 0)));
        assert_eq!(got, typed);
    }
}
