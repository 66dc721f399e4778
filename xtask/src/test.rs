//! `cargo xtask test`: everything that has to hold before a change lands.

use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Profile, cargo, workspace};

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
        // Benchmarks have no tests, and what they are measured with takes its time to build.
        &[
            "test",
            "--quiet",
            "--workspace",
            "--exclude",
            "kiln-tests",
            "--exclude",
            "kiln-benches",
        ],
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
    // The labs' programs: stories are told on KVM of both architectures.
    let foreign = [Arch::X86_64, Arch::Aarch64]
        .into_iter()
        .filter(|arch| *arch != host && may_be_told(filter, *arch));
    step_of("the programs", || build(host, foreign.collect()))?;
    let mut e2e = cargo();
    e2e.args(["test", "--package", "kiln-tests", "--", "--test-threads=2"])
        .args(filter);
    step("end-to-end tests", &mut e2e)?;
    Ok(0)
}

/// Builds the programs for this machine and, at the same time, the lab's: link-time optimization leaves a processor idle for minutes.
fn build(host: Arch, foreign: Vec<Arch>) -> Result<()> {
    thread::scope(|scope| {
        let others: Vec<_> = foreign
            .into_iter()
            .map(|arch| scope.spawn(move || cross(arch, Profile::Dev)))
            .collect();
        cross(host, Profile::Dev)?;
        for other in others {
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}

/// Whether a story of the lab for `arch` may have `filter` in its name. One that begins with another ground's name needs no
/// programs for this one.
fn may_be_told(filter: Option<&str>, arch: Arch) -> bool {
    match filter.and_then(|filter| filter.split_once("::")) {
        Some((ground, _)) => format!("lab-{arch}").ends_with(ground),
        None => true,
    }
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    step_of(name, || {
        let status = command
            .current_dir(workspace())
            .status()
            .with_context(|| format!("{name} could not be started"))?;
        if !status.success() {
            bail!("{name} failed ({status}); the command was: {command:?}");
        }
        Ok(())
    })
}

/// Does something that takes its time, and says how long it took.
fn step_of<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("xtask: {name}");
    let start = Instant::now();
    let done = work()?;
    eprintln!("xtask: {name} passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_built_for_stories_that_may_be_told() {
        for filter in [
            None,
            Some("run_prints"),
            Some("lab-aarch64::run"),
            Some("aarch64::run"),
        ] {
            assert!(may_be_told(filter, Arch::Aarch64), "{filter:?}");
        }
        for filter in ["soft::run_prints", "lab-x86_64::", "build::a"] {
            assert!(!may_be_told(Some(filter), Arch::Aarch64), "{filter}");
        }
    }
}
