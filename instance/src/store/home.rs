//! The directories of state, data and cache.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Error, InstanceId, Result};

/// Ends the name of a hard link to an instance's image.
pub const BASE_SUFFIX: &str = ".ami";

/// The directories of a user: state (instances, volumes), data (images), and a cache, which may be missing.
#[derive(Debug, Clone)]
pub struct Home {
    state: PathBuf,
    data: PathBuf,
    cache: Option<PathBuf>,
}

impl Home {
    /// With these directories, which need not exist yet. All of `cache` can be deleted at any time.
    pub fn new(state: PathBuf, data: PathBuf, cache: Option<PathBuf>) -> Home {
        Home { state, data, cache }
    }

    /// Everything below one directory; for tests.
    pub fn at(root: &Path) -> Home {
        Home {
            state: root.join("state"),
            data: root.join("data"),
            cache: None,
        }
    }

    /// One directory per instance.
    pub fn instances(&self) -> PathBuf {
        self.state.join("instances")
    }

    /// The directory of `id`, whether it exists or not.
    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.instances().join(id.as_str())
    }

    /// Volumes that outlive their instance.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// What belongs to this host and not to an image: instances, volumes, what is remembered of images.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where it is remembered for this boot of the host whether KVM is worth using.
    pub fn kvm_verdict(&self) -> Option<PathBuf> {
        self.cache.as_ref().map(|cache| cache.join("kvm-probe"))
    }

    /// Where it is remembered that the image `id` was verified.
    pub fn seal(&self, id: &str) -> PathBuf {
        self.state.join("verified").join(id)
    }

    /// The same of the guest that the image holds.
    pub fn warm_seal(&self, id: &str) -> PathBuf {
        self.state.join("verified").join(format!("{id}.warm"))
    }
}

/// The hard link to the image of the instance kept in `directory`. It is next to the directory: the process
/// that runs the guest may write inside, and must not write to an image.
pub fn base_link(directory: &Path) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(BASE_SUFFIX);
    directory.with_file_name(name)
}

/// Creates `path` and its parents for the user alone: consoles and volumes are private.
pub fn create_private(path: &Path) -> Result<()> {
    private()
        .recursive(true)
        .create(path)
        .map_err(Error::file("creating", path))
}

/// Creates `path`, which must not exist, for the user alone, and its parents if they do not exist.
pub fn create_private_new(path: &Path) -> Result<()> {
    let made = match private().create(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_private(path.parent().unwrap_or(path))?;
            private().create(path)
        }
        other => other,
    };
    made.map_err(Error::file("creating", path))
}

fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}
