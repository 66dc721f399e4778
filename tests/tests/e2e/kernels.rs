//! Debian's stock kernels: each boots to PID 1 and runs a command.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("linux_6_1_boots", |host| boots(host, "6.1")),
    ("linux_6_12_boots", |host| boots(host, "6.12")),
    ("linux_7_boots", |host| boots(host, "7")),
];

/// Tests whose image takes a guest-init that is compiled for it, with its standard library.
pub const LONG: &[(&str, Test)] = &[("linux_6_1_of_32_bits_boots", a_32_bit_kernel_boots)];

/// Boots [`LONG_IMAGE`], whose programs are of 32 bits, too: PID 1 among them.
fn a_32_bit_kernel_boots(host: &TestHost) -> Result<()> {
    let script = "uname -rm; head -n 1 /proc/1/status; head -c 100000 /dev/urandom | gzip | sha256sum >/dev/null && echo works";
    let output = host.sh(&format!(
        "vmm run linux-6.1-i386.ami --cpus 2 --rm -- sh -c '{script}'"
    ))?;
    ensure!(output.status == 0, "{output:?}");
    let said: Vec<&str> = output.stdout.lines().collect();
    ensure!(
        matches!(said[..], [release, "Name:\tinit", "works"] if release.starts_with("6.1.") && release.ends_with("-686-pae i686")),
        "{output:?}"
    );
    Ok(())
}

/// The recipe of the image for [`LONG`].
pub const LONG_IMAGE: &str = "tests/kernels/linux-6.1-i386.toml";

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
