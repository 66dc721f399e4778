//! `vmm run`: what the guest prints, how it ends, what it keeps.

use anyhow::{Result, ensure};
use kiln_tests::ground::Ground;

use crate::Story;

pub const STORIES: &[(&str, Story)] = &[
    (
        "run_prints_what_the_guest_prints",
        run_prints_what_the_guest_prints,
    ),
    (
        "run_exits_with_the_commands_status",
        run_exits_with_the_commands_status,
    ),
    ("output_streams_stay_apart", output_streams_stay_apart),
    (
        "standard_input_reaches_the_command",
        standard_input_reaches_the_command,
    ),
    ("a_file_survives_stop_and_start", a_file_survives_stop_and_start),
    ("every_cpu_is_there", every_cpu_is_there),
    ("memory_is_what_was_asked_for", memory_is_what_was_asked_for),
    ("power_off_ends_well_and_says_so", power_off_ends_well_and_says_so),
    ("timing_has_every_event", timing_has_every_event),
];

fn run_prints_what_the_guest_prints(ground: &Ground) -> Result<()> {
    let output = ground.sh("vmm run hello.ami --rm -- uname -sm")?;
    ensure!(output.status == 0, "{output:?}");
    ensure!(
        output.stdout == format!("Linux {}\n", ground.arch()),
        "{output:?}"
    );
    Ok(())
}

fn run_exits_with_the_commands_status(ground: &Ground) -> Result<()> {
    let output = ground.sh("vmm run hello.ami --rm -- sh -c 'exit 7'")?;
    ensure!(output.status == 7, "{output:?}");
    let output = ground.sh("vmm run hello.ami --rm -- no-such-program")?;
    ensure!(output.status == 127, "{output:?}");
    Ok(())
}

fn output_streams_stay_apart(ground: &Ground) -> Result<()> {
    let output = ground.sh("vmm run hello.ami --rm -- sh -c 'echo to-out; echo to-err >&2'")?;
    ensure!(output.status == 0 && output.stdout == "to-out\n", "{output:?}");
    ensure!(output.stderr.contains("to-err"), "{output:?}");
    Ok(())
}

fn standard_input_reaches_the_command(ground: &Ground) -> Result<()> {
    let output = ground.sh("seq 1 100000 | vmm run hello.ami --rm -i -- md5sum")?;
    let expected = ground.sh("seq 1 100000 | md5sum")?;
    ensure!(output.status == 0, "{output:?}");
    ensure!(
        output.stdout == expected.stdout,
        "{output:?} instead of {expected:?}"
    );
    Ok(())
}

fn a_file_survives_stop_and_start(ground: &Ground) -> Result<()> {
    let first = ground.sh("vmm run hello.ami --name keeper -- sh -c 'echo kept > /root/file'")?;
    ensure!(first.status == 0, "{first:?}");
    let started = ground.sh("vmm start keeper")?;
    ensure!(started.status == 0, "{started:?}");
    let read = ground.sh("vmm exec keeper -- cat /root/file")?;
    ensure!(read.status == 0 && read.stdout == "kept\n", "{read:?}");
    let ended = ground.sh("vmm terminate keeper")?;
    ensure!(ended.status == 0, "{ended:?}");
    Ok(())
}

fn every_cpu_is_there(ground: &Ground) -> Result<()> {
    for cpus in [1, 2, 4] {
        let output = ground.sh(&format!("vmm run hello.ami --rm --cpus {cpus} -- nproc"))?;
        ensure!(
            output.status == 0 && output.stdout == format!("{cpus}\n"),
            "--cpus {cpus}: {output:?}"
        );
    }
    Ok(())
}

fn memory_is_what_was_asked_for(ground: &Ground) -> Result<()> {
    for mib in [128_u64, 1024] {
        let output = ground.sh(&format!(
            "vmm run hello.ami --rm --memory {mib}M -- head -n 1 /proc/meminfo"
        ))?;
        let kib: u64 = output
            .stdout
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

fn power_off_ends_well_and_says_so(ground: &Ground) -> Result<()> {
    let output = ground.sh("vmm run hello.ami --rm -- sh -c 'poweroff -f; sleep 60'")?;
    // The command was cut off: that is the launcher's failure to report, not a status of the command.
    ensure!(output.status == 125, "{output:?}");
    ensure!(output.stderr.contains("the guest went away"), "{output:?}");
    Ok(())
}

fn timing_has_every_event(ground: &Ground) -> Result<()> {
    let output =
        ground.sh("vmm run hello.ami --rm --timing timing.$$ -- true && cat timing.$$; rm -f timing.$$")?;
    ensure!(output.status == 0, "{output:?}");
    let timing: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let text = timing.to_string();
    for event in ["T0", "T1", "T2", "T3", "T4", "T8", "T10"] {
        ensure!(
            text.contains(&format!("\"{event}\"")),
            "{event} is missing in {timing:#}"
        );
    }
    Ok(())
}
