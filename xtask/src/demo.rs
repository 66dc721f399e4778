//! `cargo demo`: from a fresh clone to a shell in a virtual machine.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use kiln_tests::dist::{Dist, Profile};

/// Builds the programs, bakes `examples/hello.toml` and becomes `vmm --ami`.
pub fn demo(args: &[String]) -> Result<u8> {
    let dist = Dist::build(Profile::Dev)?;
    let image = dist.image("examples/hello.toml")?;
    let mut vmm = Command::new(dist.program("vmm"));
    vmm.arg("--ami").arg(&image).args(args);
    eprintln!(
        "\nNow: {} --ami {}   (Ctrl-] leaves)\n",
        dist.program("vmm").display(),
        image.display()
    );
    Err(vmm.exec()).context("vmm could not be started")
}
