//! Control over a machine from outside.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use super::registers::{self, Place};
use super::snapshot::{self, About, State};
use crate::accel::Vm;
use crate::devices::FixedDevices;
use crate::footprint;
use crate::irq::Interrupt;
use crate::memory::{Memory, saved};
use crate::timeline::{Event, Timeline};
use crate::vcpu::{Control, End, ExitCount, ExitTable, Hold, Kind, totals};
use crate::virtio::mmio::Mmio;

/// Controls one machine; clones control the same one.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

/// What the machine, its threads and its handles share.
pub(super) struct Shared {
    pub(super) control: Arc<Control>,
    pub(super) timeline: Arc<Timeline>,
    /// Counts instructions, where it can.
    pub(super) vm: Arc<dyn Vm>,
    pub(super) exits: Vec<Arc<ExitTable>>,
    pub(super) places: Vec<Place>,
    /// `kvm` or `soft`, and why.
    pub(super) accelerator: (&'static str, String),
    /// Emptied when the machine has ended, which closes what the devices hold. Locked before any device.
    pub(super) transports: Mutex<Vec<Arc<Mutex<Mmio>>>>,
    /// What was counted up to each event of the boot. A leaf.
    pub(super) reached: Mutex<HashMap<u8, Counted>>,
    /// What machine it is.
    pub(super) about: About,
    /// The devices besides virtio's that remember something.
    pub(super) fixed: FixedDevices,
    /// Guest RAM, until the machine has ended. A leaf.
    pub(super) memory: Mutex<Option<Memory>>,
}

/// What was counted up to a moment.
#[derive(Clone)]
pub(super) struct Counted {
    /// Exits to this process.
    exits: Vec<ExitCount>,
    /// The accelerator's own counts, by its names.
    statistics: Vec<(String, u64)>,
}

impl Shared {
    /// Notes an event of the boot and the exits up to it. Only the first time counts.
    pub(super) fn reached(&self, event: Event) {
        self.timeline.mark(event);
        tracing::debug!("the boot has reached {}", event.name());
        if let Some(instructions) = self.vm.instructions() {
            self.timeline.count(event, instructions);
        }
        let mut reached = lock(&self.reached);
        reached.entry(event as u8).or_insert_with(|| Counted {
            exits: totals(self.exits.iter().map(Arc::as_ref)),
            statistics: self.vm.statistics(),
        });
    }
}

/// Exits of one kind at one device register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedExit {
    /// What the guest did there.
    pub kind: Kind,
    /// Port or guest-physical address.
    pub addr: u64,
    /// The device and its register, as the device's specification calls it.
    pub name: String,
    /// How often.
    pub count: u64,
}

impl Handle {
    /// Ends the machine as if its plug were pulled: [`Machine::run`](super::Machine::run) returns
    /// [`Outcome::Killed`](super::Outcome::Killed) unless the machine has ended already.
    pub fn kill(&self) {
        self.shared.control.end(Ok(End::Killed));
    }

    /// Stops processors and devices where they are, devices last. Returns whether the machine is now paused
    /// by this call: not when it has ended or is paused already. The guest's clock goes on.
    pub fn pause(&self) -> bool {
        let paused = self.shared.control.pause(Hold::Request);
        if paused {
            self.each_transport(Mmio::pause);
        }
        paused
    }

    /// Goes on after [`pause`](Handle::pause), devices first. Processors that are held for want of space stay
    /// where they are.
    pub fn resume(&self) {
        self.each_transport(Mmio::resume);
        self.shared.control.resume(Hold::Request);
    }

    /// Holds the processors, and only those, while a disk has no space for what the guest has written.
    /// Returns at once: they stop soon.
    pub fn hold_for_space(&self, hold: bool) {
        if hold {
            self.shared.control.hold(Hold::NoSpace);
        } else {
            self.shared.control.resume(Hold::NoSpace);
        }
    }

    /// Gives back memory that only what was before has needed, of this process and of its processors: for a
    /// guest that is ready and may do nothing for long. Returns at once.
    pub fn give_back(&self) {
        if self.shared.vm.gives_back() {
            self.shared.control.give_back();
        } else {
            footprint::give_back();
        }
    }

    /// The accelerator's name, `kvm` or `soft`, and why it is this one.
    pub fn accelerator(&self) -> (&'static str, &str) {
        let (name, why) = &self.shared.accelerator;
        (name, why)
    }

    /// Instructions that the guest has retired so far; `None` where they are not counted.
    pub fn instructions(&self) -> Option<u64> {
        self.shared.vm.instructions()
    }

    /// When the boot got where.
    pub fn timeline(&self) -> &Timeline {
        &self.shared.timeline
    }

    /// Notes that the boot has reached `event`, for events that are seen from outside the guest.
    pub fn mark(&self, event: Event) {
        self.shared.reached(event);
    }

    /// All exits so far, most frequent first.
    pub fn exits(&self) -> Vec<NamedExit> {
        self.named(totals(self.shared.exits.iter().map(Arc::as_ref)))
    }

    /// The exits up to `event`; `None` when it has not been reached.
    pub fn exits_until(&self, event: Event) -> Option<Vec<NamedExit>> {
        let counted = lock(&self.shared.reached).get(&(event as u8)).cloned()?;
        Some(self.named(counted.exits))
    }

    /// What the accelerator has counted up to `event`, by its own names: exits of any kind, faults in nested
    /// page tables, interrupts. `None` when the event has not been reached; empty where nothing is counted.
    pub fn statistics_until(&self, event: Event) -> Option<Vec<(String, u64)>> {
        let reached = lock(&self.shared.reached);
        Some(reached.get(&(event as u8))?.statistics.clone())
    }

    fn named(&self, counts: Vec<ExitCount>) -> Vec<NamedExit> {
        let name = |exit: &ExitCount| registers::name(&self.shared.places, exit.kind, exit.addr);
        counts
            .iter()
            .map(|exit| NamedExit {
                kind: exit.kind,
                addr: exit.addr,
                name: name(exit),
                count: exit.count,
            })
            .collect()
    }

    fn each_transport(&self, act: impl Fn(&mut Mmio)) {
        for transport in lock(&self.shared.transports).iter() {
            act(&mut lock(transport));
        }
    }

    /// Stops the devices and drops them.
    pub(super) fn retire_devices(&self) {
        self.each_transport(Mmio::pause);
        lock(&self.shared.transports).clear();
        *lock(&self.shared.memory) = None;
    }

    /// Guest RAM, until the machine has ended.
    pub(super) fn memory(&self) -> Option<Memory> {
        lock(&self.shared.memory).clone()
    }

    /// Saves the machine, which [`pause`](Handle::pause) has paused and which stays so meanwhile: writes its RAM
    /// to `memory` from byte `at` on, region after region, where the file is to read as zeros; pages of zeros
    /// are not written, and the file's length is not set. Returns the bytes of its state, for
    /// [`State::from_bytes`]. Every request of a disk is done by now. The machine can go on, or end.
    ///
    /// # Errors
    /// When the machine is not paused; when a disk has requests that wait for space; when the accelerator or
    /// the file's host refuses. The machine is as it was.
    pub fn save(&self, memory: &File, at: u64) -> Result<Vec<u8>, snapshot::Error> {
        let Shared {
            control,
            timeline: _,
            vm,
            exits: _,
            places: _,
            accelerator: _,
            transports,
            reached: _,
            about,
            fixed,
            memory: ram,
        } = &*self.shared;
        let vcpus = control.save()?;
        let vm = vm.save()?;
        let named = about.devices.iter().map(|(name, _)| name);
        let transports = lock(transports)
            .iter()
            .zip(named)
            .map(|(transport, device)| {
                let busy = |source| snapshot::Error::Busy {
                    device: device.clone(),
                    source,
                };
                lock(transport).save().map_err(busy)
            })
            .collect::<Result<_, _>>()?;
        let fixed = fixed.save();
        let ram = lock(ram).clone().ok_or(snapshot::Error::NotPaused)?;
        let pages = saved::save(&ram, memory, at).map_err(snapshot::Error::Write)?;
        let state = State {
            about: about.clone(),
            pages,
            // What a guest needs when it goes on is seen when one does.
            working_set: Vec::new(),
            vm,
            vcpus,
            fixed,
            transports,
        };
        state.to_bytes()
    }

    /// Goes on from a snapshot: devices first, then `notice`, then the processors.
    pub(super) fn go_on(&self, notice: Option<Arc<dyn Interrupt>>) {
        self.each_transport(Mmio::resume);
        if let Some(Err(error)) = notice.map(|line| line.trigger()) {
            tracing::warn!("the guest was not notified of its new generation: {error}");
        }
        self.shared.control.resume(Hold::Restoring);
        // It has run before. One that halts may have no exit until somebody outside asks it for something.
        self.shared.control.has_exited();
    }
}

/// What a panicked thread has left behind is still whole: every change under these locks is one step.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
