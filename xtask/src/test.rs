//! `cargo xtask test`: the checks that a change must pass.

use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Profile, UNTESTED, cargo, workspace};

use crate::book::book;
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
];

/// Runs the checks, then the end-to-end tests whose name contains `filter`; with `all`, or where a name is
/// asked for, also those that an ordinary change does not need.
pub fn test(filter: Option<&str>, all: bool) -> Result<u8> {
    let start = Instant::now();
    packages::ensure(packages::test())?;
    packages::ensure_rootless_user()?;
    let all = all || filter.is_some();
    let builds: Vec<_> = builds(Arch::host()?)
        .into_iter()
        .filter(|build| all && may_match(filter, build.tests))
        .collect();
    if filter.is_none() {
        for (name, args) in CHECKS {
            step(name, cargo().args(*args))?;
        }
    }
    // Link-time optimization leaves a processor idle for minutes, in which unit tests run.
    thread::scope(|scope| {
        let programs = scope.spawn(|| step_of("the programs", || build(&builds)));
        let units = match filter {
            None => unit_tests(),
            Some(_) => Ok(()),
        };
        programs
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .and(units)
    })?;
    let mut e2e = cargo();
    e2e.args(["test", "--package", "kiln-tests", "--", "--test-threads=2"])
        .args(filter);
    if all {
        e2e.env("KILN_ALL_TESTS", "1");
    }
    step("end-to-end tests", &mut e2e)?;
    if filter.is_none() && std::env::var_os("KILN_LONG_TESTS").is_some() {
        step_of("the commands of the book", || book(Some("")).map(drop))?;
    }
    eprintln!("xtask: all passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(0)
}

/// The unit tests of every crate that has some.
fn unit_tests() -> Result<()> {
    let mut unit = cargo();
    unit.args(["test", "--quiet", "--workspace"])
        .args(UNTESTED.iter().flat_map(|package| ["--exclude", package]));
    step("unit tests", &mut unit)
}

/// Programs besides the development build for this machine, which the end-to-end tests make sure of
/// themselves.
#[derive(Debug, Clone, Copy)]
struct Build {
    arch: Arch,
    profile: Profile,
    /// What the names of the tests that need them contain.
    tests: &'static str,
}

fn builds(host: Arch) -> Vec<Build> {
    let foreign = |&arch: &Arch| arch != host;
    let lab = |arch| Build {
        arch,
        profile: Profile::Dev,
        tests: match arch {
            Arch::X86_64 => "lab-x86_64::",
            Arch::Aarch64 => "lab-aarch64::",
        },
    };
    let shipping = Build {
        arch: Arch::X86_64,
        profile: Profile::Launch,
        tests: "shipping::",
    };
    let labs = [Arch::X86_64, Arch::Aarch64].into_iter().filter(foreign).map(lab);
    labs.chain((host == Arch::X86_64).then_some(shipping)).collect()
}

/// Builds all at the same time.
fn build(builds: &[Build]) -> Result<()> {
    thread::scope(|scope| {
        let each: Vec<_> = builds
            .iter()
            .map(|build| scope.spawn(|| cross(build.arch, build.profile)))
            .collect();
        for build in each {
            build
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}

/// Whether a test of the group `tests` (`lab-aarch64::`) may have `filter` in its name: not one that begins
/// with another group's name.
fn may_match(filter: Option<&str>, tests: &str) -> bool {
    match filter.and_then(|filter| filter.split_once("::")) {
        Some((group, _)) => tests.trim_end_matches("::").ends_with(group),
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
    fn programs_are_built_for_tests_that_may_run() {
        for filter in [
            None,
            Some("a_command"),
            Some("lab-aarch64::run"),
            Some("aarch64::run"),
        ] {
            assert!(may_match(filter, "lab-aarch64::"), "{filter:?}");
        }
        for filter in ["soft::a_command", "lab-x86_64::", "build::a"] {
            assert!(!may_match(Some(filter), "lab-aarch64::"), "{filter}");
        }
    }
}
