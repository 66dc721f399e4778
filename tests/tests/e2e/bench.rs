//! `vmm bench`: it measures real launches and writes its outputs. Times are not checked.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "bench_draws_no_conclusion_from_one_launch",
    bench_draws_no_conclusion_from_one_launch,
)];

/// Where QEMU is on the host.
pub const LAB_TESTS: &[(&str, Test)] = &[("bench_measures_qemu_beside_vmm", bench_measures_qemu_beside_vmm)];

/// One cold round beside a peer, then against itself: each has to be distinguished from the other, and one
/// round concludes nothing.
fn bench_measures_qemu_beside_vmm(host: &TestHost) -> Result<()> {
    let output = host.sh(
        "mount -t tracefs tracefs /sys/kernel/tracing; \
         vmm bench hello.ami -n 1 --warmups 0 --cache cold --peer qemu --json $HOME/b.json --html $HOME/b.html",
    )?;
    ensure!(output.status == 2, "one round concludes nothing: {output:?}");
    let written = host.sh("cat $HOME/b.json")?;
    let found: Value = serde_json::from_str(&written.stdout).context("the JSON")?;
    let names: Vec<_> = found["lanes"]
        .as_array()
        .context("lanes")?
        .iter()
        .map(|lane| lane["name"].as_str().unwrap_or_default())
        .collect();
    ensure!(
        names == ["vmm kvm", "qemu-microvm kvm", "vmm kvm (again)"],
        "{names:?}"
    );
    let samples = found["samples"].as_array().context("samples")?;
    ensure!(samples.len() == 3, "{found:#}");
    for sample in samples {
        let ns = |metric: &str| sample["ns"][metric].as_u64().unwrap_or(0);
        ensure!(sample["cache"] == "cold", "{sample:#}");
        // Every monitor's guest is entered, then says that it has booted, then ends.
        for (earlier, later) in [("kvm_entry", "marker"), ("marker", "exit")] {
            ensure!(
                ns(earlier) > 0 && ns(earlier) < ns(later),
                "{earlier}, {later}: {sample:#}"
            );
        }
    }
    let metrics = found["comparisons"].as_array().context("comparisons")?;
    for metric in ["kvm_entry", "marker"] {
        ensure!(
            metrics
                .iter()
                .any(|c| c["metric"] == metric && c["lane"] == 1 && c["verdict"] == "no_conclusion"),
            "{found:#}"
        );
    }
    let page = host.sh("cat $HOME/b.html; rm $HOME/b.json $HOME/b.html")?.stdout;
    for text in [
        "qemu-microvm kvm",
        "guest entered",
        "Cold page cache",
        "No conclusion",
    ] {
        ensure!(page.contains(text), "{text} is missing in {page}");
    }
    Ok(())
}

fn bench_draws_no_conclusion_from_one_launch(host: &TestHost) -> Result<()> {
    let accelerator = host.accelerator();
    let output = host.sh(&format!(
        "vmm bench hello.ami -n 1 --warmups 0 --cache warm --peer none --accel {accelerator} --json $HOME/b.json --html $HOME/b.html"
    ))?;
    ensure!(output.status == 2, "one round concludes nothing: {output:?}");
    ensure!(output.stderr.contains("no conclusion"), "{output:?}");
    ensure!(
        output.stdout.contains(&format!("vmm {accelerator}")),
        "{output:?}"
    );

    let written = host.sh("cat $HOME/b.json")?;
    let found: Value = serde_json::from_str(&written.stdout).context("the JSON")?;
    ensure!(found["schema"] == 1 && found["kind"] == "kiln-bench", "{found:#}");
    ensure!(found["conclusive"] == false, "{found:#}");
    let samples = found["samples"].as_array().context("samples")?;
    ensure!(samples.len() == 2, "lane A and lane A again: {found:#}");
    for sample in samples {
        let ns = |metric: &str| sample["ns"][metric].as_u64().unwrap_or(0);
        // In this order the guest goes through them; the marker is seen from outside.
        for (earlier, later) in [("T4", "T9"), ("T9", "exit"), ("marker", "exit")] {
            ensure!(
                ns(earlier) > 0 && ns(earlier) < ns(later),
                "{earlier}, {later}: {sample:#}"
            );
        }
    }

    let page = host.sh("cat $HOME/b.html; rm $HOME/b.json $HOME/b.html")?.stdout;
    ensure!(
        page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"),
        "{page}"
    );
    ensure!(
        page.contains("Where the time goes") && !page.contains("http"),
        "{page}"
    );
    Ok(())
}
