//! Counters that a noisy machine cannot touch: what a launch costs, held to the values in `tests/lab/counters.json`.
//!
//! A count that grows by more than its margin fails. One that shrinks by more fails too, and asks for the new value to be
//! recorded, so that what was won is not lost again unseen.

use std::fs;

use anyhow::{Context, Result, ensure};
use kiln_tests::dist::workspace;
use kiln_tests::ground::Ground;
use serde_json::Value;

use crate::Story;
use crate::run::timed;

pub const STORIES: &[(&str, Story)] = &[
    (
        "system_calls_before_the_first_run",
        system_calls_before_the_first_run,
    ),
    ("system_calls_of_confinement", system_calls_of_confinement),
    ("exits_to_pid1", exits_to_pid1),
];

/// The recorded values.
const RECORDED: &str = "tests/lab/counters.json";

/// Compares `measured` with the value recorded under `name`, which is `{"value": N, "margin": N, "goal": N}`.
fn hold(name: &str, measured: u64) -> Result<()> {
    let path = workspace().join(RECORDED);
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let recorded: Value = serde_json::from_str(&text).context(RECORDED)?;
    let number = |field: &str| {
        recorded[name][field]
            .as_u64()
            .with_context(|| format!("{RECORDED} has no {name}.{field}"))
    };
    let (value, margin) = (number("value")?, number("margin")?);
    eprintln!("e2e: {name}: {measured} (recorded: {value} ± {margin})");
    ensure!(
        measured <= value + margin,
        "{name} grew from {value} to {measured}"
    );
    ensure!(
        measured + margin >= value,
        "{name} fell from {value} to {measured}: record it in {RECORDED}"
    );
    ensure!(
        measured <= number("goal")?,
        "{name} is {measured}, beyond its goal"
    );
    Ok(())
}

/// What a launch itself makes.
fn system_calls_before_the_first_run(ground: &Ground) -> Result<()> {
    hold_system_calls(ground, "--sandbox off", "system_calls_before_first_run")
}

/// The same with what it takes to confine the process, which root does more for than others: there are capabilities to drop.
fn system_calls_of_confinement(ground: &Ground) -> Result<()> {
    hold_system_calls(
        ground,
        "--sandbox required",
        "system_calls_before_first_run_confined",
    )
}

/// The second launch, so that kernel and initramfs are known to be whole already.
fn hold_system_calls(ground: &Ground, option: &str, name: &str) -> Result<()> {
    let run = format!("vmm run hello.ami --rm --accel kvm {option} -- true");
    let line = format!(
        "set -e; {run}; strace -f -o $HOME/trace {run}; grep -q KVM_RUN $HOME/trace; \
         sed '/KVM_RUN/q' $HOME/trace | grep -v resumed | grep -v KVM_RUN; rm $HOME/trace"
    );
    let output = ground.sh(&line)?;
    ensure!(output.status == 0, "{output:?}");
    let calls: Vec<&str> = output.stdout.lines().filter(|line| line.contains('(')).collect();
    hold(name, calls.len() as u64).with_context(|| format!("the calls were:\n{}", calls.join("\n")))
}

/// Exits to user space until the kernel starts its PID 1.
fn exits_to_pid1(ground: &Ground) -> Result<()> {
    let (timing, _) = timed(ground, "hello.ami --accel kvm")?;
    let exits = timing["exits"]["kernel_ready"]["total"].as_u64();
    hold(
        "exits_to_pid1",
        exits.with_context(|| format!("no exits in {timing:#}"))?,
    )
    .with_context(|| format!("the exits were: {:#}", timing["exits"]["kernel_ready"]))
}
