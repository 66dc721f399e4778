//! Debian's stock kernels: each boots to PID 1 and runs a command.

use anyhow::{Result, ensure};
use kiln_tests::dist::workspace;
use kiln_tests::ground::Ground;

use crate::Story;

pub const STORIES: &[(&str, Story)] = &[
    ("linux_6_1_boots", |ground| boots(ground, "6.1")),
    ("linux_6_12_boots", |ground| boots(ground, "6.12")),
    ("linux_7_boots", |ground| boots(ground, "7")),
];

/// Builds `tests/kernels/VERSION.toml`, boots it, and lets it say what it is.
fn boots(ground: &Ground, version: &str) -> Result<()> {
    let recipe = workspace().join(format!("tests/kernels/{version}.toml"));
    let image = format!("linux-{version}.ami");
    let line = format!(
        "imgtool build {} -o {image} && vmm run {image} --rm -- sh -c 'uname -r; head -n 1 /proc/1/status'",
        recipe.display()
    );
    let output = ground.sh(&line)?;
    ensure!(output.status == 0, "{output:?}");
    let mut said = output.stdout.lines().filter(|line| !line.starts_with("ami-"));
    let release = said.next().unwrap_or_default();
    ensure!(release.starts_with(&format!("{version}.")), "{output:?}");
    ensure!(release.contains("cloud"), "{output:?}");
    ensure!(said.next() == Some("Name:\tinit"), "{output:?}");
    Ok(())
}
