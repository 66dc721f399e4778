//! Why a job in the sandbox failed.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use ami::Architecture;
use displaydoc::Display;
use serde::{Deserialize, Serialize};

use super::disk;
use crate::advice::Advice;

/// Why a job failed. It crosses from one process to another, so it holds texts where other errors hold their
/// source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Display, thiserror::Error)]
pub enum Failure {
    /// cannot {what}: {why}
    Sandbox {
        /// What was attempted.
        what: String,
        /// The error that the kernel returned.
        why: String,
    },
    /// A program in the root failed.
    #[displaydoc("`{command}` failed in the image ({status}):\n{output}")]
    Program {
        /// Its command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// programs for {arch} cannot run on this machine: {why}
    Foreign {
        /// The architecture.
        arch: Architecture,
        /// The error that the kernel returned.
        why: String,
    },
    /// the disk is full: {0}
    Full(String),
    /// cannot configure the root: {what}
    Other {
        /// What failed, and why.
        what: String,
        /// What to try.
        advice: Option<String>,
    },
}

impl Advice for Failure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Sandbox { .. } => Some(
                "allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or \
                 kernel.unprivileged_userns_clone=1; in a container: --security-opt \
                 seccomp=unconfined), or build as root"
                    .into(),
            ),
            Self::Program { .. } => {
                Some("see what the program says above; the root that it worked on is removed".into())
            }
            Self::Foreign { arch, .. } if arch.is_native() => Some(
                "a kernel that runs 32-bit programs: with CONFIG_IA32_EMULATION, and without ia32_emulation=0 on \
                 its command line"
                    .into(),
            ),
            Self::Foreign { .. } => Some("install package qemu-user-static".into()),
            Self::Full(..) => {
                Some("free some space in the cache directory, or choose another with XDG_CACHE_HOME".into())
            }
            Self::Other { advice, .. } => advice.clone().map(Cow::Owned),
        }
    }
}

impl Failure {
    /// What has no variant of its own.
    pub fn other(error: impl std::fmt::Display) -> Self {
        Self::Other {
            what: error.to_string(),
            advice: None,
        }
    }

    /// An error of another layer, with its advice.
    pub fn of(error: &dyn Advice) -> Self {
        Self::Other {
            what: error.to_string(),
            advice: error.advice().map(Cow::into_owned),
        }
    }

    /// A file failed.
    pub fn io(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(text),
            _ => Self::other(text),
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
