//! `cargo demo`: from a fresh clone to a shell in a virtual machine.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, PROGRAMS, Profile, cargo};

/// Builds the programs, bakes `examples/hello.toml` and becomes `vmm --ami`.
pub fn demo(args: &[String]) -> Result<u8> {
    // Without what only tests need: the first hour of a newcomer begins here.
    let dist = Dist::build_programs(cargo(), Arch::host()?, Profile::Dev, &PROGRAMS)?;
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
