//! From a specification to a machine that is ready to run.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::handle::{Handle, Shared};
use super::registers::{self, Place};
use super::{Device, Error, Machine, Spec, serial};
use crate::accel::{Created, Vm};
use crate::arch::aarch64::layout as arm;
use crate::arch::x86_64::layout as pc;
use crate::arch::{self, Architecture, At, Layout, Platform, VIRTIO_MMIO_SIZE, VirtioSlot};
use crate::bus::SharedDevice;
use crate::devices::boot_timer::{BootTimer, Mark};
use crate::devices::power::{AcpiPower, KeyboardReset, ResetControl};
use crate::devices::rtc::Clock;
use crate::devices::serial::Serial;
use crate::memory::{self, Memory};
use crate::timeline::Event;
use crate::vcpu::{Buses, Control, ExitTable};
use crate::virtio::determinism::{Determinism, WorkerGate};
use crate::virtio::mmio::{Mmio, register};

/// RAM comes in this unit, so that its end is aligned for everyone.
const RAM_UNIT: u64 = 1 << 20;

impl Machine {
    /// Builds the machine of `spec`. The guest has not run when this returns.
    pub fn build(spec: Spec) -> Result<Self, Error> {
        check(&spec)?;
        let Spec {
            architecture,
            cpus,
            memory: ram,
            accel,
            kernel,
            initrd,
            cmdline,
            serial,
            devices,
            uuid,
            determinism,
            timeline,
        } = spec;
        let layout = arch::layout(architecture);
        let memory = memory::allocate(&arch::ram_regions(architecture, ram))?;
        let Created {
            vm,
            mut vcpus,
            controller,
        } = accel.create(&memory, cpus)?;
        timeline.mark(Event::VmCreated);

        let slots: Vec<_> = (0..devices.len()).map_while(|n| layout.virtio_slot(n)).collect();
        let platform = Platform {
            cpus,
            cmdline: &cmdline,
            virtio: &slots,
            serial: serial.is_some(),
            uuid,
            controller,
        };
        let boot = arch::prepare(architecture, &memory, &kernel, initrd.as_ref(), &platform)?;
        vcpus[0].boot(&boot)?;
        timeline.mark(Event::MemoryReady);

        // Where instructions are time, the guest's time is not the host's.
        let tells_time = !determinism.is_enabled();
        let mut board = Board::new(Arc::clone(&vm), memory, layout, determinism);
        match architecture {
            Architecture::X86_64 => board.add_power()?,
            Architecture::Arm64 => board.add_clock()?,
        }
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
            vm,
            exits: exits.clone(),
            places: board.places,
            accelerator: (accel.name(), accel.why.clone()),
            transports: Mutex::new(board.transports),
            reached: Mutex::default(),
        });
        board.buses.memory.insert(
            layout.boot_timer,
            BootTimer::SIZE,
            boot_timer(&shared, tells_time),
        )?;
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
    if spec.determinism.is_enabled() != spec.accel.is_repeatable() {
        return Err(Error::Spec {
            what: "the accelerator",
            allowed: "one that counts instructions exactly where every run is to be the same".into(),
            given: spec.accel.name().to_owned(),
        });
    }
    let layout = arch::layout(spec.architecture);
    let refuse = |what, allowed, given: String| Err(Error::Spec { what, allowed, given });
    if !(1..=layout.max_cpus).contains(&spec.cpus) {
        let allowed = format!("1 to {}", layout.max_cpus);
        return refuse("the number of CPUs", allowed, spec.cpus.to_string());
    }
    if !(layout.min_ram..=layout.max_ram).contains(&spec.memory) || !spec.memory.is_multiple_of(RAM_UNIT) {
        let allowed = format!(
            "whole MiB between {} and {} MiB",
            layout.min_ram / RAM_UNIT,
            layout.max_ram / RAM_UNIT
        );
        return refuse("memory", allowed, format!("{} bytes", spec.memory));
    }
    if spec.determinism.is_enabled() && spec.cpus != 1 {
        let allowed = "1 where instructions are counted".into();
        return refuse("the number of CPUs", allowed, spec.cpus.to_string());
    }
    if spec.devices.len() > layout.max_virtio {
        let allowed = format!("at most {}", layout.max_virtio);
        return refuse(
            "the number of virtio devices",
            allowed,
            spec.devices.len().to_string(),
        );
    }
    Ok(())
}

/// The boot timer, noting what the guest says.
fn boot_timer(shared: &Arc<Shared>, tells_time: bool) -> SharedDevice {
    let shared = Arc::clone(shared);
    let note = move |mark| match mark {
        Mark::Reached(code) => {
            if let Some(event) = Event::from_guest(code) {
                shared.reached(event);
            }
        }
        Mark::KernelStarted(at) => shared.timeline.mark_at(Event::KernelStart, at),
    };
    Arc::new(Mutex::new(BootTimer::new(Box::new(note), tells_time)))
}

/// What devices are plugged into.
struct Board {
    vm: Arc<dyn Vm>,
    memory: Memory,
    determinism: Determinism,
    buses: Buses,
    transports: Vec<Arc<Mutex<Mmio>>>,
    places: Vec<Place>,
    layout: &'static Layout,
}

impl Board {
    fn new(vm: Arc<dyn Vm>, memory: Memory, layout: &'static Layout, determinism: Determinism) -> Self {
        let boot_timer = Place {
            device: "boot timer".into(),
            ports: false,
            start: layout.boot_timer,
            len: BootTimer::SIZE,
            names: registers::BOOT_TIMER,
        };
        Board {
            vm,
            memory,
            determinism,
            buses: Buses::default(),
            transports: Vec::new(),
            places: vec![boot_timer],
            layout,
        }
    }

    /// The ways in which a PC is switched off or reset.
    fn add_power(&mut self) -> Result<(), Error> {
        let acpi = Arc::new(Mutex::new(AcpiPower));
        self.add_ports("ACPI", pc::ACPI_PM, AcpiPower::SIZE, registers::ACPI_PM, acpi)?;
        let keyboard = Arc::new(Mutex::new(KeyboardReset));
        self.add_ports("reset", pc::I8042_COMMAND, 1, registers::ONE, keyboard)?;
        let control = Arc::new(Mutex::new(ResetControl::default()));
        self.add_ports("reset", pc::RESET_CONTROL, 1, registers::ONE, control)
    }

    /// The clock of a machine whose hypervisor tells no time. Power is PSCI's, which the accelerator carries out.
    fn add_clock(&mut self) -> Result<(), Error> {
        let clock = Arc::new(Mutex::new(Clock::new()));
        self.add_memory("RTC", arm::RTC, Clock::SIZE, registers::PL031, clock)
    }

    fn add_serial(&mut self, spec: super::Serial) -> Result<Option<serial::Feeder>, Error> {
        let io = |source| Error::Io {
            what: "the serial port",
            source,
        };
        let line = self.vm.interrupt(self.layout.serial_gsi)?;
        let port = Arc::new(Mutex::new(Serial::new(line, spec.output)));
        let shared: SharedDevice = Arc::clone(&port) as _;
        match self.layout.serial {
            At::Port(port) => self.add_ports("COM1", port, Serial::SIZE, registers::UART, shared)?,
            At::Memory(addr) => self.add_memory("serial", addr, Serial::SIZE, registers::UART, shared)?,
        }
        spec.input
            .map(|input| serial::feed(port, input).map_err(io))
            .transpose()
    }

    fn add_virtio(&mut self, device: Device, slot: VirtioSlot) -> Result<(), Error> {
        let Device { name, device } = device;
        let line = self.vm.interrupt(slot.gsi)?;
        let vm = Arc::clone(&self.vm);
        let connect = move |queue, doorbell: &EventFd| {
            vm.doorbell(doorbell, slot.addr + register::QUEUE_NOTIFY, queue)
                .map(drop)
                .map_err(io::Error::other)
        };
        let mut transport = Mmio::new(device, Arc::clone(&self.memory), line, Box::new(connect));
        if self.determinism.is_enabled() {
            let gate = WorkerGate::new(self.determinism.clone()).map_err(|source| Error::Io {
                what: "keeping devices in step",
                source,
            })?;
            transport.keep_step(Arc::clone(&gate));
            self.buses.batons.push(gate);
        }
        let transport = Arc::new(Mutex::new(transport));
        let shared: SharedDevice = Arc::clone(&transport) as _;
        self.add_memory(
            &format!("virtio {name}"),
            slot.addr,
            VIRTIO_MMIO_SIZE,
            registers::VIRTIO_MMIO,
            shared,
        )?;
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
        self.add_place(device, true, start, len, names);
        Ok(())
    }

    fn add_memory(
        &mut self,
        device: &str,
        start: u64,
        len: u64,
        names: registers::Names,
        shared: SharedDevice,
    ) -> Result<(), Error> {
        self.buses.memory.insert(start, len, shared)?;
        self.add_place(device, false, start, len, names);
        Ok(())
    }

    fn add_place(&mut self, device: &str, ports: bool, start: u64, len: u64, names: registers::Names) {
        self.places.push(Place {
            device: device.to_owned(),
            ports,
            start,
            len,
            names,
        });
    }
}
