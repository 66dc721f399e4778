//! `cargo xtask bench-boot`: `vmm bench` in the lab, on genuine KVM beside QEMU's microvm, and its report
//! brought here.
//!
//! The lab is an emulated host: its times are not those of hardware, but all configurations are slowed alike.
//! So the ratios are printed as well, for each metric that both have: the time of `vmm` divided by the
//! peer's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile, kiln_dir};
use kiln_tests::lab::quote;
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::packages;

const SCRIPT: &str = include_str!("../../tests/boot/bench.sh");
/// Where the lab puts the report: a disk's file system, so that a launch can be a cold one.
const OUT: &str = "/work/home/bench";
/// Peers whose guests find their devices on PCI alone.
const PCI_PEERS: [&str; 2] = ["cloud-hypervisor", "crosvm"];
/// For one launch; a round has at least three for each state of the page cache.
const LAUNCH_LIMIT: Duration = Duration::from_secs(60);
/// `vmm bench`: conclusions may be drawn, a regression, no conclusion.
const MEASURED: [u8; 3] = [0, 1, 2];

/// Measures the images of `recipes` with `rounds` rounds and more options of `vmm bench`; returns its exit
/// status.
pub fn bench(rounds: u32, recipes: &[String], options: &[String]) -> Result<u8> {
    let arch = Arch::X86_64;
    packages::ensure(packages::lab(arch))?;
    let dist = Dist::build(Profile::Release)?;
    let mut words = vec!["-n".to_owned(), rounds.to_string()];
    for recipe in recipes {
        let image = dist.image(recipe)?;
        let name = image.file_name().context("the image has no name")?;
        words.push(name.to_string_lossy().into_owned());
    }
    // The drivers of these peers' devices are in no image that only vmm runs.
    if let Some(recipe) = recipes
        .first()
        .filter(|_| PCI_PEERS.into_iter().any(packages::on_path))
    {
        let image = dist.image_with_pci(recipe)?;
        let name = image.file_name().context("the image has no name")?;
        words.extend(["--pci".to_owned(), name.to_string_lossy().into_owned()]);
    }
    words.extend_from_slice(options);
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    let line = format!("OUT={OUT}\nset -- {}\n{SCRIPT}", words.join(" "));
    let lab = TestHost::lab(arch, Profile::Release);
    // Warm-ups, the first configuration's second launch and two states of the cache.
    let launches = (rounds + 2) * 2 * (recipes.len() as u32 + 2);
    let measured = lab.sh_within(&line, LAUNCH_LIMIT * launches)?;
    print!("{}", measured.stdout);
    eprint!("{}", measured.stderr);
    ensure!(
        MEASURED.contains(&measured.status),
        "vmm bench failed in the lab ({})",
        measured.status
    );
    let json = fetch(&lab, "json")?;
    fetch(&lab, "html")?;
    let text = fs::read_to_string(&json).with_context(|| format!("{} cannot be read", json.display()))?;
    let outcome: Value = serde_json::from_str(&text).context("what vmm bench wrote")?;
    for row in rows(&outcome) {
        println!("{row}");
    }
    println!("{}", json.with_extension("html").display());
    Ok(measured.status)
}

/// Brings a file of the report here.
fn fetch(lab: &TestHost, extension: &str) -> Result<PathBuf> {
    let to = kiln_dir().join("bench").join(format!("boot.{extension}"));
    let output = lab.sh(&format!("cat {OUT}.{extension}"))?;
    ensure!(output.status == 0, "there is no report in the lab: {output:?}");
    let directory = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("{} could not be made", directory.display()))?;
    fs::write(&to, output.stdout).with_context(|| format!("{} could not be written", to.display()))?;
    Ok(to)
}

/// A line for each metric that a configuration has in common with the first: the first configuration's time
/// in units of the other's.
fn rows(outcome: &Value) -> Vec<String> {
    let name = |configuration: &Value| {
        let configuration = configuration
            .as_u64()
            .and_then(|configuration| usize::try_from(configuration).ok());
        configuration
            .and_then(|configuration| outcome["lanes"][configuration]["name"].as_str())
            .unwrap_or("?")
            .to_owned()
    };
    let comparisons = outcome["comparisons"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |comparison: &Value| {
        let number = |field: &str| comparison[field].as_f64().filter(|&ratio| ratio > 0.0);
        // The inverse of the interval's lower end is the upper one.
        let (ratio, low, high) = (number("ratio")?, number("high")?, number("low")?);
        Some(format!(
            "{} {:<10} {} is {:.3} ({:.3} to {:.3}) times {}",
            comparison["cache"].as_str()?,
            comparison["metric"].as_str()?,
            name(&comparison["against"]),
            1.0 / ratio,
            1.0 / low,
            1.0 / high,
            name(&comparison["lane"])
        ))
    };
    comparisons.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_printed_as_vmm_over_peer() {
        let outcome = serde_json::json!({
            "lanes": [{ "name": "vmm kvm" }, { "name": "qemu-microvm kvm" }],
            "comparisons": [
                { "cache": "warm", "lane": 1, "against": 0, "metric": "marker", "ratio": 2.0, "low": 1.6, "high": 2.5 },
                { "cache": "warm", "lane": 1, "against": 0, "metric": "exit", "ratio": 0.0, "low": 0.0, "high": 0.0 },
            ],
        });
        assert_eq!(
            rows(&outcome),
            ["warm marker     vmm kvm is 0.500 (0.400 to 0.625) times qemu-microvm kvm"]
        );
        assert!(rows(&Value::Null).is_empty());
    }
}
