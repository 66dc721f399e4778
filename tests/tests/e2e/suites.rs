//! Suites that others wrote, in guests on the software processor: CPython's tests, stress-ng, and the
//! kernel's own tests of x86.
//!
//! What is run of a suite and how it ends is in `tests/suites`: a name and an outcome a line, with the reason
//! for each that is not expected to pass. An outcome that is not the expected one fails the test, in either
//! direction.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile, kiln_dir, workspace};
use kiln_tests::test_host::TestHost;

use crate::Test;

/// Each takes minutes.
pub const LONG: &[(&str, Test)] = &[
    ("suite_of_cpython_ends_as_recorded", cpython),
    ("suite_of_stress_ng_ends_as_recorded", stress_ng),
    ("suite_of_the_kernel_for_x86_ends_as_recorded", x86),
];

/// A guest that is not through by then hangs. On an idle machine no suite takes more than ten minutes.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// How a test of a suite ends.
const OUTCOMES: [&str; 4] = ["pass", "skip", "fail", "timeout"];

/// Names in the order of the record, and what it says of each: the outcome, and the rest of the line.
type Record = Vec<(String, String, String)>;

/// Reads `tests/suites/SUITE.txt`.
fn record(suite: &str) -> Result<Record> {
    let path = workspace().join(format!("tests/suites/{suite}.txt"));
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            let (name, outcome, reason) = (next(), next(), next());
            ensure!(
                OUTCOMES.contains(&outcome.as_str()) && (outcome == "pass") == reason.is_empty(),
                "{}: {line:?} is not a name, an outcome and, where that is not pass, a reason",
                path.display()
            );
            Ok((name, outcome, reason))
        })
        .collect()
}

/// The image with all of them, built by the first test that needs it.
fn image() -> Result<PathBuf> {
    static IMAGE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut image = IMAGE.lock().unwrap_or_else(PoisonError::into_inner);
    match &*image {
        Some(image) => Ok(image.clone()),
        None => {
            let dist = Dist::at(Arch::host()?, Profile::Dev);
            let built = dist.image_in("tests/suites/suites.toml", &kiln_dir().join("suites"))?;
            Ok(image.insert(built).clone())
        }
    }
}

/// Runs `script` in a guest, with the names of the record for `@`; `parse` finds a name and its outcome in a
/// line of what it prints.
fn run(host: &TestHost, suite: &str, script: &str, parse: fn(&str) -> Option<(&str, &str)>) -> Result<()> {
    let record = record(suite)?;
    let names: Vec<&str> = record.iter().map(|(name, ..)| name.as_str()).collect();
    let script = script.replace('@', &names.join(" "));
    let image = image()?;
    let output = host.sh_within(
        &format!("vmm run {} --rm -- sh -c '{script}'", image.display()),
        LIMIT,
    )?;
    let found: BTreeMap<&str, &str> = output.stdout.lines().filter_map(parse).collect();
    let unexpected: Vec<String> = record
        .iter()
        .filter_map(|(name, expected, reason)| {
            let outcome = found.get(name.as_str()).copied().unwrap_or("absent");
            (outcome != expected).then(|| format!("{name}: {outcome} instead of {expected} {reason}"))
        })
        .collect();
    ensure!(
        unexpected.is_empty(),
        "{}\nThe guest ended with status {} and printed\n{}\n{}",
        unexpected.join("\n"),
        output.status,
        output.stdout,
        output.stderr
    );
    Ok(())
}

/// A line of two words.
fn plain(line: &str) -> Option<(&str, &str)> {
    line.split_once(' ')
}

/// `0:00:12 load avg: 2.10 [ 7/60] test_fractions passed (8.7 sec) -- running …`
fn regrtest(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_once("] ")?.1.split(' ');
    let (name, outcome) = (words.next()?, words.next()?);
    let known = match outcome {
        "passed" => "pass",
        "skipped" => "skip",
        "failed" => "fail",
        "timed" => "timeout",
        _ => return None,
    };
    Some((name, known))
}

fn cpython(host: &TestHost) -> Result<()> {
    // Each module in a process of its own, two at a time.
    let script = "cd /tmp && python3 -m test -j2 @";
    run(host, "cpython", script, regrtest)
}

fn stress_ng(host: &TestHost) -> Result<()> {
    // Its statuses: 3 and 4 say that the kernel or the processor does not have what a stressor is about.
    let script = "cd /tmp; for t in @; do \
                  timeout 1800 stress-ng --$t 1 --timeout 2 --verify >out 2>&1; \
                  case $? in 0) o=pass;; 3|4) o=skip;; 124) o=timeout;; *) o=fail; cat out >&2;; esac; echo $t $o; done";
    run(host, "stress-ng", script, plain)
}

fn x86(host: &TestHost) -> Result<()> {
    let script = "cd /opt/selftests; for t in @; do timeout 1800 ./$t >/tmp/out 2>&1; \
                  case $? in 0) o=pass;; 4) o=skip;; 124) o=timeout;; *) o=fail; tail -n 20 /tmp/out >&2;; esac; \
                  echo $t $o; done";
    run(host, "x86", script, plain)
}
