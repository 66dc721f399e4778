//! What the process in the sandbox is to do, and what it says while it works.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use ami::Architecture;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::input::InputRoot;
use crate::lock::Package;

/// The argument that makes this program the process in the sandbox.
pub const HELPER: &str = "configure-helper";

/// A task for the process in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The architecture of the root.
    pub arch: Architecture,
    /// A directory for it alone. The caller removes what is left.
    pub work: PathBuf,
    /// Where the resulting root goes, as an archive.
    pub output: PathBuf,
    /// Enter a user namespace first; the caller maps the numbers.
    pub user_namespace: bool,
    /// What to do.
    pub task: Task,
}

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// Install packages.
    Install {
        /// The root to add to; unset, an empty one.
        base: Option<InputRoot>,
        /// The packages.
        packages: Vec<Package>,
        /// The cache that holds them.
        store: PathBuf,
        /// dpkg's path filters.
        exclude: Vec<String>,
        /// dpkg's path filters.
        include: Vec<String>,
        /// SOURCE_DATE_EPOCH; unset, the newest time in the packages.
        epoch: Option<i64>,
        /// Where apt finds packages in the running system, for /etc/apt/sources.list.d.
        sources: String,
    },
    /// Run commands in a root.
    Run {
        /// The root.
        root: InputRoot,
        /// What to call it.
        name: String,
        /// The commands, for `/bin/sh`.
        steps: Vec<String>,
        /// The directory of the root that is the result; unset, the root.
        keep: Option<String>,
        /// SOURCE_DATE_EPOCH.
        epoch: i64,
    },
}

/// What the process says, one a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// It is in its user namespace and waits for the numbers to be mapped.
    MapIds,
    /// A step begins, with so many units.
    Start(String, u64),
    /// A unit is done.
    Tick,
    /// The step is complete.
    Finish(String),
    /// The job is done.
    Done,
    /// The job failed.
    Failed(Failure),
}

impl Message {
    /// Writes it as a line.
    pub fn send(&self, out: &mut impl Write) -> std::io::Result<()> {
        let line = serde_json::to_string(self)?;
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// Writes it to standard output, for the process outside.
    pub fn say(&self) {
        // If nobody listens, the end will show.
        let _ = self.send(&mut std::io::stdout());
    }

    /// Reads the next line; `None` at the end.
    pub fn receive(from: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        match from.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}
