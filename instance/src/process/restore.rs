//! The guest that a run goes on with instead of booting: the one in a warm image, or the instance's own from
//! its hibernation.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::images::image::Image;
use crate::store::home::Home;
use crate::store::record::Config;
use crate::store::saved::{Purpose, SavedFiles};
use crate::{Error, Result};
use machine::memory::{Part, saved};
use machine::snapshot::{self, Restore, State};

/// Bytes of a state that are read: that of 32 processors and of every device takes less than a tenth.
pub const MAX_STATE: u64 = 16 << 20;

/// How a run begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// The kernel boots.
    #[default]
    Boot,
    /// The guest of a warm image goes on, as another instance. Where it cannot, or the image has none, the
    /// kernel boots.
    Restore,
    /// The same, or the run fails.
    RestoreOnly,
    /// The same for a clone: what its record says of a kernel is for its reboots.
    Clone,
    /// The instance's own guest goes on if it was hibernated and can. Otherwise the kernel boots.
    Resume,
}

/// A guest that was saved, read but for its memory.
pub struct SavedGuest {
    state: State,
    memory: Part,
}

/// What a run begins with.
pub enum Found {
    /// A guest.
    Guest(Box<SavedGuest>),
    /// Nothing: the kernel boots. In words why, where a guest was to be expected.
    Nothing(Option<String>),
}

impl Begin {
    /// Whether the run fails where no saved guest goes on.
    pub fn is_strict(self) -> bool {
        matches!(self, Begin::RestoreOnly | Begin::Clone)
    }

    /// Looks for the guest to go on with.
    ///
    /// # Errors
    /// When what is there is damaged.
    pub fn find(self, image: &Image, config: &Config, directory: &Path, home: &Home) -> Result<Found> {
        match self {
            Begin::Boot => Ok(Found::Nothing(None)),
            Begin::Restore if image.manifest().warm.is_none() => Ok(Found::Nothing(None)),
            Begin::RestoreOnly | Begin::Clone if image.manifest().warm.is_none() => {
                Ok(Found::Nothing(Some("its image holds no running guest".into())))
            }
            Begin::Restore | Begin::RestoreOnly if config.wants_boot() => Ok(Found::Nothing(Some(
                "a kernel, an initramfs or words for its command line were asked for".into(),
            ))),
            Begin::Restore | Begin::RestoreOnly | Begin::Clone => of_image(image, home),
            Begin::Resume => of_hibernation(directory),
        }
    }
}

fn of_image(image: &Image, home: &Home) -> Result<Found> {
    image.verify_warm(home)?;
    let (state, memory) = image.warm(MAX_STATE)?;
    found(&state, memory)
}

fn of_hibernation(directory: &Path) -> Result<Found> {
    let files = SavedFiles::new(directory, Purpose::Hibernation);
    if !files.exist() {
        return Ok(Found::Nothing(None));
    }
    let mut state = Vec::new();
    File::open(&files.state)
        .and_then(|file| file.take(MAX_STATE).read_to_end(&mut state))
        .map_err(Error::file("reading", &files.state))?;
    let memory = Part::open(&files.memory)?;
    found(&state, memory)
}

fn found(state: &[u8], memory: Part) -> Result<Found> {
    Ok(match State::from_bytes(state) {
        Ok(state) => {
            // It arrives while the machine is built.
            saved::read_ahead(state.working_set(), &memory);
            Found::Guest(Box::new(SavedGuest { state, memory }))
        }
        Err(snapshot::Error::Mismatch(why)) => Found::Nothing(Some(why.to_string())),
        Err(damaged) => return Err(damaged.into()),
    })
}

/// Forgets the guest that was hibernated in `directory`. From the moment that its volumes change it cannot go
/// on.
///
/// # Errors
/// When its files cannot be removed.
pub fn forget_hibernated(directory: &Path) -> Result<()> {
    SavedFiles::new(directory, Purpose::Hibernation).remove()
}

impl SavedGuest {
    /// Whether the machine of `spec` can go on with it; in words why not.
    pub fn fits(&self, spec: &machine::Spec) -> std::result::Result<(), String> {
        self.state.check(spec).map_err(|why| why.to_string())
    }

    /// What the machine is built with. `generation` is new for each restore.
    pub fn restore(self, generation: Option<[u8; 16]>) -> Restore {
        Restore {
            state: self.state,
            memory: self.memory,
            generation,
        }
    }
}
