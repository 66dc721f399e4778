//! One run of a machine, with its background threads.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use crate::process::guest::{Beginning, Guest, GuestControl, SpaceHook};
use crate::process::space_watch::{Remote, SpaceWatch};
use crate::{Error, Result};
use machine::block::volume::{Hydration, Volume as RootVolume};
use machine::net::metadata::LiveTags;
use machine::snapshot::State;
use machine::timeline::Event;
use machine::{Handle, Machine, Outcome};

/// A machine and what works for it in the background.
pub struct GuestRun {
    machine: Machine,
    /// The root volume, if it is to be filled in the background.
    lazy: Option<Arc<RootVolume>>,
    space: SpaceWatch,
    space_hook: Option<SpaceHook>,
    beginning: Beginning,
    /// What changes the tags in its metadata, if it has a network.
    tags: Option<LiveTags>,
}

impl GuestRun {
    /// A run of `machine`; `lazy` is its root volume, if that is to be filled in the background.
    pub fn new(machine: Machine, lazy: Option<Arc<RootVolume>>, space: SpaceWatch) -> GuestRun {
        GuestRun {
            machine,
            lazy,
            space,
            space_hook: None,
            beginning: Beginning::default(),
            tags: None,
        }
    }

    /// It begins so.
    pub fn begun(self, beginning: Beginning) -> GuestRun {
        GuestRun { beginning, ..self }
    }

    /// The tags in its metadata are changed by `tags`.
    pub fn with_tags(self, tags: Option<LiveTags>) -> GuestRun {
        GuestRun { tags, ..self }
    }
}

impl Guest for GuestRun {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (handle, space): (Handle, Remote) = (self.machine.handle(), self.space.remote());
        Arc::new(move || {
            handle.kill();
            space.abandon();
        })
    }

    fn control(&self) -> Arc<dyn GuestControl> {
        Arc::new(Controls {
            handle: self.machine.handle(),
            space: self.space.remote(),
            tags: self.tags.clone(),
        })
    }

    fn beginning(&self) -> Beginning {
        self.beginning.clone()
    }

    fn report_space(&mut self, hook: SpaceHook) {
        self.space_hook = Some(hook);
    }

    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome> {
        let GuestRun {
            machine,
            lazy,
            space,
            space_hook,
            beginning: _,
            tags: _,
        } = *self;
        let (mut hydration, mut watch) = (None, None);
        let handle = machine.handle();
        let outcome = machine.run(|| {
            started();
            let not_filled = space.not_filled();
            let hook = space_hook.unwrap_or_else(|| Box::new(|_| {}));
            watch = space
                .start(handle, hook)
                .inspect_err(|error| tracing::warn!(%error, "nobody looks after space for the volumes"))
                .ok();
            // Whatever stands in its way, the volume works without it.
            hydration = lazy.and_then(|volume| {
                Hydration::start(volume, not_filled)
                    .inspect_err(|error| tracing::warn!(%error, "the root volume is not filled"))
                    .ok()
            });
        });
        if let Some(hydration) = hydration {
            hydration.stop();
        }
        if let Some(watch) = watch {
            watch.stop();
        }
        Ok(outcome?)
    }
}

/// What pauses a machine.
struct Controls {
    handle: Handle,
    space: Remote,
    tags: Option<LiveTags>,
}

impl GuestControl for Controls {
    fn pause(&self) -> bool {
        self.handle.pause()
    }

    fn resume(&self) {
        self.handle.resume();
    }

    fn save(&self, memory: &File) -> Result<Vec<u8>> {
        let state = self.handle.save(memory, 0)?;
        let length = State::from_bytes(&state)?.about().memory;
        // Zero pages at the end were not written.
        memory
            .set_len(length)
            .map_err(Error::os("writing the guest's memory"))?;
        Ok(state)
    }

    fn mark_ready(&self) {
        self.handle.mark(Event::Ready);
    }

    fn give_back(&self) {
        self.handle.give_back();
    }

    fn set_tags(&self, tags: BTreeMap<String, String>) {
        if let Some(live) = &self.tags {
            live.set(tags);
        }
    }

    fn retry(&self) {
        self.space.retry();
    }
}
