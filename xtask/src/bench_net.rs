//! `cargo xtask bench-net`: the user-mode network against QEMU's (slirp), in the lab, same guest, in turns (A B B A).
//!
//! The figures are iperf3's, received, from guest to host and back, and the round trip to the gateway. The script that
//! runs on the lab's host prints a line for each; here they become a table of medians and ratios.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::Dist;
use kiln_tests::ground::Ground;

use crate::packages;

/// The guest.
const RECIPE: &str = "tests/net/iperf.toml";
const SCRIPT: &str = include_str!("../../tests/net/throughput.sh");
/// For one round: four launches, each with two measurements.
const ROUND_LIMIT: Duration = Duration::from_secs(600);

/// Values by what was measured, then by who.
type Figures = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// Runs `rounds` rounds and prints what came out. Returns the exit status: figures decide nothing.
pub fn bench(rounds: u32) -> Result<u8> {
    let arch = Arch::X86_64;
    packages::ensure(packages::lab(arch))?;
    Dist::build(arch)?.image(RECIPE)?;
    let script = format!("ROUNDS={rounds}\n{SCRIPT}");
    let output = Ground::lab(arch).sh_within(&script, ROUND_LIMIT * rounds)?;
    ensure!(output.status == 0, "the script failed in the lab: {output:?}");
    let figures = figures(&output.stdout)?;
    ensure!(!figures.is_empty(), "nothing was measured: {output:?}");
    print(&figures);
    Ok(0)
}

/// Lines of round, who, what and value.
fn figures(text: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_round, who, what, value] = words[..] else {
            continue;
        };
        let value: f64 = value
            .parse()
            .with_context(|| format!("no figure in the line {line:?}"))?;
        let lanes = figures.entry(what.to_owned()).or_default();
        lanes.entry(who.to_owned()).or_default().push(value);
    }
    Ok(figures)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

fn print(figures: &Figures) {
    println!("{:<18}{:>12}{:>12}{:>8}", "median", "vmm", "qemu", "ratio");
    for (what, lanes) in figures {
        let of = |who: &str| lanes.get(who).map_or(f64::NAN, |values| median(values));
        let (ours, theirs) = (of("vmm"), of("qemu"));
        println!("{what:<18}{ours:>12.3}{theirs:>12.3}{:>8.2}", ours / theirs);
    }
    for (what, lanes) in figures {
        for (who, values) in lanes {
            println!("{what} {who}: {values:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_figures_and_noise_does_not() {
        let text = "1 vmm guest-to-host 900\nwelcome\n1 qemu guest-to-host 300\n2 vmm guest-to-host 1100\n";
        let figures = figures(text).unwrap();
        let lanes = &figures["guest-to-host"];
        assert_eq!(median(&lanes["vmm"]), 1000.0);
        assert_eq!(median(&lanes["qemu"]), 300.0);
        assert!(super::figures("1 vmm guest-to-host many").is_err());
    }
}
