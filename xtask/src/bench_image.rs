//! `cargo xtask bench-image`: imgtool against mmdebstrap and `mke2fs -d`.
//!
//! Both make an ext4 root of the same packages, in turns (A B B A), as root and without network: imgtool from
//! its store by a lock file, mmdebstrap from an archive on disk that has exactly those packages. imgtool
//! begins without any cached root; besides the root it writes kernel, initramfs, bill of materials and
//! digests, all of which counts. Then imgtool alone: the same recipe again, and the recipe with one file
//! changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile, kiln_dir};
use kiln_tests::repository;

use crate::cpu_time::of_children;
use crate::packages;
use crate::spread::Spread;

/// A small server.
pub const PACKAGES: [&str; 4] = ["systemd-sysv", "openssh-server", "sudo", "iproute2"];
/// Wall time of a build without a cached root, as a share of the others'.
const GOAL_COLD: f64 = 0.7;
/// Seconds of a build of which nothing changed.
const GOAL_UNCHANGED: f64 = 1.0;
/// Seconds of a build of which one file changed.
const GOAL_FILES: f64 = 2.0;
/// For mke2fs; a sparse file.
const SIZE: &str = "2G";
const SUITE: &str = "trixie";

/// What a build took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

/// Where everything is.
struct Bench {
    imgtool: PathBuf,
    dir: PathBuf,
    packages: Vec<String>,
    /// What the archive has.
    names: Vec<String>,
}

/// Runs `rounds` times four builds and prints the figures.
pub fn bench(rounds: u32, packages: &[String]) -> Result<u8> {
    packages::ensure(packages::image())?;
    let bench = Bench::prepare(packages)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for imgtool in [true, false, false, true] {
            let cost = if imgtool {
                bench.cold()?
            } else {
                bench.mmdebstrap()?
            };
            let name = if imgtool { "imgtool" } else { "mmdebstrap, mke2fs" };
            println!(
                "round {round}  {name:<18} {:6.2} s  CPU {:6.2} s",
                cost.wall, cost.cpu
            );
            if imgtool { &mut ours } else { &mut theirs }.push(cost);
        }
    }
    let repeat = |build: &dyn Fn(u32) -> Result<Cost>| (0..2 * rounds).map(build).collect::<Result<Vec<_>>>();
    let unchanged = repeat(&|_| bench.build(""))?;
    let files = repeat(&|n| bench.build(&format!("content = \"{n}\"")))?;

    println!("{} packages: {}", bench.names.len(), packages.join(" "));
    let (ours, theirs) = (show("imgtool, cold", &ours), show("mmdebstrap, mke2fs", &theirs));
    judge("imgtool's share of the wall time", ours / theirs, GOAL_COLD);
    judge(
        "seconds when nothing changed",
        show("imgtool, unchanged", &unchanged),
        GOAL_UNCHANGED,
    );
    judge(
        "seconds when a file changed",
        show("imgtool, one file changed", &files),
        GOAL_FILES,
    );
    Ok(0)
}

/// Prints minimum and median; returns the median of the wall times.
fn show(what: &str, costs: &[Cost]) -> f64 {
    let wall = Spread::of(costs.iter().map(|cost| cost.wall));
    let cpu = Spread::of(costs.iter().map(|cost| cost.cpu));
    println!(
        "{what:<26} {:6.2} s at least, {:6.2} s median; CPU {:6.2} s and {:6.2} s",
        wall.least, wall.median, cpu.least, cpu.median
    );
    wall.median
}

fn judge(what: &str, found: f64, goal: f64) {
    let verdict = if found <= goal { "reached" } else { "missed" };
    println!("{what}: {found:.2}, goal {goal:.1}: {verdict}");
}

impl Bench {
    /// Builds once: this downloads what is missing and writes the lock file. The cache stays for the next
    /// time.
    fn prepare(packages: &[String]) -> Result<Self> {
        let arch = Arch::host()?;
        let dist = Dist::build(Profile::Release)?;
        let mut bench = Self {
            imgtool: dist.program("imgtool"),
            dir: kiln_dir().join("bench-image"),
            packages: packages.to_vec(),
            names: Vec::new(),
        };
        fs::create_dir_all(&bench.dir)
            .with_context(|| format!("{} could not be made", bench.dir.display()))?;
        remove(&bench.lock())?;
        bench.write_recipe("")?;
        run(bench.imgtool(&[]))?;
        remove(&bench.archive())?;
        bench.names = repository::of_lock(&bench.lock(), arch, &bench.cache(), &bench.archive())?;
        bench.write_release()?;
        Ok(bench)
    }

    /// mmdebstrap asks apt for what is required in the suite, so the archive has to say which suite it is.
    fn write_release(&self) -> Result<()> {
        let script = format!(
            "printf 'Suite: {SUITE}\\nCodename: {SUITE}\\nDate: %s\\nSHA256:\\n %s %s Packages\\n' \"$(date -uR)\" \
             $(sha256sum <Packages | cut -d' ' -f1) $(stat -c%s Packages) >Release"
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(self.archive());
        run(shell)
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("bench.lock")
    }

    /// The recipe, with a file if `content` says what is in it.
    fn write_recipe(&self, content: &str) -> Result<()> {
        let packages: Vec<String> = self.packages.iter().map(|p| format!("{p:?}")).collect();
        let mut text = format!(
            "name = \"bench\"\npackages = [{}]\n[distribution]\nsuite = \"{SUITE}\"\n",
            packages.join(", ")
        );
        if !content.is_empty() {
            text += &format!("[[files]]\npath = \"/etc/bench\"\n{content}\n");
        }
        fs::write(self.dir.join("bench.toml"), text).context("the recipe could not be written")
    }

    fn imgtool(&self, options: &[&str]) -> Command {
        let mut command = Command::new(&self.imgtool);
        command
            .current_dir(&self.dir)
            .env("XDG_CACHE_HOME", self.cache())
            .args(["build", "bench.toml", "--quiet", "--output", "ours.ami"])
            .args(options)
            .stdout(Stdio::null());
        command
    }

    /// imgtool with whatever is cached.
    fn build(&self, content: &str) -> Result<Cost> {
        self.write_recipe(content)?;
        remove(&self.dir.join("ours.ami"))?;
        measure(|| run(self.imgtool(&["--locked", "--offline"])))
    }

    fn cold(&self) -> Result<Cost> {
        remove(&self.cache().join("kiln/roots"))?;
        self.build("")
    }

    fn mmdebstrap(&self) -> Result<Cost> {
        let (root, image) = (self.dir.join("theirs"), self.dir.join("theirs.ext4"));
        remove(&root)?;
        remove(&image)?;
        let cost = measure(|| {
            let mut debstrap = Command::new("mmdebstrap");
            debstrap
                .args([
                    "--quiet",
                    "--mode=root",
                    "--variant=minbase",
                    "--format=directory",
                ])
                .arg(format!("--include={}", self.names.join(",")))
                .arg(SUITE)
                .arg(&root)
                .arg(format!(
                    "deb [trusted=yes] copy://{} ./",
                    self.archive().display()
                ))
                .stderr(Stdio::null());
            run(debstrap)?;
            let mut mke2fs = Command::new("mke2fs");
            mke2fs
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(&root)
                .arg(&image)
                .arg(SIZE);
            run(mke2fs)
        })?;
        self.compare(&root)?;
        remove(&root)?;
        Ok(cost)
    }

    /// Both must have installed the same.
    fn compare(&self, root: &Path) -> Result<()> {
        let status = fs::read_to_string(root.join("var/lib/dpkg/status")).context("mmdebstrap's root")?;
        let theirs: BTreeSet<&str> = status
            .lines()
            .filter_map(|line| line.strip_prefix("Package: "))
            .collect();
        let ours: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        ensure!(
            ours == theirs,
            "different packages: {:?}",
            ours.symmetric_difference(&theirs)
        );
        Ok(())
    }
}

fn measure(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (start, before) = (Instant::now(), of_children()?);
    work()?;
    let seconds = |time: Duration| time.as_secs_f64();
    Ok(Cost {
        wall: seconds(start.elapsed()),
        cpu: seconds(of_children()?) - seconds(before),
    })
}

fn run(mut command: Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{} could not be started", command.get_program().display()))?;
    if !status.success() {
        bail!("{status}: {command:?}");
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} could not be removed", path.display()))
        }
        _ => Ok(()),
    }
}
