//! The reason for which an instance is paused.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use machine::block::space;

/// Why a running instance does not run at the moment: one reason or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paused {
    /// By request.
    pub requested: bool,
    /// A volume has no space for what the guest has written.
    pub no_space: Option<NoSpace>,
}

/// What the guest has written and the host has no space for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSpace {
    /// The volume's name in the guest.
    pub device: String,
    /// The volume's file on the host.
    pub path: PathBuf,
    /// Bytes that were free on its file system then; `null` where it does not say.
    pub free: Option<u64>,
    /// The operating system's reason: no space on the file system, or a quota.
    pub error: String,
}

impl NoSpace {
    /// What `error` says about the volume at `path`, with what is free there now.
    pub fn new(device: &str, path: &Path, error: &io::Error) -> NoSpace {
        NoSpace {
            device: device.into(),
            path: path.to_path_buf(),
            free: space::free(path).ok(),
            error: error.to_string(),
        }
    }
}

impl fmt::Display for NoSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoSpace {
            device,
            path,
            free,
            error,
        } = self;
        write!(f, "no space for {device} in {}: {error}", path.display())?;
        match free {
            Some(free) => write!(f, "; {free} bytes are free there"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.requested, &self.no_space) {
            (true, Some(full)) => write!(f, "paused by request; {full}"),
            (false, Some(full)) => write!(f, "paused: {full}"),
            (_, None) => f.write_str("paused by request"),
        }
    }
}
