//! `--icount` and `vmm profile`: every boot is the same, and says where it was spent.

use anyhow::{Context, Result, ensure};
use kiln_tests::dist::workspace;
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::run::timed;

pub const TESTS: &[(&str, Test)] = &[
    ("two_counted_boots_are_the_same", two_counted_boots_are_the_same),
    (
        "icount_with_kvm_or_several_cpus_is_refused",
        icount_with_kvm_or_several_cpus_is_refused,
    ),
    (
        "a_profile_names_the_kernels_functions",
        a_profile_names_the_kernels_functions,
    ),
];

/// How far the instructions up to a step may be from the recorded ones.
const TOLERANCE: f64 = 0.01;

/// Boots the image with the pinned kernel, which was built before the tests began, twice, to the command's
/// end and power-off.
fn two_counted_boots_are_the_same(host: &TestHost) -> Result<()> {
    let boot = || {
        let (timing, said) = timed(host, "linux-6.12.ami --icount --memory 512M")?;
        let total = counted(&timing, "/instructions")?;
        ensure!(said.contains(&format!("{total} in all")), "{said}");
        anyhow::Ok(timing)
    };
    let (first, second) = (boot()?, boot()?);
    let counts = |timing: &Value| {
        let events = timing["events"].as_array().cloned().unwrap_or_default();
        let mut counts: Vec<_> = events
            .iter()
            .map(|event| (event["id"].clone(), event["instructions"].clone()))
            .collect();
        counts.push(("all".into(), timing["instructions"].clone()));
        counts
    };
    ensure!(counts(&first) == counts(&second), "{first:#}\n{second:#}");
    near_the_record("to_pid1", until(&first, "T7")?)?;
    near_the_record("to_init", until(&first, "T9")?)
}

/// Guest instructions from the first one to guest-init's mark of `event`.
fn until(timing: &Value, event: &str) -> Result<u64> {
    let events = timing["events"].as_array().context("no events")?;
    let reached = events.iter().find(|reached| reached["id"] == event);
    counted(
        reached.with_context(|| format!("{event} was not reached"))?,
        "/instructions",
    )
}

fn counted(value: &Value, at: &str) -> Result<u64> {
    let count = value.pointer(at).and_then(Value::as_u64);
    count.with_context(|| format!("{at} is missing in {value:#}"))
}

/// A boot that costs more or fewer instructions than it used to is news: either a fault, or a new number for
/// the record.
fn near_the_record(name: &str, count: u64) -> Result<()> {
    let path = workspace().join("tests/kernels/instructions.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let record: Value = serde_json::from_str(&text)?;
    let recorded = counted(&record, &format!("/linux-6.12/{name}"))?;
    let off = count as f64 / recorded as f64 - 1.0;
    eprintln!(
        "{name}: {count} instructions, {:+.3} % of the record",
        off * 100.0
    );
    ensure!(
        off.abs() <= TOLERANCE,
        "{name}: {count} instructions are {:+.2} % off the recorded {recorded}; if that is meant, change {}",
        off * 100.0,
        path.display()
    );
    Ok(())
}

fn icount_with_kvm_or_several_cpus_is_refused(host: &TestHost) -> Result<()> {
    for (flags, reasons) in [
        ("--cpus 2", ["number of CPUs", "--cpus 1"]),
        ("--accel kvm", ["KVM cannot count", "--accel soft"]),
    ] {
        let output = host.sh(&format!("vmm run hello.ami --rm --icount {flags} -- true"))?;
        ensure!(output.status == 125, "{flags}: {output:?}");
        for reason in reasons {
            ensure!(output.stderr.contains(reason), "{flags}: {output:?}");
        }
    }
    Ok(())
}

fn a_profile_names_the_kernels_functions(host: &TestHost) -> Result<()> {
    let line = "dir=$(mktemp -d) && \
                vmm profile hello.ami --top 12 --folded $dir/boot.folded --svg $dir/boot.svg && echo && \
                awk '{ sum += $NF } END { printf \"%.0f\\n\", sum }' $dir/boot.folded && \
                grep -c '^start_kernel;\\|;start_kernel;' $dir/boot.folded && tail -n 1 $dir/boot.svg; \
                status=$?; rm -rf $dir; exit $status";
    let output = host.sh(line)?;
    ensure!(output.status == 0, "{output:?}");
    let (table, rest) = output.stdout.split_once("\n\n").context("no table")?;
    ensure!(table.lines().count() == 13, "{output:?}");
    ensure!(table.contains("WITH CALLEES"), "{output:?}");
    let mut rest = rest.lines();
    let folded: u64 = rest.next().unwrap_or_default().parse()?;
    let total = output
        .stderr
        .split_whitespace()
        .zip(output.stderr.split_whitespace().skip(1))
        .find_map(|(count, word)| (word == "in").then(|| count.parse::<u64>().ok())?)
        .context("no count")?;
    ensure!(
        folded == total,
        "{folded} are in the profile, {total} were counted"
    );
    let under_start_kernel: u64 = rest.next().unwrap_or_default().parse()?;
    ensure!(under_start_kernel > 100, "{output:?}");
    ensure!(rest.next() == Some("</svg>"), "{output:?}");
    Ok(())
}
