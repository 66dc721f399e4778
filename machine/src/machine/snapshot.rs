//! A machine as data: what [`Handle::save`](super::Handle::save) gives, and what
//! [`Machine::build`](super::Machine::build) goes on from.
//!
//! The state is a few kilobytes, in the layout of [`crate::state`]; RAM is in a file beside it
//! ([`crate::memory::saved`]). Nothing in a state is believed: it is decoded here, compared with the machine
//! that is to go on from it, and each part is checked by the device or processor that it is for.

use std::io;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::accel::{self, VcpuState, VmState};
use crate::arch::{self, Architecture};
use crate::devices::FixedState;
use crate::memory::saved::{PageRun, are_valid};
use crate::memory::{PAGE, Part, PartError};
use crate::state::{self, Kind, Reader, Refused, Unencodable, Writer};
use crate::vcpu::SaveError;
use crate::virtio::Unsaved;
use crate::virtio::state::TransportState;

pub use crate::state::Mismatch;

/// Version of all that is at a place in the machine and that no state says: addresses, interrupts, what the
/// guest's tables describe. It changes with `arch::*::layout` and with what the software processor can do.
const LAYOUT: u32 = 1;

/// Why a machine could not be saved or go on.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Mismatch(Mismatch),
    /// {0}
    Damaged(state::Error),
    /// {part}: {source}
    Refused {
        /// The part of the machine.
        part: String,
        /// Why it does not take the state.
        source: Refused,
    },
    /// the memory part has {len} bytes, and the machine {memory}
    MemoryLength {
        /// Its length in bytes.
        len: u64,
        /// RAM in bytes.
        memory: u64,
    },
    /// {0}
    Memory(#[from] PartError),
    /// the machine is not paused
    NotPaused,
    /// the device {device} cannot be saved: {source}
    Busy {
        /// Its name.
        device: String,
        /// Why.
        source: Unsaved,
    },
    /// {0}
    Accel(#[from] accel::Error),
    /// writing the guest's memory failed: {0}
    Write(#[source] io::Error),
    /// {0}
    Unencodable(#[from] Unencodable),
}

impl From<state::Error> for Error {
    fn from(error: state::Error) -> Self {
        match error {
            state::Error::Version(mismatch) => Error::Mismatch(mismatch),
            other => Error::Damaged(other),
        }
    }
}

impl From<SaveError> for Error {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::NotPaused => Error::NotPaused,
            SaveError::Accel(error) => Error::Accel(error),
        }
    }
}

/// For `map_err`: `part` does not take its state.
pub(super) fn refused(part: impl Into<String>) -> impl FnOnce(Refused) -> Error {
    move |source| match source {
        Refused::Mismatch(mismatch) => Error::Mismatch(mismatch),
        source => Error::Refused {
            part: part.into(),
            source,
        },
    }
}

/// What machine a state is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    layout: u32,
    /// The guest's architecture.
    pub architecture: Architecture,
    /// `kvm` or `soft`.
    pub accelerator: String,
    /// Whether instructions are its time.
    pub repeatable: bool,
    /// The software processor's instruction set.
    pub features: Option<softcpu::Features>,
    /// Number of CPUs.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory: u64,
    /// Whether it has a serial port.
    pub serial: bool,
    /// Its virtio devices: names, and virtio device ids.
    pub devices: Vec<(String, u32)>,
}

impl About {
    /// That of the machine of `spec`.
    pub(super) fn new(spec: &Spec) -> About {
        About {
            layout: LAYOUT,
            architecture: spec.architecture,
            accelerator: spec.accel.name().to_owned(),
            repeatable: spec.accel.is_repeatable(),
            features: spec.accel.features(),
            cpus: spec.cpus,
            memory: spec.memory,
            serial: spec.serial.is_some(),
            devices: spec
                .devices
                .iter()
                .map(|device| (device.name.clone(), device.spec.id()))
                .collect(),
        }
    }

    /// Whether a machine like `this` can go on from one like this.
    fn check(&self, this: &About) -> Result<(), Mismatch> {
        let About {
            layout,
            architecture,
            accelerator,
            repeatable,
            features,
            cpus,
            memory,
            serial,
            devices,
        } = self;
        let names = |devices: &[(String, u32)]| {
            let names: Vec<_> = devices
                .iter()
                .map(|(name, id)| format!("{name} ({id})"))
                .collect();
            names.join(", ")
        };
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let same = Mismatch::unless_equal::<&str>;
        Mismatch::unless_equal("machine layout's version", *layout, this.layout)?;
        same("architecture", architecture.as_str(), this.architecture.as_str())?;
        same("accelerator", accelerator, &this.accelerator)?;
        same("counting of instructions", yes(*repeatable), yes(this.repeatable))?;
        if let (Some(features), Some(these)) = (features, this.features) {
            Mismatch::unless_equal("processor's instruction set", *features, these)?;
        }
        Mismatch::unless_equal("number of CPUs", *cpus, this.cpus)?;
        Mismatch::unless_equal("memory in bytes", *memory, this.memory)?;
        same("serial port", yes(*serial), yes(this.serial))?;
        same("list of devices", &names(devices), &names(&this.devices))
    }
}

/// The pages of the memory part, each list in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PageMap {
    /// Those that hold data; all others are zero.
    data: Vec<PageRun>,
    /// Those that are read ahead.
    working_set: Vec<PageRun>,
}

/// The state of a machine, decoded.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) about: About,
    pub(super) pages: Vec<PageRun>,
    pub(super) working_set: Vec<PageRun>,
    pub(super) vm: VmState,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) fixed: FixedState,
    pub(super) transports: Vec<TransportState>,
}

impl State {
    /// Decodes a state that [`Handle::save`](super::Handle::save) gave. What it is of can be asked then; what
    /// it says is checked when a machine is built from it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for one of another version, [`Error::Damaged`] for what is no state, is truncated or
    /// was changed, by the part's name; [`Error::Refused`] where parts do not fit each other.
    pub fn from_bytes(bytes: &[u8]) -> Result<State, Error> {
        let mut reader = Reader::new(bytes)?;
        let about: About = reader.take(Kind::Machine)?;
        let layout = arch::layout(about.architecture);
        let valid = about.layout != LAYOUT
            || (1..=layout.max_cpus).contains(&about.cpus)
                && (layout.min_ram..=layout.max_ram).contains(&about.memory)
                && about.devices.len() <= layout.max_virtio;
        Refused::unless(valid, "the size").map_err(refused("the machine"))?;
        let PageMap { data, working_set } = reader.take(Kind::Pages)?;
        for (runs, what) in [(&data, "the page map"), (&working_set, "the working set")] {
            Refused::unless(are_valid(runs, about.memory / PAGE), what).map_err(refused("memory"))?;
        }
        let vm = reader.take(Kind::Vm)?;
        let take_vcpu = |_| reader.take(Kind::Vcpu);
        let vcpus = (0..about.cpus).map(take_vcpu).collect::<Result<_, _>>()?;
        let fixed = reader.take(Kind::Fixed)?;
        let take_transport = |_| reader.take(Kind::Transport);
        let transports = about
            .devices
            .iter()
            .map(take_transport)
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(State {
            about,
            pages: data,
            working_set,
            vm,
            vcpus,
            fixed,
            transports,
        })
    }

    /// The bytes of it.
    ///
    /// # Errors
    /// When a part has more bytes than can be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let State {
            about,
            pages,
            working_set,
            vm,
            vcpus,
            fixed,
            transports,
        } = self;
        let pages = PageMap {
            data: pages.clone(),
            working_set: working_set.clone(),
        };
        let mut writer = Writer::default();
        writer.put(Kind::Machine, about)?;
        writer.put(Kind::Pages, &pages)?;
        writer.put(Kind::Vm, vm)?;
        for vcpu in vcpus {
            writer.put(Kind::Vcpu, vcpu)?;
        }
        writer.put(Kind::Fixed, fixed)?;
        for transport in transports {
            writer.put(Kind::Transport, transport)?;
        }
        Ok(writer.finish())
    }

    /// What machine it is of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The pages of the memory part that hold data, in order; all others are zero.
    pub fn pages(&self) -> &[PageRun] {
        &self.pages
    }

    /// The pages of the memory part that a guest needs soon after it goes on, in order, as far as that is
    /// known.
    pub fn working_set(&self) -> &[PageRun] {
        &self.working_set
    }

    /// The same state with another working set.
    pub fn with_working_set(self, working_set: Vec<PageRun>) -> State {
        State { working_set, ..self }
    }

    /// Whether a machine of `spec` can go on from it, as far as can be said before there is one.
    ///
    /// # Errors
    /// What differs first, in one line.
    pub fn check(&self, spec: &Spec) -> Result<(), Mismatch> {
        self.about.check(&About::new(spec))
    }
}

/// What a machine goes on from.
#[derive(Debug, Clone)]
pub struct Restore {
    /// All but its RAM.
    pub state: State,
    /// Its RAM, region after region. It is mapped copy-on-write.
    pub memory: Part,
    /// The new generation, 16 random bytes: by it the guest knows that it is another one from here on. `None`
    /// where it is not to know, for a run that repeats itself.
    pub generation: Option<[u8; 16]>,
}
