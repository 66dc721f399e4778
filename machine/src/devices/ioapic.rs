//! The I/O interrupt controller of a PC (Intel 82093AA, with the EOI register of version 0x20): 24 pins that
//! become messages to local APICs. KVM has its own; this one serves the accelerator in software.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::{Action, BusDevice};
use crate::irq::Interrupt;
use crate::state::Refused;

/// Number of pins.
pub(crate) const PINS: usize = 24;

/// Takes an interrupt message as a local APIC understands it: address and data (Intel SDM volume 3, §12.11).
pub(crate) type Deliver = Box<dyn Fn(u64, u32) + Send + Sync>;

/// Version 0x20, which has the EOI register, and the number of the last pin.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Bits of a redirection table entry (82093AA §3.2.4).
mod entry {
    pub const VECTOR: u64 = 0xff;
    pub const DELIVERY_MODE: u64 = 7 << 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const DELIVERY_STATUS: u64 = 1 << 12;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const DESTINATION_SHIFT: u32 = 56;
    /// What software cannot write.
    pub const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
}

/// Offsets in the register range.
mod register {
    pub const SELECT: u64 = 0x00;
    pub const WINDOW: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// The interrupt controller.
pub struct IoApic {
    /// A leaf: it is never held while a message is delivered, because a local APIC may signal an EOI
    /// meanwhile.
    state: Mutex<State>,
    deliver: Deliver,
}

/// What a snapshot holds of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u32,
    table: [u64; PINS],
    high: u32,
}

struct State {
    select: u8,
    id: u32,
    table: [u64; PINS],
    /// Lines that are held high, one bit for each pin.
    high: u32,
}

/// A message: address and data.
type Message = (u64, u32);

impl State {
    /// The message of `pin` if it may be sent now; a level-triggered one waits for its EOI from then on.
    fn fire(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.table[pin];
        if *entry & entry::MASKED != 0 {
            return None;
        }
        if *entry & entry::LEVEL != 0 {
            if *entry & entry::REMOTE_IRR != 0 {
                return None;
            }
            *entry |= entry::REMOTE_IRR;
        }
        Some(message(*entry))
    }

    /// The message of `pin` if it is level-triggered and its line is high.
    fn fire_level(&mut self, pin: usize) -> Option<Message> {
        let due = self.table[pin] & entry::LEVEL != 0 && self.high & 1 << pin != 0;
        if due { self.fire(pin) } else { None }
    }

    fn read(&self, index: u8) -> u32 {
        match (index, index.checked_sub(0x10)) {
            (0 | 2, _) => self.id,
            (1, _) => VERSION,
            (_, Some(half)) if usize::from(half) < 2 * PINS => {
                (self.table[usize::from(half / 2)] >> (32 * (half % 2))) as u32
            }
            _ => 0,
        }
    }

    fn write(&mut self, index: u8, value: u32) -> Option<Message> {
        match (index, index.checked_sub(0x10)) {
            (0, _) => self.id = value & 0x0f00_0000,
            (_, Some(half)) if usize::from(half) < 2 * PINS => {
                let pin = usize::from(half / 2);
                let shift = 32 * u32::from(half % 2);
                let old = self.table[pin];
                let written = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
                self.table[pin] = written & !entry::READ_ONLY | old & entry::READ_ONLY;
                if written & entry::LEVEL == 0 {
                    // An edge-triggered entry waits for nothing.
                    self.table[pin] &= !entry::REMOTE_IRR;
                }
                return self.fire_level(pin);
            }
            _ => {}
        }
        None
    }
}

fn message(redirection: u64) -> Message {
    const LOWEST_PRIORITY: u64 = 1 << 8;
    let destination = redirection >> entry::DESTINATION_SHIFT;
    let logical = u64::from(redirection & entry::LOGICAL != 0);
    let hint = u64::from(redirection & entry::DELIVERY_MODE == LOWEST_PRIORITY);
    let address = 0xfee0_0000 | destination << 12 | hint << 3 | logical << 2;
    let level = if redirection & entry::LEVEL != 0 {
        0b11 << 14
    } else {
        0
    };
    (
        address,
        (redirection & (entry::VECTOR | entry::DELIVERY_MODE)) as u32 | level,
    )
}

impl IoApic {
    /// Bytes of address space.
    pub const SIZE: u64 = 0x1000;

    /// A controller with all pins masked, as after power-on.
    pub fn new(deliver: Deliver) -> Arc<Self> {
        let state = State {
            select: 0,
            id: 0,
            table: [entry::MASKED; PINS],
            high: 0,
        };
        Arc::new(IoApic {
            state: Mutex::new(state),
            deliver,
        })
    }

    /// Pin `number` as an edge-triggered line; `None` beyond the last pin. Without effect while the pin is
    /// masked, as in the chip.
    pub fn pin(self: &Arc<Self>, number: u32) -> Option<Arc<dyn Interrupt>> {
        let number = usize::try_from(number).ok().filter(|&number| number < PINS)?;
        Some(Arc::new(Pin {
            controller: self.clone(),
            number,
        }))
    }

    /// Sets the line at pin `number`. A high line at a level-triggered pin interrupts again after each EOI; a
    /// rising one at an edge-triggered pin interrupts once. Pins that do not exist are ignored.
    pub fn set_line(&self, number: usize, high: bool) {
        if number >= PINS {
            return;
        }
        let mut state = self.lock();
        let rose = high && state.high & 1 << number == 0;
        state.high = state.high & !(1 << number) | u32::from(high) << number;
        let due = if state.table[number] & entry::LEVEL != 0 {
            high
        } else {
            rose
        };
        let message = if due { state.fire(number) } else { None };
        self.send(state, message);
    }

    /// A local APIC has finished an interrupt with this vector. Lines that are still high interrupt again.
    pub fn end_of_interrupt(&self, vector: u8) {
        for pin in 0..PINS {
            let mut state = self.lock();
            let waits = entry::LEVEL | entry::REMOTE_IRR;
            let entry = state.table[pin];
            if entry & waits == waits && entry & entry::VECTOR == u64::from(vector) {
                state.table[pin] &= !entry::REMOTE_IRR;
                let message = state.fire_level(pin);
                self.send(state, message);
            }
        }
    }

    /// What a snapshot needs.
    pub fn save(&self) -> IoApicState {
        let State {
            select,
            id,
            table,
            high,
        } = *self.lock();
        IoApicState {
            select,
            id,
            table,
            high,
        }
    }

    /// Goes on from a saved state. Nothing is sent: what was, is with the local APICs.
    ///
    /// # Errors
    /// When the state is none that the chip can be in; nothing is changed then.
    pub fn restore(&self, state: &IoApicState) -> Result<(), Refused> {
        let IoApicState {
            select,
            id,
            table,
            high,
        } = *state;
        Refused::unless(id & !0x0f00_0000 == 0, "the id of the IOAPIC")?;
        Refused::unless(high >> PINS == 0, "the lines of the IOAPIC")?;
        let waits = |entry: u64| entry & entry::LEVEL != 0 || entry & entry::REMOTE_IRR == 0;
        let sound = table
            .iter()
            .all(|entry| entry & entry::DELIVERY_STATUS == 0 && waits(*entry));
        Refused::unless(sound, "the redirection table of the IOAPIC")?;
        *self.lock() = State {
            select,
            id,
            table,
            high,
        };
        Ok(())
    }

    /// The register range, for the bus.
    pub fn registers(self: &Arc<Self>) -> Registers {
        Registers(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, state: MutexGuard<'_, State>, message: Option<Message>) {
        drop(state);
        if let Some((address, data)) = message {
            (self.deliver)(address, data);
        }
    }
}

struct Pin {
    controller: Arc<IoApic>,
    number: usize,
}

impl Interrupt for Pin {
    fn trigger(&self) -> io::Result<()> {
        let mut state = self.controller.lock();
        let message = state.fire(self.number);
        self.controller.send(state, message);
        Ok(())
    }
}

/// The registers of an [`IoApic`] on the bus.
pub struct Registers(Arc<IoApic>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let state = self.0.lock();
        let value = match offset {
            register::SELECT => state.select.into(),
            register::WINDOW => state.read(state.select),
            _ => 0,
        };
        // Registers are 32 bits wide; Linux reads them as such, and other widths see their low or
        // zero-extended part.
        for (to, from) in data.iter_mut().zip(u64::from(value).to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let mut bytes = [0; 4];
        for (to, &from) in bytes.iter_mut().zip(data) {
            *to = from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            register::SELECT => self.0.lock().select = value as u8,
            register::WINDOW => {
                let mut state = self.0.lock();
                let select = state.select;
                let message = state.write(select, value);
                self.0.send(state, message);
            }
            register::EOI => self.0.end_of_interrupt(value as u8),
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        controller: Arc<IoApic>,
        messages: Arc<Mutex<Vec<Message>>>,
    }

    impl Bench {
        fn new() -> Self {
            let messages = Arc::new(Mutex::new(Vec::new()));
            let sink = messages.clone();
            let controller = IoApic::new(Box::new(move |address, data| {
                sink.lock().unwrap().push((address, data))
            }));
            Bench { controller, messages }
        }

        fn write(&self, index: u8, value: u32) {
            let mut registers = self.controller.registers();
            registers.write(register::SELECT, &[index, 0, 0, 0]);
            registers.write(register::WINDOW, &value.to_le_bytes());
        }

        fn read(&self, index: u8) -> u32 {
            let mut registers = self.controller.registers();
            registers.write(register::SELECT, &[index, 0, 0, 0]);
            let mut data = [0xff; 4];
            registers.read(register::WINDOW, &mut data);
            u32::from_le_bytes(data)
        }

        fn program(&self, pin: u8, low: u32, destination: u32) {
            self.write(0x11 + 2 * pin, destination << 24);
            self.write(0x10 + 2 * pin, low);
        }

        fn take(&self) -> Vec<Message> {
            std::mem::take(&mut self.messages.lock().unwrap())
        }
    }

    #[test]
    fn edges_become_messages_unless_masked() {
        let bench = Bench::new();
        let line = bench.controller.pin(5).unwrap();
        line.trigger().unwrap();
        assert_eq!(bench.take(), [], "masked at power-on");
        bench.program(5, 0x31, 2);
        assert_eq!(bench.take(), [], "what came while it was masked is gone");
        line.trigger().unwrap();
        line.trigger().unwrap();
        assert_eq!(bench.take(), [(0xfee0_2000, 0x31); 2]);
        // Lowest priority, logical destination.
        bench.program(5, 0x0931, 0xff);
        line.trigger().unwrap();
        assert_eq!(bench.take(), [(0xfeef_f00c, 0x0131)]);
        bench.program(5, 0x1_0031, 2);
        line.trigger().unwrap();
        assert_eq!(bench.take(), []);
        assert!(bench.controller.pin(24).is_none());
    }

    #[test]
    fn a_level_interrupts_again_until_it_falls() {
        let bench = Bench::new();
        bench.program(9, 0x8041, 0);
        let message = (0xfee0_0000, 0xc041);
        bench.controller.set_line(9, true);
        bench.controller.set_line(9, true);
        assert_eq!(bench.take(), [message]);
        assert_eq!(bench.read(0x22) & 1 << 14, 1 << 14, "remote IRR");
        bench.controller.end_of_interrupt(0x42);
        assert_eq!(bench.take(), [], "another vector");
        bench.controller.end_of_interrupt(0x41);
        assert_eq!(bench.take(), [message]);
        bench.controller.set_line(9, false);
        let mut registers = bench.controller.registers();
        registers.write(register::EOI, &[0x41, 0, 0, 0]);
        assert_eq!(bench.take(), []);
        assert_eq!(bench.read(0x22) & 1 << 14, 0);
    }

    #[test]
    fn a_level_that_was_masked_interrupts_when_it_is_unmasked() {
        let bench = Bench::new();
        bench.program(3, 0x1_8050, 0);
        bench.controller.set_line(3, true);
        assert_eq!(bench.take(), []);
        bench.program(3, 0x8050, 0);
        assert_eq!(bench.take(), [(0xfee0_0000, 0xc050)]);
    }

    #[test]
    fn registers_are_those_of_the_82093aa() {
        let bench = Bench::new();
        assert_eq!(bench.read(1), 0x0017_0020);
        bench.write(0, 0xffff_ffff);
        assert_eq!(bench.read(0), 0x0f00_0000);
        bench.program(23, 0xffff_ffff, 0xab);
        assert_eq!(
            bench.read(0x3e),
            0xffff_afff,
            "status and remote IRR are read-only"
        );
        assert_eq!(bench.read(0x3f), 0xab00_0000);
        assert_eq!(bench.read(0x40), 0);
        bench.write(0x40, 1);
        bench.controller.set_line(99, true);
        for width in [1, 2, 8] {
            let mut data = vec![0xff; width];
            bench.controller.registers().read(0x123, &mut data);
            bench.controller.registers().write(register::WINDOW, &data);
        }
    }

    #[test]
    fn delivery_may_signal_the_end_at_once() {
        let slot: Arc<Mutex<Option<Arc<IoApic>>>> = Arc::default();
        let back = slot.clone();
        let controller = IoApic::new(Box::new(move |_, data| {
            let controller = back.lock().unwrap().clone().unwrap();
            controller.set_line(4, false);
            controller.end_of_interrupt(data as u8);
        }));
        *slot.lock().unwrap() = Some(controller.clone());
        let mut registers = controller.registers();
        registers.write(register::SELECT, &[0x18]);
        registers.write(register::WINDOW, &0x8060u32.to_le_bytes());
        controller.set_line(4, true);
        assert_eq!(controller.lock().table[4] & entry::REMOTE_IRR, 0);
    }
}
