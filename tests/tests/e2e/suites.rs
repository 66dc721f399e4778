//! Suites that others wrote, in guests on the software processor: CPython's tests, stress-ng, and the
//! kernel's own tests of x86; and, in a guest of 32-bit programs, CPython's numbers and programs of ours.
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
    ("suite_of_cpython_of_32_bits_ends_as_recorded", cpython_i386),
    ("suite_of_32_bit_programs_ends_as_recorded", i386),
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

/// An image for some of them, built by the first test that needs it.
#[derive(Clone, Copy)]
enum Image {
    /// 64-bit programs.
    Suites,
    /// 32-bit programs.
    I386,
}

impl Image {
    fn recipe(self) -> &'static str {
        match self {
            Image::Suites => "tests/suites/suites.toml",
            Image::I386 => "tests/suites/i386.toml",
        }
    }

    fn path(self) -> Result<PathBuf> {
        static BUILT: [Mutex<Option<PathBuf>>; 2] = [const { Mutex::new(None) }; 2];
        let mut built = BUILT[self as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*built {
            Some(path) => Ok(path.clone()),
            None => {
                let dist = Dist::at(Arch::host()?, Profile::Dev);
                let path = dist.image_in(self.recipe(), &kiln_dir().join("suites"))?;
                Ok(built.insert(path).clone())
            }
        }
    }
}

/// Runs `script` in a guest of `image`, with the names of the record for `@`; `parse` finds a name and its
/// outcome in a line of what it prints.
fn run(
    host: &TestHost,
    image: Image,
    suite: &str,
    script: &str,
    parse: fn(&str) -> Option<(&str, &str)>,
) -> Result<()> {
    let record = record(suite)?;
    let names: Vec<&str> = record.iter().map(|(name, ..)| name.as_str()).collect();
    let script = script.replace('@', &names.join(" "));
    let image = image.path()?;
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

/// Each module in a process of its own, two at a time.
const CPYTHON: &str = "cd /tmp && python3 -m test -j2 @";

fn cpython(host: &TestHost) -> Result<()> {
    run(host, Image::Suites, "cpython", CPYTHON, regrtest)
}

fn stress_ng(host: &TestHost) -> Result<()> {
    // Its statuses: 3 and 4 say that the kernel or the processor does not have what a stressor is about.
    let script = "cd /tmp; for t in @; do \
                  timeout 1800 stress-ng --$t 1 --timeout 2 --verify >out 2>&1; \
                  case $? in 0) o=pass;; 3|4) o=skip;; 124) o=timeout;; *) o=fail; cat out >&2;; esac; echo $t $o; done";
    run(host, Image::Suites, "stress-ng", script, plain)
}

fn x86(host: &TestHost) -> Result<()> {
    let script = "cd /opt/selftests; for t in @; do timeout 1800 ./$t >/tmp/out 2>&1; \
                  case $? in 0) o=pass;; 4) o=skip;; 124) o=timeout;; *) o=fail; tail -n 20 /tmp/out >&2;; esac; \
                  echo $t $o; done";
    run(host, Image::Suites, "x86", script, plain)
}

fn cpython_i386(host: &TestHost) -> Result<()> {
    run(host, Image::I386, "cpython-i386", CPYTHON, regrtest)
}

/// `tests/suites/i386/run.sh` says what each is.
fn i386(host: &TestHost) -> Result<()> {
    run(host, Image::I386, "i386", "sh /opt/i386/run.sh @", plain)
}
