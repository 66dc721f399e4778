//! From a specification to a machine that is ready to run.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::generation::Generation;
use super::handle::{Handle, Shared};
use super::registers::Place;
use super::snapshot::{self, About, Restore, State};
use super::{Device, Error, Machine, Spec, serial};
use crate::accel::{self, Created, Vm};
use crate::arch::{self, Architecture, Layout, Loaded, Platform, VIRTIO_MMIO_SIZE, VirtioSlot};
use crate::bus::{At, SharedDevice};
use crate::devices::boot_timer::{BootTimer, Mark};
use crate::devices::serial::{Output, Serial};
use crate::devices::{self, FixedDevices, Mapped};
use crate::memory::{self, Memory, Part, Placement, saved};
use crate::sandbox;
use crate::timeline::Event;
use crate::vcpu::{Buses, Control, ExitTable, Hold};
use crate::virtio::determinism::{Determinism, WorkerGate};
use crate::virtio::mmio::{self, Mmio, register};
use crate::virtio::state::TransportState;

/// RAM comes in this unit, so that its end is aligned for everyone.
const RAM_UNIT: u64 = 1 << 20;

impl Machine {
    /// Builds the machine of `spec`. The guest has not run when this returns; with `restore`, it goes on from
    /// there, and kernel, initramfs, command line and UUID are those that it has.
    ///
    /// # Errors
    /// When there can be no such machine; [`Error::Snapshot`] when it cannot go on from `restore`.
    pub fn build(spec: Spec, restore: Option<Restore>) -> Result<Self, Error> {
        check(&spec)?;
        let about = About::new(&spec);
        if let Some(restore) = &restore {
            restore.state.check(&spec).map_err(snapshot::Error::Mismatch)?;
        }
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
        // Before the processors take what decides it.
        let (placement, saved) = (accel.placement(), accel.placement_of_saved());
        let memory = accel.allocate(&arch::ram_regions(architecture, ram))?;
        let fill = || {
            fill(
                architecture,
                &memory,
                &kernel,
                initrd.as_ref(),
                restore.as_ref(),
                placement,
                saved,
            )
        };
        let create = || {
            let created = accel.create(&memory, cpus, statistics);
            timeline.mark(Event::VmCreated);
            created
        };
        let (filled, created) = match placement {
            // A copy waits for memory, and who makes a machine of KVM for other processors of the host.
            Placement::Copy => sandbox::both("load", fill, create),
            Placement::Map => {
                let created = create()?;
                (fill(), Ok(created))
            }
        };
        let Created {
            vm,
            mut vcpus,
            controller,
        } = created?;

        let slots: Vec<_> = (0..devices.len()).map_while(|n| layout.virtio_slot(n)).collect();
        let generation = Generation::new(layout, determinism.is_enabled());
        match (filled?, &restore) {
            (Some(loaded), _) => {
                let platform = Platform {
                    cpus,
                    cmdline: &cmdline,
                    virtio: &slots,
                    serial: serial.is_some(),
                    uuid,
                    controller,
                };
                let boot = arch::prepare(&memory, &loaded, &platform)?;
                generation.begin(&memory)?;
                vcpus[0].boot(&boot)?;
            }
            (None, restored) => {
                let states = restored.iter().flat_map(|restore| &restore.state.vcpus);
                for (vcpu, state) in vcpus.iter_mut().zip(states) {
                    vcpu.restore(state).map_err(snapshot_error)?;
                }
            }
        }
        timeline.mark(Event::MemoryReady);
        if restore.is_some()
            && let Some(before) = vm.instructions()
        {
            timeline.count(Event::FirstRun, before);
        }

        // Where instructions are time, the guest's time is not the host's.
        let has_host_time = !determinism.is_enabled();
        let mut board = Board::new(Arc::clone(&vm), Arc::clone(&memory), layout, determinism);
        let state = restore.as_ref().map(|restore| &restore.state);
        let (fixed, stateful) = devices::fixed(architecture);
        let (feeder, stateful) =
            board.add_all(fixed, stateful, serial, devices.into_iter().zip(slots), state)?;
        let notice = match &restore {
            None => None,
            Some(restore) => {
                vm.restore(&restore.state.vm).map_err(snapshot_error)?;
                generation.renew(&memory, &*vm, restore.generation)?
            }
        };

        let exits: Vec<_> = vcpus.iter().map(|_| Arc::new(ExitTable::default())).collect();
        let control = Control::new(vcpus.iter().map(|vcpu| vcpu.kicker()).collect());
        if restore.is_some() {
            control.hold(Hold::Restoring);
        }
        let shared = Arc::new(Shared {
            control: Arc::new(control),
            timeline,
            vm,
            exits: exits.clone(),
            places: board.places,
            accelerator: (accel.name(), accel.why.clone()),
            transports: Mutex::new(board.transports),
            reached: Mutex::default(),
            about,
            fixed: stateful,
            memory: Mutex::new(Some(memory)),
        });
        board.buses.memory.insert(
            layout.boot_timer,
            BootTimer::SIZE,
            boot_timer(&shared, has_host_time),
        )?;
        let handle = Handle { shared };
        let first = restore.map(|_| {
            let handle = handle.clone();
            Box::new(move || handle.go_on(notice)) as Box<dyn FnOnce() + Send>
        });
        Ok(Machine {
            vcpus,
            buses: Arc::new(board.buses),
            exits,
            serial: feeder,
            first,
            handle,
        })
    }
}

/// Puts into guest RAM what the guest begins with: kernel and initramfs, or its RAM as it was saved. Returns
/// what the kernel's first processor begins by.
fn fill(
    architecture: Architecture,
    memory: &Memory,
    kernel: &Part,
    initrd: Option<&Part>,
    restore: Option<&Restore>,
    placement: Placement,
    of_saved: Placement,
) -> Result<Option<Loaded>, Error> {
    let Some(Restore {
        state,
        memory: part,
        generation: _,
    }) = restore
    else {
        let (kernel, initrd) = (
            kernel.placed_by(placement),
            initrd.map(|initrd| initrd.placed_by(placement)),
        );
        return Ok(Some(arch::load(architecture, memory, &kernel, initrd.as_ref())?));
    };
    if part.len() != state.about.memory {
        return Err(Error::Snapshot(snapshot::Error::MemoryLength {
            len: part.len(),
            memory: state.about.memory,
        }));
    }
    if placement == Placement::Map {
        memory::advise_small_pages(memory);
    }
    let part = part.placed_by(of_saved);
    saved::restore(memory, &state.pages, &part).map_err(|error| Error::Snapshot(error.into()))?;
    Ok(None)
}

/// The accelerator does not take a state.
fn snapshot_error(error: accel::Error) -> Error {
    Error::Snapshot(match error {
        accel::Error::Refused(source) => snapshot::refused("the processor")(source),
        other => snapshot::Error::Accel(other),
    })
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

    /// Adds all devices but the boot timer, as `state` says. Returns what feeds the serial port's input to it,
    /// and those of `stateful` with the serial port.
    fn add_all(
        &mut self,
        fixed: Vec<Mapped>,
        mut stateful: FixedDevices,
        serial: Option<super::Serial>,
        virtio: impl Iterator<Item = (Device, VirtioSlot)>,
        state: Option<&State>,
    ) -> Result<(Option<serial::Feeder>, FixedDevices), Error> {
        for device in fixed {
            self.add(device)?;
        }
        let mut feeder = None;
        if let Some(spec) = serial {
            let port = self.serial_port(spec.output, state)?;
            stateful.serial = Some(Arc::clone(&port));
            feeder = self.add_serial(port, spec.input)?;
        }
        if let Some(state) = state {
            let restored = stateful.restore(&state.fixed);
            restored.map_err(snapshot::refused("the platform's devices"))?;
        }
        for (number, (device, slot)) in virtio.enumerate() {
            let state = state.and_then(|state| state.transports.get(number));
            self.add_virtio(device, slot, state)?;
        }
        Ok((feeder, stateful))
    }

    fn serial_port(&self, output: Output, state: Option<&State>) -> Result<Arc<Mutex<Serial>>, Error> {
        let line = self.vm.interrupt(self.layout.serial_gsi)?;
        let state = state.and_then(|state| state.fixed.serial.as_ref());
        let port = match state {
            None => Serial::new(line, output),
            Some(state) => {
                Serial::restored(line, output, state).map_err(snapshot::refused("the serial port"))?
            }
        };
        Ok(Arc::new(Mutex::new(port)))
    }

    fn add_serial(
        &mut self,
        port: Arc<Mutex<Serial>>,
        input: Option<OwnedFd>,
    ) -> Result<Option<serial::Feeder>, Error> {
        let io = |source| Error::Io {
            what: "the serial port",
            source,
        };
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
        input
            .map(|input| serial::feed(port, input).map_err(io))
            .transpose()
    }

    fn add_virtio(
        &mut self,
        device: Device,
        slot: VirtioSlot,
        state: Option<&TransportState>,
    ) -> Result<(), Error> {
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
        if let Some(state) = state {
            let part = format!("the device {name}");
            transport.restore(state).map_err(snapshot::refused(part))?;
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
