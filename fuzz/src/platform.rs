//! The platform's devices behind one bus: serial port, I/O APIC, boot timer, clock, power and reset.

use std::sync::{Arc, Mutex};

use machine::bus::{Action, Bus, BusDevice};
use machine::devices::boot_timer::BootTimer;
use machine::devices::ioapic::IoApic;
use machine::devices::power::{AcpiPower, KeyboardReset, ResetControl};
use machine::devices::rtc::Clock;
use machine::devices::serial::Serial;
use machine::virtio::testing::CountingLine;

use crate::input::Input;

/// Steps of one input at most.
const MAX_STEPS: usize = 1024;
/// Where the devices are. Their order is that of `machine`.
const PLACES: [(u64, u64); 7] = [
    (0x3f8, Serial::SIZE),
    (0x1000, IoApic::SIZE),
    (0x2000, BootTimer::SIZE),
    (0x3000, Clock::SIZE),
    (0x4000, AcpiPower::SIZE),
    (KeyboardReset::PORT, 1),
    (ResetControl::PORT, 1),
];

struct Platform {
    bus: Bus,
    serial: Arc<Mutex<Serial>>,
    ioapic: Arc<IoApic>,
}

fn platform() -> Platform {
    let ioapic = IoApic::new(Box::new(|address, _| {
        // The address range of interrupt messages (SDM 11.11.1): nothing else may leave the chip.
        assert_eq!(
            address & 0xfff0_0000,
            0xfee0_0000,
            "{address:#x} is no message address"
        );
    }));
    let line = ioapic.pin(4).unwrap_or_else(|| Arc::new(CountingLine::default()));
    let serial = Arc::new(Mutex::new(Serial::new(line, Box::new(std::io::sink()))));
    let mut bus = Bus::default();
    let devices: [Arc<Mutex<dyn BusDevice>>; 7] = [
        serial.clone(),
        Arc::new(Mutex::new(ioapic.registers())),
        Arc::new(Mutex::new(BootTimer::new(Box::new(|_| {}), true))),
        Arc::new(Mutex::new(Clock::new())),
        Arc::new(Mutex::new(AcpiPower)),
        Arc::new(Mutex::new(KeyboardReset)),
        Arc::new(Mutex::new(ResetControl::default())),
    ];
    for ((start, len), device) in PLACES.into_iter().zip(devices) {
        bus.insert(start, len, device).expect("the places do not overlap");
    }
    Platform { bus, serial, ioapic }
}

/// Each step is an access somewhere, a key typed, a line that moves or an end of interrupt.
pub fn run(data: &[u8]) {
    let platform = platform();
    let mut input = Input::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            return;
        }
        step(&platform, &mut input);
    }
}

fn step(platform: &Platform, input: &mut Input<'_>) {
    let kind = input.byte();
    let width = 1 << (kind >> 6);
    match kind % 16 {
        0..6 => {
            let address = address(input);
            platform.bus.read(address, &mut [0; 8][..width]);
        }
        6..12 => {
            let address = address(input);
            let action = platform.bus.write(address, &input.array::<8>()[..width]);
            let (power, _) = PLACES[4];
            let may_act = address >= power && address < power + AcpiPower::SIZE
                || [KeyboardReset::PORT, ResetControl::PORT].contains(&address);
            assert!(action == Action::None || may_act, "{action:?} by {address:#x}");
        }
        12 => {
            let typed = input.byte();
            let mut serial = platform.serial.lock().expect("no device panics");
            let taken = serial.input(input.bytes(typed.into())).expect("the line works");
            assert!(taken <= 64, "the FIFO took {taken}");
        }
        13 => platform
            .ioapic
            .set_line(usize::from(input.byte() % 32), kind & 0x40 != 0),
        14 => platform.ioapic.end_of_interrupt(input.byte()),
        _ => {
            if let Some(pin) = platform.ioapic.pin(u32::from(input.byte() % 32)) {
                pin.trigger().expect("a pin in memory");
            }
        }
    }
}

/// Mostly inside of a device, sometimes beside it, rarely anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    let (start, len) = input.one_of(&PLACES);
    match input.byte() {
        255 => input.long(),
        at @ 240.. => start.wrapping_add(at.into()).wrapping_sub(247),
        // The window registers of the I/O APIC and the clock are at multiples of 16 and 4.
        at => start + u64::from(at) % len.min(64),
    }
}
