//! `cargo xtask bench-tcg --work`: what programs of a guest take of the host's processors, with direct execution
//! and without, in turns.
//!
//! A line is a launch. What counts is the CPU time of all of its processes, less that of a launch that does
//! nothing: time on the wall would be that of others as well.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kiln_tests::dist::{Dist, Profile, kiln_dir};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::wait;

use crate::cpu_time::of_children;
use crate::spread::Spread;

/// What is run: its name, how many processors the guest has, and a line for `sh`.
const WORK: &[(&str, u32, &str)] = &[
    ("nothing", 1, "true"),
    ("gcc -O2 of 300 small functions", 1, GCC),
    ("sha256sum of 24 MiB", 1, "head -c 24M /dev/zero | sha256sum"),
    (
        "xz -6 of 2 MB",
        1,
        "head -c 2000000 /usr/bin/python3* | xz -6 | wc -c",
    ),
    (
        "gzip -6 of 4 MB",
        1,
        "head -c 4000000 /usr/bin/python3* | gzip -6 | wc -c",
    ),
    (
        "sort of 60,000 lines, twice",
        1,
        "seq 60000 | sort -R | sort -n | sort -r | tail -n 1",
    ),
    ("Python, floating point", 1, PYTHON),
    ("md5sum of 48 MiB", 1, "head -c 48M /dev/zero | md5sum"),
    ("200 forks and execs", 1, FORKS),
    ("nothing, 4 CPUs", 4, "true"),
    ("200 forks and execs, 4 CPUs", 4, FORKS),
    ("4 times Python, 4 CPUs", 4, PYTHONS),
];
const GCC: &str = "cd /tmp; for n in $(seq 300); do \
                   echo \"int f$n(int a, int b) { int s = b; for (int i = 0; i < a; i++) s += i * $n ^ b; return s; }\"; \
                   done >f.c; gcc -O2 -c f.c && wc -c f.o";
const PYTHON: &str = "python3 -c 'x = 0.0\nfor n in range(1000000): x += n * 0.5 / (n + 1.0)\nprint(x)'";
const PYTHONS: &str = "for n in 1 2 3 4; do python3 -c 'x = 0.0\nfor n in range(1000000): x += n * 0.5 / (n + 1.0)\n\
                       print(x)' & done; wait";
const FORKS: &str = "for n in $(seq 200); do /bin/true; done";

/// Runs all of it `rounds` times each way and prints the figures.
pub fn bench(rounds: u32) -> Result<u8> {
    let dist = Dist::build(Profile::Release)?;
    let image = dist.image_in("tests/work/work.toml", &kiln_dir().join("work"))?;
    // The processes of an instance that ends before them are ours then.
    prctl::set_child_subreaper(true).context("nobody would wait for processes of an instance")?;
    let mut taken: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for (n, (name, cpus, line)) in WORK.iter().enumerate() {
            // A B, B A.
            for direct in [round % 2 == 0, round % 2 != 0] {
                let mut vmm = Command::new(dist.program("vmm"));
                vmm.arg("run").arg(&image).args(["--rm", "--accel", "soft"]);
                vmm.args(["--direct", if direct { "on" } else { "off" }]);
                vmm.args([
                    "--cpus",
                    &cpus.to_string(),
                    "--wait-timeout",
                    "600",
                    "--",
                    "sh",
                    "-c",
                    line,
                ]);
                let time = cpu_time(vmm).with_context(|| (*name).to_owned())?;
                println!("{name}  {}  {:.2} s", word(direct), time.as_secs_f64());
                taken.entry((n, direct)).or_default().push(time.as_secs_f64());
            }
        }
    }
    report(&taken);
    Ok(0)
}

fn word(direct: bool) -> &'static str {
    if direct { "direct" } else { "interpreted" }
}

/// CPU time of a command and of all processes that it leaves.
fn cpu_time(mut command: Command) -> Result<Duration> {
    let before = of_children()?;
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("vmm could not be started")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    loop {
        match wait() {
            Err(Errno::ECHILD) => break,
            Err(error) => return Err(io::Error::from(error).into()),
            Ok(_) => {}
        }
    }
    Ok(of_children()?.saturating_sub(before))
}

fn report(taken: &BTreeMap<(usize, bool), Vec<f64>>) {
    let least =
        |n: usize, direct: bool| Spread::of(taken.get(&(n, direct)).into_iter().flatten().copied()).least;
    println!("| work | interpreted | direct | ratio |\n|---|---|---|---|");
    let mut nothing = [0.0; 2];
    for (n, (name, _, line)) in WORK.iter().enumerate() {
        let found = [least(n, false), least(n, true)];
        if *line == "true" {
            nothing = found;
            println!(
                "| {name} | {:.2} | {:.2} | {:.2} |",
                found[0],
                found[1],
                found[1] / found[0]
            );
            continue;
        }
        let [interpreted, direct] = [found[0] - nothing[0], found[1] - nothing[1]];
        println!(
            "| {name} | {interpreted:.2} | {direct:.2} | {:.2} |",
            direct / interpreted
        );
    }
}
