//! From a specification to a machine that is ready to run.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::handle::{Handle, Shared};
use super::registers::Place;
use super::{Device, Error, Machine, Spec, serial};
use crate::accel::{Created, Vm};
use crate::arch::{self, Layout, Platform, VIRTIO_MMIO_SIZE, VirtioSlot};
use crate::bus::{At, SharedDevice};
use crate::devices::boot_timer::{BootTimer, Mark};
use crate::devices::serial::Serial;
use crate::devices::{self, Mapped};
use crate::memory::Memory;
use crate::timeline::Event;
use crate::vcpu::{Buses, Control, ExitTable};
use crate::virtio::determinism::{Determinism, WorkerGate};
use crate::virtio::mmio::{self, Mmio, register};

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
            statistics,
            timeline,
        } = spec;
        let layout = arch::layout(architecture);
        let placement = accel.placement();
        let memory = accel.allocate(&arch::ram_regions(architecture, ram))?;
        let Created {
            vm,
            mut vcpus,
            controller,
        } = accel.create(&memory, cpus, statistics)?;
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
        let kernel = kernel.placed_by(placement);
        let initrd = initrd.map(|initrd| initrd.placed_by(placement));
        let boot = arch::prepare(architecture, &memory, &kernel, initrd.as_ref(), &platform)?;
        vcpus[0].boot(&boot)?;
        timeline.mark(Event::MemoryReady);

        // Where instructions are time, the guest's time is not the host's.
        let has_host_time = !determinism.is_enabled();
        let mut board = Board::new(Arc::clone(&vm), memory, layout, determinism);
        let feeder = board.add_all(
            devices::fixed(architecture),
            serial,
            devices.into_iter().zip(slots),
        )?;

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
            boot_timer(&shared, has_host_time),
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
fn boot_timer(shared: &Arc<Shared>, has_host_time: bool) -> SharedDevice {
    let shared = Arc::clone(shared);
    let note = move |mark| match mark {
        Mark::Reached(code) => {
            if let Some(event) = Event::from_guest(code) {
                shared.reached(event);
            }
        }
        Mark::KernelStarted(at) => shared.timeline.mark_at(Event::KernelStart, at),
    };
    Arc::new(Mutex::new(BootTimer::new(Box::new(note), has_host_time)))
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
        // The device itself is put on the bus last: it reports to what is built from this board.
        let boot_timer = Place {
            device: "boot timer".into(),
            ports: false,
            start: layout.boot_timer,
            len: BootTimer::SIZE,
            names: BootTimer::REGISTERS,
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

    /// Adds all devices but the boot timer. Returns what feeds the serial port's input to it.
    fn add_all(
        &mut self,
        fixed: Vec<Mapped>,
        serial: Option<super::Serial>,
        virtio: impl Iterator<Item = (Device, VirtioSlot)>,
    ) -> Result<Option<serial::Feeder>, Error> {
        for device in fixed {
            self.add(device)?;
        }
        let feeder = serial.map(|serial| self.add_serial(serial)).transpose()?;
        for (device, slot) in virtio {
            self.add_virtio(device, slot)?;
        }
        Ok(feeder.flatten())
    }

    fn add_serial(&mut self, spec: super::Serial) -> Result<Option<serial::Feeder>, Error> {
        let io = |source| Error::Io {
            what: "the serial port",
            source,
        };
        let line = self.vm.interrupt(self.layout.serial_gsi)?;
        let port = Arc::new(Mutex::new(Serial::new(line, spec.output)));
        let at = self.layout.serial;
        let name = match at {
            At::Port(_) => "COM1",
            At::Memory(_) => "serial",
        };
        self.add(Mapped {
            name: name.to_owned(),
            at,
            len: Serial::SIZE,
            registers: Serial::REGISTERS,
            device: Arc::clone(&port) as _,
        })?;
        spec.input
            .map(|input| serial::feed(port, input).map_err(io))
            .transpose()
    }

    fn add_virtio(&mut self, device: Device, slot: VirtioSlot) -> Result<(), Error> {
        let Device { name, spec } = device;
        let device = match spec.build() {
            Ok(device) => device,
            Err(source) => return Err(Error::Device { name, source }),
        };
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
            self.buses.gates.push(gate);
        }
        let transport = Arc::new(Mutex::new(transport));
        self.add(Mapped {
            name: format!("virtio {name}"),
            at: At::Memory(slot.addr),
            len: VIRTIO_MMIO_SIZE,
            registers: mmio::REGISTERS,
            device: Arc::clone(&transport) as _,
        })?;
        self.transports.push(transport);
        Ok(())
    }

    /// Puts a device on its bus and remembers what its registers are called.
    fn add(&mut self, mapped: Mapped) -> Result<(), Error> {
        let Mapped {
            name,
            at,
            len,
            registers,
            device,
        } = mapped;
        let (bus, start, ports) = match at {
            At::Port(port) => (&mut self.buses.ports, u64::from(port), true),
            At::Memory(addr) => (&mut self.buses.memory, addr, false),
        };
        bus.insert(start, len, device)?;
        self.places.push(Place {
            device: name,
            ports,
            start,
            len,
            names: registers,
        });
        Ok(())
    }
}
