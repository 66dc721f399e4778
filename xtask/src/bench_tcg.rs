//! `cargo xtask bench-tcg`: the software processor against QEMU's translator.
//!
//! Both boot the same ELF kernel with the same initramfs, RAM and words on the command line, one processor
//! each, in turns (A B B A). What counts is the time from the start of the process to guest-init's first
//! write to the boot timer: `vmm` logs it, and QEMU, which has nothing at that address, logs an invalid
//! write. Both logs come line by line over a pipe to the same code here. At that line the CPU time of the
//! process is read as well: on a machine that does other things it says more than the clock on the wall.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile, kiln_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpu_time::of_process;
use crate::packages;
use crate::spread::Spread;

/// What `vmm` puts on the command line, less what names an instance or its network.
const WORDS: &str = "quiet panic=-1 console=ttyS0 console=hvc0 kiln.boot_timer=0xc0000000";
/// For both: on a busy machine QEMU's timer is late at times, and the kernel would take it for broken and
/// panic.
const TIMEOUT: &str = "no_timer_check";
/// MiB of RAM, the image's default.
const MEMORY: &str = "256M";

/// Who boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Configuration {
    Soft,
    Tcg,
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Configuration::Soft => "vmm --accel soft",
            Configuration::Tcg => "qemu -accel tcg",
        })
    }
}

/// One boot, to guest-init's first mark.
#[derive(Debug, Clone, Copy)]
struct Boot {
    wall: Duration,
    cpu: Duration,
}

/// Files that both boot.
struct Parts {
    image: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    dir: PathBuf,
    vmm: PathBuf,
}

/// Runs `rounds` times four boots and prints the figures.
pub fn bench(rounds: u32) -> Result<u8> {
    packages::ensure(packages::lab(Arch::X86_64))?;
    let parts = prepare()?;
    let (mut soft, mut tcg) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for configuration in [
            Configuration::Soft,
            Configuration::Tcg,
            Configuration::Tcg,
            Configuration::Soft,
        ] {
            let boot = boot(configuration, &parts)?;
            println!(
                "round {round}  {configuration:<18} {:6.2} s  CPU {:6.2} s",
                boot.wall.as_secs_f64(),
                boot.cpu.as_secs_f64()
            );
            match configuration {
                Configuration::Soft => soft.push(boot),
                Configuration::Tcg => tcg.push(boot),
            }
        }
    }
    report("wall time", &soft, &tcg, |boot| boot.wall);
    report("CPU time", &soft, &tcg, |boot| boot.cpu);
    Ok(0)
}

fn prepare() -> Result<Parts> {
    let dist = Dist::build(Profile::Release)?;
    let image = dist.image("examples/hello.toml")?;
    let dir = kiln_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
    let part = |name: &str| -> Result<PathBuf> {
        let file = dir.join(name);
        let status = Command::new(dist.program("imgtool"))
            .args(["extract", "--part", name, "--output"])
            .arg(&file)
            .arg(&image)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("imgtool could not be started")?;
        if !status.success() {
            bail!(
                "imgtool could not extract the {name} of {} ({status})",
                image.display()
            );
        }
        Ok(file)
    };
    Ok(Parts {
        kernel: part("kernel")?,
        initramfs: part("initramfs")?,
        vmm: dist.program("vmm"),
        image,
        dir,
    })
}

/// Starts a configuration and answers what in its log says that the mark was reached.
fn start(configuration: Configuration, parts: &Parts) -> Result<(Child, &'static str)> {
    let (mut command, mark) = match configuration {
        Configuration::Soft => {
            let mut vmm = Command::new(&parts.vmm);
            vmm.arg("run")
                .arg(&parts.image)
                .args(["--rm", "--accel", "soft", "--memory", MEMORY])
                .args(["--append", TIMEOUT, "--wait-timeout", "600", "--", "true"])
                .env("XDG_STATE_HOME", &parts.dir)
                .env("XDG_DATA_HOME", &parts.dir)
                .env("KILN_LOG", "debug");
            (vmm, "reached kernel_ready")
        }
        Configuration::Tcg => {
            let mut qemu = Command::new("qemu-system-x86_64");
            qemu.args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=single",
                "-cpu",
                "max",
                "-smp",
                "1",
            ])
            .args(["-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "null", "-d", "guest_errors"])
            .arg("-kernel")
            .arg(&parts.kernel)
            .arg("-initrd")
            .arg(&parts.initramfs)
            .args(["-append", WORDS]);
            (qemu, "Invalid write at addr 0xC0000000")
        }
    };
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{configuration} could not be started"))?;
    Ok((child, mark))
}

fn boot(configuration: Configuration, parts: &Parts) -> Result<Boot> {
    let begin = Instant::now();
    let (mut child, mark) = start(configuration, parts)?;
    let mut log = BufReader::new(child.stderr.take().context("there is no log")?);
    let mut said = String::new();
    let reached = loop {
        let mut line = String::new();
        if log.read_line(&mut line)? == 0 {
            break None;
        }
        if line.contains(mark) {
            let wall = begin.elapsed();
            break Some(Boot {
                wall,
                cpu: of_process(child.id())?,
            });
        }
        said += &line;
    };
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    log.read_to_end(&mut Vec::new())?;
    child.wait()?;
    reached.with_context(|| format!("{configuration} ended before guest-init's first mark; it said:\n{said}"))
}

fn report(what: &str, soft: &[Boot], tcg: &[Boot], of: fn(&Boot) -> Duration) {
    let spread = |boots: &[Boot]| Spread::of(boots.iter().map(|boot| of(boot).as_secs_f64()));
    let (soft, tcg) = (spread(soft), spread(tcg));
    println!(
        "{what}: {} {:.2} s at least, {:.2} s median; {} {:.2} s and {:.2} s; ratio {:.2} of the least, {:.2} of the medians",
        Configuration::Soft,
        soft.least,
        soft.median,
        Configuration::Tcg,
        tcg.least,
        tcg.median,
        soft.least / tcg.least,
        soft.median / tcg.median
    );
}
