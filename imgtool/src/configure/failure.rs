//! Why a job in the sandbox failed.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk;
use crate::recipe::Arch;

/// Why a job failed. It crosses from one process to another, so it holds texts where other errors hold their source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The host does not allow a sandbox.
    #[error(
        "cannot {what}: {why}\n  try: allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or kernel.unprivileged_userns_clone=1; in a container: --security-opt seccomp=unconfined), or build as root"
    )]
    Sandbox {
        /// What was attempted.
        what: String,
        /// What the kernel said.
        why: String,
    },
    /// A program in the root failed.
    #[error(
        "`{command}` failed in the image ({status}):\n{output}\n  try: see what the program says above; the root that it worked on is removed"
    )]
    Program {
        /// Its command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// A program of the architecture cannot run here.
    #[error("programs for {arch} cannot run on this machine: {why}\n  try: install package qemu-user-static")]
    Foreign {
        /// The architecture.
        arch: Arch,
        /// What the kernel said.
        why: String,
    },
    /// The disk is full.
    #[error(
        "the disk is full: {0}\n  try: free some space in the cache directory, or choose another with XDG_CACHE_HOME"
    )]
    Full(String),
    /// Anything else.
    #[error("cannot configure the root: {0}")]
    Other(String),
}

impl Failure {
    /// Anything without an advice of its own.
    pub fn other(error: impl std::fmt::Display) -> Self {
        Self::Other(error.to_string())
    }

    /// A file failed.
    pub fn io(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(text),
            _ => Self::Other(text),
        }
    }
}

impl From<disk::Error> for Failure {
    fn from(error: disk::Error) -> Self {
        match error {
            disk::Error::Io { path, source } => Self::io(&path, &source),
            other => Self::other(other),
        }
    }
}
