//! Debian's stock kernels: each boots to PID 1 and runs a command.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("linux_6_1_boots", |host| boots(host, "6.1")),
    ("linux_6_12_boots", |host| boots(host, "6.12")),
    ("linux_7_boots", |host| boots(host, "7")),
];

/// Boots `tests/kernels/linux-VERSION.toml`, which was built before the tests began, and lets it say what it
/// is.
fn boots(host: &TestHost, version: &str) -> Result<()> {
    let output = host.sh(&format!(
        "vmm run linux-{version}.ami --rm -- sh -c 'uname -r; head -n 1 /proc/1/status; grep -o -m 1 -w xsave /proc/cpuinfo; true'"
    ))?;
    ensure!(output.status == 0, "{output:?}");
    let mut said = output.stdout.lines();
    let release = said.next().unwrap_or_default();
    ensure!(release.starts_with(&format!("{version}.")), "{output:?}");
    ensure!(release.contains("cloud"), "{output:?}");
    ensure!(said.next() == Some("Name:\tinit"), "{output:?}");
    // XSAVE is where KVM's guests differ from host to host; a kernel that mistrusts CPUID does without.
    if host.accelerator() == "kvm" {
        let flag = "grep -o -m 1 -w xsave /proc/cpuinfo; true";
        let at_host = host.sh(flag)?;
        ensure!(said.eq(at_host.stdout.lines()), "{output:?} but {at_host:?}");
    }
    Ok(())
}
