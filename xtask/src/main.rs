//! The commands of this repository: `cargo demo`, and `cargo xtask
//! test|lab|dist|deb|picture|book|cross|fuzz|bench-boot|bench-block|bench-net|bench-tcg|bench-image`.

mod bench_block;
mod bench_boot;
mod bench_image;
mod bench_net;
mod bench_tcg;
mod bench_work;
mod book;
mod cpu_time;
mod cross;
mod deb;
mod demo;
mod figures;
mod fuzz;
mod packages;
mod picture;
mod spread;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile};
use kiln_tests::lab::Lab;

/// Builds, tests and shows Kiln.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, bake the hello image and open its console.
    Demo {
        /// Passed on to `vmm --ami`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Formatting, clippy, unit tests, then the end-to-end tests here and in the lab.
    Test {
        /// Only end-to-end tests whose name contains this.
        filter: Option<String>,
        /// Also what CI adds: KVM on arm64, and counters of the programs that ship.
        #[arg(long)]
        all: bool,
    },
    /// Build the static programs as they ship, small and fast, into target/dist/ARCH.
    Dist,
    /// Build a Debian package of the programs as they ship: target/dist/kiln_VERSION_ARCH.deb.
    Deb,
    /// Boot the hello image and draw the steps of its boot: docs/boot.svg.
    Picture,
    /// Check the links and names in the documentation, and write the pages of docs/book: target/book/index.html.
    Book {
        /// Also run what the chapters say to type, and compare what comes; with a part of a name, of those chapters.
        #[arg(long, value_name = "CHAPTER", num_args = 0..=1, default_missing_value = "")]
        run: Option<String>,
    },
    /// Run the fuzz targets with libFuzzer, one after the other.
    Fuzz(fuzz::Options),
    /// Boot the hello image on the software processor and under QEMU's translator, in turns, and compare.
    BenchTcg {
        /// How often to boot each twice.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Run programs in a guest instead, with direct execution and without, once a round each.
        #[arg(long)]
        work: bool,
    },
    /// Build a root with imgtool, and with mmdebstrap and mke2fs of the same packages, in turns, and compare.
    BenchImage {
        /// How often to build each twice.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Packages besides those of variant minbase; `apt` alone adds none.
        #[arg(default_values = bench_image::PACKAGES)]
        packages: Vec<String>,
    },
    /// Measure launches in the lab beside QEMU's microvm; the report comes to target/kiln/bench/boot.html.
    BenchBoot {
        /// Launches of each configuration for each state of the page cache.
        #[arg(long, default_value_t = 10)]
        rounds: u32,
        /// A recipe of an image; may be given many times.
        #[arg(long, value_name = "FILE", default_value = "examples/hello.toml")]
        recipe: Vec<String>,
        /// More options of `vmm bench`.
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Measure the block device beside QEMU's in the lab, same guest and disk, in turns.
    BenchBlock {
        /// How often to measure each twice.
        #[arg(long, default_value_t = 1)]
        rounds: u32,
        /// Processors of the guest, queues of the disk and jobs of fio.
        #[arg(long, default_value_t = 1)]
        cpus: u32,
    },
    /// Measure the user-mode network beside QEMU's in the lab, same guest, in turns.
    BenchNet {
        /// How often to measure each twice.
        #[arg(long, default_value_t = 2)]
        rounds: u32,
    },
    /// Build the static programs for another architecture, as they ship, into target/dist/ARCH.
    Cross {
        /// The architecture; i686 is guest-init alone, for images with a 32-bit kernel.
        target: cross::Target,
    },
    /// Run a command on a host with genuine KVM that QEMU emulates; without a command, open a shell there.
    Lab {
        /// The host's architecture.
        arch: Arch,
        /// The command and its arguments; `vmm`, `imgtool` and the AMIs of target/kiln/images are there.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the exit status of whatever was run.
fn run(command: Command) -> Result<u8> {
    match command {
        Command::Demo { args } => demo::demo(&args),
        Command::Test { filter, all } => test::test(filter.as_deref(), all),
        Command::BenchTcg { rounds, work: true } => bench_work::bench(rounds),
        Command::BenchTcg { rounds, work: false } => bench_tcg::bench(rounds),
        Command::BenchImage { rounds, packages } => bench_image::bench(rounds, &packages),
        Command::BenchBoot {
            rounds,
            recipe,
            options,
        } => bench_boot::bench(rounds, &recipe, &options),
        Command::BenchBlock { rounds, cpus } => bench_block::bench(rounds, cpus),
        Command::BenchNet { rounds } => bench_net::bench(rounds),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Picture => picture::picture(),
        Command::Book { run } => book::book(run.as_deref()),
        Command::Dist => Dist::build(Profile::Release).map(|_| 0),
        Command::Deb => deb::deb(),
        Command::Cross { target } => cross::cross_target(target).map(|()| 0),
        Command::Lab { arch, command } => {
            packages::ensure(packages::lab(arch))?;
            cross::cross(arch, Profile::Dev)?;
            let lab = Lab::prepare(arch, Profile::Dev)?;
            if command.is_empty() {
                lab.shell()
            } else {
                lab.run_attached(&command)
            }
        }
    }
}
