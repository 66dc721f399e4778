//! `cargo xtask bench-net`: the user-mode network against QEMU's (slirp), and itself without confinement, in
//! the lab, same guest, in turns (A B C C B A).
//!
//! The figures are iperf3's, received, from guest to host and back, and the round trip to the gateway. The
//! script runs on the lab's host.

use std::time::Duration;

use anyhow::Result;

use crate::figures;

/// The guest.
const RECIPE: &str = "tests/net/iperf.toml";
const SCRIPT: &str = include_str!("../../tests/net/throughput.sh");
/// For one round: six launches, each with two measurements.
const ROUND_LIMIT: Duration = Duration::from_secs(600);

/// Runs `rounds` rounds and prints what came out. Returns the exit status.
pub fn bench(rounds: u32) -> Result<u8> {
    let script = format!("ROUNDS={rounds}\n{SCRIPT}");
    figures::measure(RECIPE, &script, ROUND_LIMIT * rounds)
}
