//! `cargo xtask bench-block`: the block device against QEMU's, and itself without confinement, in the lab,
//! same guest and disk, in turns (A B C D D C B A).
//!
//! The figures are fio's in the guest: throughput of large requests in order, requests a second of small ones
//! in no order. The script runs on the lab's host.

use std::time::Duration;

use anyhow::Result;

use crate::figures;

/// The guest.
const RECIPE: &str = "tests/block/fio.toml";
const SCRIPT: &str = include_str!("../../tests/block/throughput.sh");
/// For one round: eight launches, each with five measurements.
const ROUND_LIMIT: Duration = Duration::from_secs(1200);

/// Runs `rounds` rounds with `cpus` processors in the guest, and a queue and a job of fio for each; prints
/// what came out. Returns the exit status.
pub fn bench(rounds: u32, cpus: u32) -> Result<u8> {
    let script = format!("ROUNDS={rounds} CPUS={cpus}\n{SCRIPT}");
    figures::measure(RECIPE, &script, ROUND_LIMIT * rounds)
}
