//! `vmm run`: what the guest prints, how it ends, what it keeps.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::instance::process_of;

pub const TESTS: &[(&str, Test)] = &[
    (
        "a_command_has_its_streams_and_its_status",
        a_command_has_its_streams_and_its_status,
    ),
    (
        "a_command_that_fails_or_is_interrupted_has_its_status",
        a_command_that_fails_or_is_interrupted_has_its_status,
    ),
    ("a_file_survives_stop_and_start", a_file_survives_stop_and_start),
    (
        "the_guest_has_the_requested_cpus_and_memory",
        the_guest_has_the_requested_cpus_and_memory,
    ),
    (
        "a_power_off_ends_with_status_0_and_is_reported",
        a_power_off_ends_with_status_0_and_is_reported,
    ),
];

/// What does not depend on the accelerator: it runs once.
pub const ONCE: &[(&str, Test)] = &[
    ("exits_are_shown_by_register", exits_are_shown_by_register),
    (
        "kernel_initramfs_and_command_line_can_be_replaced",
        kernel_initramfs_and_command_line_can_be_replaced,
    ),
    ("a_dry_run_changes_nothing", a_dry_run_changes_nothing),
];

/// One launch: what the command reads, prints on either stream and returns, and every step of the boot.
fn a_command_has_its_streams_and_its_status(host: &TestHost) -> Result<()> {
    let output = host.sh(
        "file=$(mktemp); seq 1 100000 | vmm run hello.ami --rm -i --timing $file -- \
         sh -c 'uname -sm; nproc; md5sum; echo to-err >&2; exit 7'; status=$?; cat $file; rm $file; exit $status",
    )?;
    let expected = host.sh("seq 1 100000 | md5sum")?;
    ensure!(output.status == 7, "{output:?}");
    let (printed, timing) = output.stdout.split_once('{').context("no timing")?;
    ensure!(
        printed == format!("Linux {}\n1\n{}", host.arch(), expected.stdout),
        "{output:?}"
    );
    ensure!(output.stderr.contains("to-err"), "{output:?}");
    for event in 0..=10 {
        ensure!(
            timing.contains(&format!("\"T{event}\"")),
            "T{event} is missing in {timing}"
        );
    }
    Ok(())
}

fn a_command_that_fails_or_is_interrupted_has_its_status(host: &TestHost) -> Result<()> {
    let output = host.sh("vmm run hello.ami --rm -- no-such-program")?;
    ensure!(output.status == 127, "{output:?}");
    // Ctrl-C goes to the command.
    let line = format!(
        "(until vmm ps | grep -q 'interrupted .*ready'; do sleep 0.2; done; kill -INT $({})) >/dev/null 2>&1 & \
         vmm run hello.ami --rm --name interrupted -- sleep 100",
        process_of("interrupted")
    );
    let output = host.sh(&line)?;
    ensure!(output.status == 128 + 2, "{output:?}");
    Ok(())
}

fn a_file_survives_stop_and_start(host: &TestHost) -> Result<()> {
    let first = host.sh("vmm run hello.ami --name keeper -- sh -c 'echo kept > /root/file'")?;
    ensure!(first.status == 0, "{first:?}");
    let started = host.sh("vmm start keeper")?;
    ensure!(started.status == 0, "{started:?}");
    let read = host.sh("vmm exec keeper -- cat /root/file")?;
    ensure!(read.status == 0 && read.stdout == "kept\n", "{read:?}");
    let ended = host.sh("vmm terminate keeper")?;
    ensure!(ended.status == 0, "{ended:?}");
    Ok(())
}

/// Processors and memory; the larger memory does not fit below the devices, which begin at 3 GiB.
fn the_guest_has_the_requested_cpus_and_memory(host: &TestHost) -> Result<()> {
    for (cpus, mib) in [(2, 128_u64), (4, 5120)] {
        let output = host.sh(&format!(
            "vmm run hello.ami --rm --cpus {cpus} --memory {mib}M -- sh -c 'nproc; head -n 1 /proc/meminfo'"
        ))?;
        let (processors, memory) = output.stdout.split_once('\n').context("two lines")?;
        ensure!(
            output.status == 0 && processors == cpus.to_string(),
            "--cpus {cpus}: {output:?}"
        );
        let kib: u64 = memory
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        // The kernel keeps its own image and page structures: at most 64 MiB plus a sixteenth.
        let asked = mib * 1024;
        ensure!(
            kib < asked && kib > asked - asked / 16 - 64 * 1024,
            "--memory {mib}M: {output:?}"
        );
    }
    Ok(())
}

fn a_power_off_ends_with_status_0_and_is_reported(host: &TestHost) -> Result<()> {
    let output = host.sh("vmm run hello.ami --rm -- sh -c 'poweroff -f; sleep 60'")?;
    // The command was cut off: that is the launcher's failure to report, not a status of the command.
    ensure!(output.status == 125, "{output:?}");
    ensure!(output.stderr.contains("the guest went away"), "{output:?}");
    Ok(())
}

/// Runs `true` in an instance launched with `arguments`; returns the times of the launch, and what `vmm`
/// said.
pub fn timed(host: &TestHost, arguments: &str) -> Result<(serde_json::Value, String)> {
    let output = host.sh(&format!(
        "file=$(mktemp) && vmm run {arguments} --rm --timing $file -- true && cat $file; \
         status=$?; rm -f $file; exit $status"
    ))?;
    ensure!(output.status == 0, "{output:?}");
    Ok((serde_json::from_str(&output.stdout)?, output.stderr))
}

fn exits_are_shown_by_register(host: &TestHost) -> Result<()> {
    let output = host.sh("vmm run hello.ami --rm --exits --timing - -- true")?;
    ensure!(output.status == 0 && output.stdout.is_empty(), "{output:?}");
    for text in [
        "to PID 1",
        "virtio vda InterruptStatus",
        "total",
        "T4 first_run",
        "█",
    ] {
        ensure!(
            output.stderr.contains(text),
            "{text} is missing: {}",
            output.stderr
        );
    }
    Ok(())
}

/// Kernel, initramfs, command line and a root volume that is copied before the launch.
fn kernel_initramfs_and_command_line_can_be_replaced(host: &TestHost) -> Result<()> {
    let output = host.sh(
        "set -e; cd $HOME; for part in kernel initramfs; do \
         imgtool extract $OLDPWD/hello.ami --part $part -o $part >/dev/null; done; \
         vmm run $OLDPWD/hello.ami --rm --kernel kernel --initrd initramfs --append 'kiln.word=1' --root-copy full \
         -- sh -c 'cat /proc/cmdline; echo written > /root/file; cat /root/file'; rm kernel initramfs",
    )?;
    ensure!(output.status == 0, "{output:?}");
    ensure!(
        output.stdout.contains(" kiln.word=1\n") && output.stdout.ends_with("written\n"),
        "{output:?}"
    );
    Ok(())
}

fn a_dry_run_changes_nothing(host: &TestHost) -> Result<()> {
    let output = host.sh("vmm ps -a; vmm run hello.ami --cpus 3 --dry-run && vmm ps -a")?;
    ensure!(output.status == 0, "{output:?}");
    let Some((before, rest)) = output.stdout.split_once('{') else {
        anyhow::bail!("no plan in {output:?}")
    };
    let Some((plan, after)) = rest.rsplit_once('}') else {
        anyhow::bail!("no plan in {output:?}")
    };
    let plan: serde_json::Value = serde_json::from_str(&format!("{{{plan}}}"))?;
    ensure!(plan["config"]["cpus"] == 3, "{plan:#}");
    ensure!(before.trim() == after.trim(), "{output:?}");
    Ok(())
}
