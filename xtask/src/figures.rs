//! Figures that a script in the lab printed, a line each, as a table of medians and ratios.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile};
use kiln_tests::test_host::TestHost;

use crate::packages;
use crate::spread::Spread;

/// What every script may call.
const TURNS: &str = include_str!("../../tests/lab/turns.sh");
/// The configuration whose figures are put in units of the others'.
const OURS: &str = "vmm";

/// Values by what was measured, then by who.
pub struct Figures(BTreeMap<String, BTreeMap<String, Vec<f64>>>);

/// Runs `script` in the lab with the image of `recipe` and prints what came out. Returns the exit status:
/// figures decide nothing.
pub fn measure(recipe: &str, script: &str, limit: Duration) -> Result<u8> {
    let arch = Arch::X86_64;
    packages::ensure(packages::lab(arch))?;
    Dist::build(Profile::Release)?.image(recipe)?;
    let output = TestHost::lab(arch, Profile::Release).sh_within(&format!("{TURNS}\n{script}"), limit)?;
    ensure!(output.status == 0, "the script failed in the lab: {output:?}");
    let figures = Figures::parse(&output.stdout)?;
    ensure!(!figures.0.is_empty(), "nothing was measured: {output:?}");
    print!("{}", figures.table());
    Ok(0)
}

impl Figures {
    /// Lines of round, who, what and value; others are noise.
    fn parse(text: &str) -> Result<Figures> {
        let mut figures = BTreeMap::<String, BTreeMap<String, Vec<f64>>>::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_round, who, what, value] = words[..] else {
                continue;
            };
            let value: f64 = value
                .parse()
                .with_context(|| format!("no figure in the line {line:?}"))?;
            let configurations = figures.entry(what.to_owned()).or_default();
            configurations.entry(who.to_owned()).or_default().push(value);
        }
        Ok(Figures(figures))
    }

    /// A line for each peer of each figure, then every value.
    fn table(&self) -> String {
        let mut text = format!(
            "{:<24}{:>12}  {:<16}{:>12}{:>8}\n",
            "median", OURS, "peer", "", "ratio"
        );
        for (what, configurations) in &self.0 {
            let ours = configurations
                .get(OURS)
                .map_or(f64::NAN, |values| Spread::of(values.iter().copied()).median);
            for (who, values) in configurations.iter().filter(|(who, _)| *who != OURS) {
                let theirs = Spread::of(values.iter().copied()).median;
                text += &format!(
                    "{what:<24}{ours:>12.3}  {who:<16}{theirs:>12.3}{:>8.2}\n",
                    ours / theirs
                );
            }
        }
        for (what, configurations) in &self.0 {
            for (who, values) in configurations {
                text += &format!("{what} {who}: {values:?}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_parsed_and_other_lines_ignored() {
        let text = "1 vmm guest-to-host 900\nwelcome\n1 qemu guest-to-host 400\n2 vmm guest-to-host 1100\n";
        let table = Figures::parse(text).unwrap().table();
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["guest-to-host", "1000.000", "qemu", "400.000", "2.50"]);
        assert!(table.ends_with("guest-to-host qemu: [400.0]\nguest-to-host vmm: [900.0, 1100.0]\n"));
        assert!(Figures::parse("1 vmm guest-to-host many").is_err());
    }
}
