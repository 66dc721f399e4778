//! From a specification to a machine that is ready to run.

use std::sync::{Arc, Mutex};

use super::boot_timer::BootTimer;
use super::handle::{Handle, Shared};
use super::registers::{self, Place};
use super::{Device, Error, Machine, Spec, serial};
use crate::accel::{self, Created, Vm};
use crate::arch::{self, Platform, VirtioSlot, layout};
use crate::bus::SharedDevice;
use crate::devices::power::{AcpiPower, KeyboardReset, ResetControl};
use crate::devices::serial::Serial;
use crate::memory::{self, Memory};
use crate::timeline::Event;
use crate::vcpu::{Buses, Control, ExitTable};
use crate::virtio::mmio::{Mmio, register};

/// RAM comes in this unit, so that its end is aligned for everyone.
const RAM_UNIT: u64 = 1 << 20;

impl Machine {
    /// Builds the machine of `spec`. The guest has not run when this returns.
    pub fn build(spec: Spec) -> Result<Self, Error> {
        check(&spec)?;
        let Spec {
            cpus,
            memory: ram,
            accel,
            kernel,
            initrd,
            cmdline,
            serial,
            devices,
            uuid,
            timeline,
        } = spec;
        let chosen = accel::choose(accel)?;
        let memory = memory::allocate(&arch::ram_regions(ram))?;
        let Created { vm, mut vcpus } = chosen.create(&memory, cpus)?;
        timeline.mark(Event::VmCreated);

        let kernel = arch::load(&memory, &kernel, initrd.as_ref())?;
        let slots: Vec<_> = (0..devices.len()).map_while(VirtioSlot::nth).collect();
        let platform = Platform {
            cpus,
            cmdline: &cmdline,
            virtio: &slots,
            serial: serial.is_some(),
            uuid,
        };
        arch::write_tables(&memory, &kernel, &platform)?;
        vcpus[0].boot(&arch::boot_state(&kernel))?;
        timeline.mark(Event::MemoryReady);

        let mut board = Board::new(vm, memory);
        board.add_power()?;
        let feeder = serial
            .map(|serial| board.add_serial(serial))
            .transpose()?
            .flatten();
        for (device, slot) in devices.into_iter().zip(slots) {
            board.add_virtio(device, slot)?;
        }

        let exits: Vec<_> = vcpus.iter().map(|_| Arc::new(ExitTable::default())).collect();
        let control = Control::new(vcpus.iter().map(|vcpu| vcpu.kicker()).collect());
        let shared = Arc::new(Shared {
            control: Arc::new(control),
            timeline,
            exits: exits.clone(),
            places: board.places,
            accelerator: (chosen.name(), chosen.why),
            transports: Mutex::new(board.transports),
            reached: Mutex::default(),
        });
        let timer = Arc::new(Mutex::new(BootTimer(Arc::clone(&shared))));
        board
            .buses
            .memory
            .insert(layout::BOOT_TIMER, memory::PAGE, timer)?;
        Ok(Machine {
            vcpus,
            buses: Arc::new(board.buses),
            exits,
            serial: feeder,
            handle: Handle { shared },
        })
    }
}

/// Whether such a machine can be.
fn check(spec: &Spec) -> Result<(), Error> {
    let refuse = |what, allowed, given: String| Err(Error::Spec { what, allowed, given });
    if !(1..=layout::MAX_CPUS).contains(&spec.cpus) {
        let allowed = format!("1 to {}", layout::MAX_CPUS);
        return refuse("the number of CPUs", allowed, spec.cpus.to_string());
    }
    if !(layout::MIN_RAM..=layout::MAX_RAM).contains(&spec.memory) || !spec.memory.is_multiple_of(RAM_UNIT) {
        let allowed = format!(
            "whole MiB between {} and {} MiB",
            layout::MIN_RAM / RAM_UNIT,
            layout::MAX_RAM / RAM_UNIT
        );
        return refuse("memory", allowed, format!("{} bytes", spec.memory));
    }
    if spec.devices.len() > layout::MAX_VIRTIO {
        let allowed = format!("at most {}", layout::MAX_VIRTIO);
        return refuse(
            "the number of virtio devices",
            allowed,
            spec.devices.len().to_string(),
        );
    }
    Ok(())
}

/// What devices are plugged into.
struct Board {
    vm: Arc<dyn Vm>,
    memory: Memory,
    buses: Buses,
    transports: Vec<Arc<Mutex<Mmio>>>,
    places: Vec<Place>,
}

impl Board {
    fn new(vm: Arc<dyn Vm>, memory: Memory) -> Self {
        let boot_timer = Place {
            device: "boot timer".into(),
            ports: false,
            start: layout::BOOT_TIMER,
            len: memory::PAGE,
            names: registers::ONE,
        };
        Board {
            vm,
            memory,
            buses: Buses::default(),
            transports: Vec::new(),
            places: vec![boot_timer],
        }
    }

    /// The ways in which a PC is switched off or reset.
    fn add_power(&mut self) -> Result<(), Error> {
        let acpi = Arc::new(Mutex::new(AcpiPower));
        self.add_ports("ACPI", layout::ACPI_PM, AcpiPower::SIZE, registers::ACPI_PM, acpi)?;
        let keyboard = Arc::new(Mutex::new(KeyboardReset));
        self.add_ports("reset", layout::I8042_COMMAND, 1, registers::ONE, keyboard)?;
        let control = Arc::new(Mutex::new(ResetControl::default()));
        self.add_ports("reset", layout::RESET_CONTROL, 1, registers::ONE, control)
    }

    fn add_serial(&mut self, spec: super::Serial) -> Result<Option<serial::Feeder>, Error> {
        let io = |source| Error::Io {
            what: "the serial port",
            source,
        };
        let line = self.vm.interrupt(layout::COM1_GSI)?;
        let port = Arc::new(Mutex::new(Serial::new(line, spec.output).map_err(io)?));
        let shared: SharedDevice = Arc::clone(&port) as _;
        self.add_ports("COM1", layout::COM1, Serial::SIZE, registers::UART, shared)?;
        spec.input
            .map(|input| serial::feed(port, input).map_err(io))
            .transpose()
    }

    fn add_virtio(&mut self, device: Device, slot: VirtioSlot) -> Result<(), Error> {
        let Device { name, device } = device;
        let line = self.vm.interrupt(slot.gsi)?;
        let transport =
            Mmio::new(device, Arc::clone(&self.memory), line).map_err(|source| Error::Device {
                name: name.clone(),
                source,
            })?;
        for (value, doorbell) in transport.doorbells() {
            self.vm
                .doorbell(doorbell, slot.addr + register::QUEUE_NOTIFY, value)?;
        }
        let transport = Arc::new(Mutex::new(transport));
        let shared: SharedDevice = Arc::clone(&transport) as _;
        self.buses
            .memory
            .insert(slot.addr, layout::VIRTIO_MMIO_SIZE, shared)?;
        self.places.push(Place {
            device: format!("virtio {name}"),
            ports: false,
            start: slot.addr,
            len: layout::VIRTIO_MMIO_SIZE,
            names: registers::VIRTIO_MMIO,
        });
        self.transports.push(transport);
        Ok(())
    }

    fn add_ports(
        &mut self,
        device: &str,
        start: u16,
        len: u64,
        names: registers::Names,
        shared: SharedDevice,
    ) -> Result<(), Error> {
        let start = u64::from(start);
        self.buses.ports.insert(start, len, shared)?;
        self.places.push(Place {
            device: device.to_owned(),
            ports: true,
            start,
            len,
            names,
        });
        Ok(())
    }
}
