//! `cargo xtask test`: everything that has to hold before a change lands.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{cargo, workspace};

use crate::cross::cross;
use crate::packages;

/// A named step: arguments to cargo.
const CHECKS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "unit tests",
        &["test", "--quiet", "--workspace", "--exclude", "kiln-tests"],
    ),
];

/// Runs the checks, then the end-to-end tests whose name contains `filter`.
pub fn test(filter: Option<&str>) -> Result<u8> {
    packages::ensure(packages::test())?;
    packages::ensure_rootless_user()?;
    if filter.is_none() {
        for (name, args) in CHECKS {
            step(name, cargo().args(*args))?;
        }
    }
    let host = Arch::host()?;
    cross(host)?;
    if std::env::var_os("KILN_LONG_TESTS").is_some() {
        // The other labs' programs; this machine's are built.
        for arch in [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .filter(|arch| *arch != host)
        {
            cross(arch)?;
        }
    }
    let mut e2e = cargo();
    e2e.args(["test", "--package", "kiln-tests", "--", "--test-threads=2"])
        .args(filter);
    step("end-to-end tests", &mut e2e)?;
    Ok(0)
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {name}");
    let start = Instant::now();
    let status = command
        .current_dir(workspace())
        .status()
        .with_context(|| format!("{name} could not be started"))?;
    if !status.success() {
        bail!("{name} failed ({status}); the command was: {command:?}");
    }
    eprintln!("xtask: {name} passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
