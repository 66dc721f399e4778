//! Completions and manual pages, made from the same definitions as the command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;

use super::Status;
use super::stream::Stream;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self, mut command: clap::Command) -> anyhow::Result<Status> {
        // Into memory first: the generator does not expect its writer to fail.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "vmm", &mut script);
        Stream::Output.put(&script)?;
        Ok(Status::OK)
    }
}

/// Write manual pages into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// The directory; created if need be
    directory: PathBuf,
}

impl Man {
    pub fn run(self, command: clap::Command) -> anyhow::Result<Status> {
        let failed = || format!("writing manual pages into {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(failed)?;
        clap_mangen::generate_to(command, &self.directory).with_context(failed)?;
        Ok(Status::OK)
    }
}
