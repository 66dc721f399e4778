//! `cargo xtask fuzz`: builds the targets of `fuzz/` with libFuzzer and runs them in turns.
//!
//! The coverage counters of libFuzzer are passes of LLVM, which stable Rust takes as code generation options.
//! The address sanitizer has its runtime in every toolchain, but the flag that asks for it is for nightly;
//! `RUSTC_BOOTSTRAP` opens it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{cargo, workspace};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::cpu_time;

/// What LLVM adds to the code: counters at every edge, a table of their places, and the operands of
/// comparisons, from which libFuzzer learns what a program wants to see.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Seconds that one input may take, on a machine that does other things as well.
const TIMEOUT: u32 = 30;
/// Memory of a target in MiB: an input of some kilobytes that needs more has found a bomb.
const RSS: u32 = 3072;
/// Longest input, in bytes.
const MAX_LEN: u32 = 64 << 10;
/// Bytes of one target's committed inputs at most.
const KEEP: u64 = 100 << 10;

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The targets; all of them when none is named.
    targets: Vec<String>,
    /// How long each runs, in seconds of processor time: on a busy machine it takes longer.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many run at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Without the address sanitizer: about twice as fast, and blind to stray pointers.
    #[arg(long)]
    no_sanitizer: bool,
    /// Replace the committed inputs by a smallest set that reaches as much as all that were found.
    #[arg(long)]
    keep: bool,
}

/// Builds and runs; returns 1 when a target found something.
pub fn fuzz(options: &Options) -> Result<u8> {
    let known = targets()?;
    for target in &options.targets {
        ensure!(
            known.contains(target),
            "there is no fuzz target {target}\n  try: one of {}",
            known.join(", ")
        );
    }
    let wanted = match options.targets.is_empty() {
        true => known,
        false => options.targets.clone(),
    };
    let programs = build(&wanted, !options.no_sanitizer)?;
    if options.keep {
        for target in &wanted {
            keep(target, &programs)?;
        }
        return Ok(0);
    }
    let queue = Mutex::new(VecDeque::from(wanted));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let failed = std::thread::scope(|scope| -> Result<bool> {
        let work = || -> Result<bool> {
            let mut failed = false;
            while let Some(target) = next() {
                failed |= !run(&target, &programs, Duration::from_secs(options.seconds))?;
            }
            Ok(failed)
        };
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut failed = false;
        for worker in workers {
            match worker.join() {
                Ok(result) => failed |= result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(failed)
    })?;
    Ok(failed.into())
}

fn corpus() -> PathBuf {
    workspace().join("fuzz/corpus")
}

fn target_dir() -> PathBuf {
    workspace().join("target/fuzz")
}

/// Every target has a folder of inputs.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus()).context("the corpus of the fuzz targets cannot be read")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the programs and returns their folder.
fn build(targets: &[String], sanitizer: bool) -> Result<PathBuf> {
    let triple = match Arch::host()? {
        Arch::X86_64 => "x86_64-unknown-linux-gnu",
        Arch::Aarch64 => "aarch64-unknown-linux-gnu",
    };
    let mut flags = COVERAGE.join(" ");
    let mut command = cargo();
    if sanitizer {
        flags += " -Zsanitizer=address";
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    let dir = target_dir().join(if sanitizer { "address" } else { "plain" });
    command
        .args(["build", "--package", "kiln-fuzz", "--features", "libfuzzer"])
        .args(["--profile", "fuzz", "--target", triple, "--target-dir"])
        .arg(&dir)
        .env("RUSTFLAGS", flags);
    for target in targets {
        command.args(["--bin", target]);
    }
    let status = command.status().context("cargo could not be started")?;
    if !status.success() {
        bail!("the fuzz targets do not build ({status})");
    }
    Ok(dir.join(triple).join("fuzz"))
}

/// Runs a target for `time` of the processor and reports the result; `false` when it found something.
fn run(target: &str, programs: &Path, time: Duration) -> Result<bool> {
    let fuzzer = Fuzzer::new(target, programs)?;
    let start = Instant::now();
    let (mut used, mut executions) = (Duration::ZERO, 0);
    // libFuzzer counts seconds of the day: it goes on from what it has found until it has had as many of a
    // processor.
    let last = loop {
        let left = time.saturating_sub(used).as_secs();
        let turn = fuzzer.turn(left.max(1))?;
        used += turn.spent;
        executions += statistic(&turn.said, "stat::number_of_executed_units:").unwrap_or(0);
        if !turn.success || time.saturating_sub(used) < Duration::from_secs(1) {
            break turn;
        }
    };
    println!(
        "{target:<10} {:6.0} s  {:6.0} s of a processor  {executions:>12} executions  {:>6} edges  {}",
        start.elapsed().as_secs_f64(),
        used.as_secs_f64(),
        last_edges(&last.said).unwrap_or("?"),
        if last.success {
            "nothing found"
        } else {
            "FOUND SOMETHING"
        },
    );
    if !last.success {
        println!(
            "  the input: {}\n  the log:   {}",
            written_to(&last.said).unwrap_or("none was written"),
            fuzzer.log.display()
        );
    }
    Ok(last.success)
}

/// A target's program and where it puts what.
struct Fuzzer {
    program: PathBuf,
    /// Inputs that it found worth keeping, and those that are committed.
    corpora: [PathBuf; 2],
    /// Inputs at which it failed.
    artifacts: PathBuf,
    log: PathBuf,
}

/// What came of one start of a program.
struct Turn {
    success: bool,
    spent: Duration,
    said: String,
}

impl Fuzzer {
    /// Makes the folders and an empty log.
    fn new(target: &str, programs: &Path) -> Result<Self> {
        let dir = target_dir();
        let (logs, artifacts) = (dir.join("logs"), dir.join("artifacts").join(target));
        let found = dir.join("corpus").join(target);
        for folder in [&logs, &artifacts, &found] {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        let log = logs.join(format!("{target}.log"));
        File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        Ok(Self {
            program: programs.join(target),
            corpora: [found, corpus().join(target)],
            artifacts,
            log,
        })
    }

    /// Runs for `seconds` of the day; what the program says is appended to the log.
    fn turn(&self, seconds: u64) -> Result<Turn> {
        let output = File::options().append(true).open(&self.log);
        let output = output.with_context(|| format!("{} cannot be written", self.log.display()))?;
        let before = output.metadata()?.len();
        let mut child = Command::new(&self.program)
            .args(&self.corpora)
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            .arg(format!("-max_total_time={seconds}"))
            .args([format!("-timeout={TIMEOUT}"), format!("-rss_limit_mb={RSS}")])
            .args([format!("-max_len={MAX_LEN}"), "-print_final_stats=1".to_owned()])
            // Memory that a worker thread holds for a moment is no leak.
            .env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} could not be started", self.program.display()))?;
        // Its account closes when it is waited for.
        let pid = Pid::from_raw(child.id().cast_signed());
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let spent = cpu_time::of_process(child.id())?;
        let success = child.wait()?.success();
        // Of this turn only: a program that is killed says no figures, and must not be given those of the
        // turn before.
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(before))?;
        let mut said = Vec::new();
        log.read_to_end(&mut said)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(Turn { success, spent, said })
    }
}

/// The input at which a program failed.
fn written_to(said: &str) -> Option<&str> {
    let mut lines = said.lines().rev();
    lines.find_map(|line| Some(line.split_once("Test unit written to ")?.1))
}

/// A figure of libFuzzer's final statistics.
fn statistic(log: &str, name: &str) -> Option<u64> {
    let line = log.lines().rev().find(|line| line.starts_with(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The number of edges reached, as the last status line has it.
fn last_edges(log: &str) -> Option<&str> {
    let line = log.lines().rev().find(|line| line.contains(" cov: "))?;
    line.split(" cov: ").nth(1)?.split_ascii_whitespace().next()
}

/// Replaces the committed inputs by a smallest set of all inputs, as far as there is room for them: small
/// ones first.
fn keep(target: &str, programs: &Path) -> Result<()> {
    let dir = target_dir();
    let (found, merged, committed) = (
        dir.join("corpus").join(target),
        dir.join("merged").join(target),
        corpus().join(target),
    );
    let _ = fs::remove_dir_all(&merged);
    for folder in [&found, &merged] {
        fs::create_dir_all(folder)?;
    }
    let status = Command::new(programs.join(target))
        // The same edges in as few inputs as will do; how often each is passed would keep thousands.
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-max_len={MAX_LEN}"))
        .args([&merged, &committed, &found])
        .env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
        .status()?;
    ensure!(
        status.success(),
        "{target}: the inputs cannot be merged ({status})"
    );
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&merged)? {
        let path = entry?.path();
        inputs.push((path.metadata()?.len(), path));
    }
    inputs.sort();
    // What was named by a person is a seed or a regression, and stays.
    let named = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.len() != 40 || name.contains(|c: char| !c.is_ascii_hexdigit()))
    };
    let mut total = 0;
    for entry in fs::read_dir(&committed)? {
        let path = entry?.path();
        if named(&path) {
            total += path.metadata()?.len();
        } else {
            fs::remove_file(&path)?;
        }
    }
    let (mut kept, all) = (0, inputs.len());
    for (len, path) in inputs {
        if let Some(name) = path.file_name()
            && total + len <= KEEP
        {
            fs::copy(&path, committed.join(name))?;
            (total, kept) = (total + len, kept + 1);
        }
    }
    println!("{target}: {kept} of {all} inputs kept, {total} bytes with those that have names");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_out_of_the_log() {
        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\n#99\tDONE   cov: 345 ft: 400 corp: 2/9b\n\
            stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     9\n";
        assert_eq!(statistic(log, "stat::number_of_executed_units:"), Some(99));
        assert_eq!(last_edges(log), Some("345"));
        assert_eq!((statistic("", "stat::x:"), last_edges("")), (None, None));
        let found = "==7== ERROR\nartifact_prefix='a/'; Test unit written to a/crash-1\nBase64: AA==\n";
        assert_eq!((written_to(found), written_to(log)), (Some("a/crash-1"), None));
    }

    #[test]
    fn every_folder_of_inputs_is_a_target() {
        let manifest = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        for target in targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }
}
