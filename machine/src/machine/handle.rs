//! Control over a machine from outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::registers::{self, Place};
use crate::accel::Vm;
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
    }
}

/// What a panicked thread has left behind is still whole: every change under these locks is one step.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
