//! `vmm bench`: that it measures real launches and writes what it says.

use anyhow::{Context, Result, ensure};
use kiln_tests::ground::Ground;
use serde_json::Value;

use crate::Story;

pub const STORIES: &[(&str, Story)] = &[(
    "bench_measures_a_launch_and_concludes_nothing_from_it",
    bench_measures_a_launch_and_concludes_nothing_from_it,
)];

fn bench_measures_a_launch_and_concludes_nothing_from_it(ground: &Ground) -> Result<()> {
    let accelerator = ground.accelerator();
    let output = ground.sh(&format!(
        "vmm bench hello.ami -n 1 --warmups 0 --cache warm --peer none --accel {accelerator} --json $HOME/b.json --html $HOME/b.html"
    ))?;
    ensure!(output.status == 2, "one round concludes nothing: {output:?}");
    ensure!(output.stderr.contains("no conclusion"), "{output:?}");
    ensure!(
        output.stdout.contains(&format!("vmm {accelerator}")),
        "{output:?}"
    );

    let written = ground.sh("cat $HOME/b.json")?;
    let found: Value = serde_json::from_str(&written.stdout).context("the JSON")?;
    ensure!(found["schema"] == 1 && found["kind"] == "kiln-bench", "{found:#}");
    ensure!(found["conclusive"] == false, "{found:#}");
    let samples = found["samples"].as_array().context("samples")?;
    ensure!(samples.len() == 2, "lane A and lane A again: {found:#}");
    for sample in samples {
        let ns = |metric: &str| sample["ns"][metric].as_u64().unwrap_or(0);
        // In this order the guest goes through them; the marker is seen from outside.
        for (earlier, later) in [("T4", "T9"), ("T9", "exit"), ("marker", "exit")] {
            ensure!(
                ns(earlier) > 0 && ns(earlier) < ns(later),
                "{earlier}, {later}: {sample:#}"
            );
        }
    }

    let page = ground
        .sh("cat $HOME/b.html; rm $HOME/b.json $HOME/b.html")?
        .stdout;
    ensure!(
        page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"),
        "{page}"
    );
    ensure!(
        page.contains("Where the time goes") && !page.contains("http"),
        "{page}"
    );
    Ok(())
}
