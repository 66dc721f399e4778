//! The interface of a guest to the instance process: run, pause, end. How its machine is built is not known
//! here.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use crate::Result;
use crate::store::pause::NoSpace;
use machine::Outcome;

/// How a run of a guest begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// Its kernel boots.
    Booted {
        /// Why no saved guest goes on, where one was to.
        instead: Option<String>,
    },
    /// A saved guest goes on.
    Restored,
}

impl Default for Beginning {
    fn default() -> Beginning {
        Beginning::Booted { instead: None }
    }
}

/// One run of a guest: from its first instruction to power-off or reset.
pub trait Guest {
    /// Something that makes [`run`](Guest::run) return soon with [`Outcome::Killed`], from any thread, also
    /// when it is called before `run`.
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync>;
    /// What pauses it, from any thread.
    fn control(&self) -> Arc<dyn GuestControl>;
    /// How it begins.
    fn beginning(&self) -> Beginning {
        Beginning::default()
    }
    /// What to call when its processors are held for want of space. Called before `run`.
    fn report_space(&mut self, hook: SpaceHook);
    /// Runs the guest until it ends, and calls `started` on this thread when its first processor runs.
    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome>;
}

/// Control over a guest that runs, from any thread.
pub trait GuestControl: Send + Sync {
    /// Stops its processors and devices where they are, and returns when nothing of it runs. `false` when it
    /// has ended, or is paused already.
    fn pause(&self) -> bool;
    /// Goes on after [`pause`](GuestControl::pause).
    fn resume(&self);
    /// Writes RAM to `memory`, which is empty, and returns the state of processors and devices. The guest is
    /// paused.
    fn save(&self, memory: &File) -> Result<Vec<u8>>;
    /// Its agent is there: notes what was counted until now.
    fn mark_ready(&self) {}
    /// Its launch is over: gives back memory that only the launch has needed.
    fn give_back(&self) {}
    /// Its metadata service shows these tags from now on.
    fn set_tags(&self, _tags: BTreeMap<String, String>) {}
    /// Has the writes that wait for space carried out again. What came of it is reported to the
    /// [`SpaceHook`].
    fn retry(&self);
}

/// Called when a guest's processors are held because there is no space, after each attempt that was asked
/// for, and with `None` before they go on.
pub type SpaceHook = Box<dyn Fn(Option<NoSpace>) + Send>;
