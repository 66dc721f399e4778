//! What is asked of one run of an instance and not kept in its record.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::limits::Limits;
use super::{Error, Result};
use crate::accel::Profiling;
use crate::sandbox::Mode;
use crate::virtio::lockstep::Turn;

/// How the process that runs an instance deals with its host: what `vmm run` and `vmm start` both ask.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct HostUse {
    /// Confine the process by what this host offers, by all of it or not at all, or by nothing (`vmm doctor` tells)
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        default_value_t,
        help_heading = "Security"
    )]
    pub sandbox: Mode,
    /// How requests of disks get to their files: each on the spot, or many at once through the kernel's io_uring
    #[arg(
        long,
        value_enum,
        value_name = "ENGINE",
        default_value_t,
        help_heading = "Storage"
    )]
    pub disk_engine: DiskEngine,
}

impl HostUse {
    /// As arguments for a detached owner.
    fn arguments(self) -> [OsString; 4] {
        let HostUse { sandbox, disk_engine } = self;
        ["--sandbox", sandbox.word(), "--disk-engine", disk_engine.word()].map(OsString::from)
    }
}

/// What is wished for one run of an instance and not kept.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Measuring")]
pub struct PerRun {
    /// Write when each step of the boot was reached, and the exits up to it, as JSON; `-` shows the steps as a table
    #[arg(long, value_name = "FILE")]
    pub timing: Option<PathBuf>,
    /// Show how often the guest left its processor up to each step, by device register
    #[arg(long)]
    pub exits: bool,
    /// Let instructions be time, so that every run is the same, and say how many there were
    #[arg(long)]
    pub icount: bool,
    /// What it takes of this host
    #[command(flatten)]
    pub host: HostUse,
    /// Where the processor's profile goes
    #[arg(skip)]
    pub profile: Option<Arc<Profiling>>,
    /// Other files that the process writes at the end
    #[arg(skip)]
    pub outputs: Vec<PathBuf>,
}

/// How requests of disks get to their files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DiskEngine {
    /// One after the other in each queue
    #[default]
    Sync,
    /// Many at once in each queue
    #[value(name = "io_uring")]
    IoUring,
}

impl DiskEngine {
    /// The word on the command line.
    fn word(self) -> &'static str {
        match self {
            DiskEngine::Sync => "sync",
            DiskEngine::IoUring => "io_uring",
        }
    }
}

impl PerRun {
    /// As arguments for a detached owner, which runs in another directory.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        let PerRun {
            timing,
            exits,
            icount,
            host,
            profile: _,
            outputs: _,
        } = self;
        let mut arguments = Vec::from(host.arguments());
        if let Some(path) = timing {
            let path = if path == Path::new("-") {
                path.clone()
            } else {
                std::path::absolute(path)?
            };
            arguments.extend(["--timing".into(), path.into()]);
        }
        if *exits {
            arguments.push("--exits".into());
        }
        if *icount {
            arguments.push("--icount".into());
        }
        Ok(arguments)
    }

    /// Whether `limits` can be kept in such a run.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        if self.icount && !limits.none() {
            return Err(Error::Refused(
                "limits count seconds of this host, and with --icount time is instructions; leave one of them out".into(),
            ));
        }
        Ok(())
    }

    /// The turn of the machine.
    pub fn turn(&self) -> Turn {
        if self.icount {
            Turn::kept()
        } else {
            Turn::default()
        }
    }
}
