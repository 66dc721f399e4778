//! The command line.
//!
//! Each command is a file: its arguments, and a `run` that returns the exit status. Errors say what failed, why, and what
//! to try; see [`failure`] for the statuses.

use std::ffi::OsString;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};

use crate::instance::home::Home;
use crate::instance::images::Images;
use crate::instance::store::Store;
use crate::timeline::Timeline;

mod bench;
mod console;
mod cp;
mod create_image;
mod doctor;
mod exec;
mod failure;
mod generate;
mod images;
mod lifecycle;
mod list;
mod output;
mod own;
mod profile;
mod run;
mod signals;
mod ssh;
mod value;
mod wait;

pub use failure::Status;

/// Launch instances of machine images.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(after_help = "`vmm --ami IMAGE` is short for `vmm run -it IMAGE`.\n\n\
    Exit status: that of COMMAND, or 0 when the guest powered off, 121 when its kernel panicked, 122 when its \
    processor crashed, 123 when it was killed, 124 when waiting took too long, 125 when vmm failed, 126 when COMMAND \
    cannot be executed, 127 when it is not found.")]
struct Cli {
    /// Launch this image with a console: the same as `vmm run -it IMAGE`
    #[arg(long, value_name = "IMAGE")]
    ami: Option<String>,

    /// Say more on standard error (-vv: still more); KILN_LOG=FILTER does the same
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Launch instances of an image
    Run(Box<run::Run>),
    /// List instances
    #[command(visible_alias = "ls")]
    Ps(list::Ps),
    /// Show all that is known of instances, as JSON
    Inspect(list::Inspect),
    /// Start stopped instances
    Start(lifecycle::Start),
    /// Ask instances to power off
    Stop(lifecycle::Stop),
    /// Ask instances to restart
    Reboot(lifecycle::Reboot),
    /// Stop instances and remove them with their volumes
    #[command(visible_alias = "rm")]
    Terminate(lifecycle::Terminate),
    /// Show what an instance has printed on its console
    Logs(console::Logs),
    /// Attach to the console of an instance; Ctrl-] leaves
    Console(console::Console),
    /// Run a command in a running instance
    Exec(exec::Exec),
    /// Copy a file or folder to or from a running instance
    Cp(cp::Cp),
    /// Log in to a running instance with OpenSSH
    Ssh(ssh::Ssh),
    /// Show where the published ports of an instance can be reached
    Port(list::Ports),
    /// Boot an image, and show where its kernel spends its instructions
    Profile(Box<profile::Profile>),
    /// Make an image of an instance
    CreateImage(create_image::CreateImage),
    /// List the images in the store
    Images(images::List),
    /// Work on images in the store
    Image(images::One),
    /// Check what this host offers for running instances
    Doctor(doctor::Doctor),
    /// Measure launches: interleaved, with min, median, p99 and paired ratios
    Bench(Box<bench::Bench>),
    /// Print a completion script for a shell
    Completions(generate::Completions),
    /// Write manual pages into a directory
    Man(generate::Man),
    /// Pass standard input and output to a TCP port of an instance (used by `ssh`)
    #[command(hide = true)]
    Tunnel(ssh::Tunnel),
    /// Run an instance whose lock is inherited (used by `run --detach` and `start`)
    #[command(name = crate::instance::detach::COMMAND, hide = true)]
    Own(own::Own),
}

/// What every command gets.
struct Context {
    store: Store,
    timeline: Arc<Timeline>,
}

impl Context {
    fn home(&self) -> &Home {
        self.store.home()
    }

    fn images(&self) -> Images {
        Images::new(self.home())
    }
}

/// Runs the command line of this process and returns its exit status. `timeline` was started first in `main`.
pub fn main(timeline: Timeline) -> u8 {
    let cli = Cli::try_parse_from(spell_out(std::env::args_os().collect()));
    let result = match cli {
        Ok(cli) => {
            start_log(cli.verbose);
            dispatch(cli, Arc::new(timeline))
        }
        Err(error) => return failure::usage(&error).into(),
    };
    match result {
        Ok(status) => status.into(),
        Err(error) => failure::report(&error).into(),
    }
}

fn dispatch(cli: Cli, timeline: Arc<Timeline>) -> anyhow::Result<Status> {
    let context = Context {
        store: Store::new(Home::from_environment()?),
        timeline,
    };
    let Some(command) = cli.command else {
        Cli::command().print_help()?;
        return Ok(Status::VMM_FAILED);
    };
    match command {
        Command::Run(args) => args.run(&context),
        Command::Ps(args) => args.run(&context),
        Command::Inspect(args) => args.run(&context),
        Command::Start(args) => args.run(&context),
        Command::Stop(args) => args.run(&context),
        Command::Reboot(args) => args.run(&context),
        Command::Terminate(args) => args.run(&context),
        Command::Logs(args) => args.run(&context),
        Command::Console(args) => args.run(&context),
        Command::Exec(args) => args.run(&context),
        Command::Cp(args) => args.run(&context),
        Command::Ssh(args) => args.run(&context),
        Command::Tunnel(args) => args.run(&context),
        Command::Port(args) => args.run(&context),
        Command::Profile(args) => args.run(&context),
        Command::CreateImage(args) => args.run(&context),
        Command::Images(args) => args.run(&context),
        Command::Image(args) => args.run(&context),
        Command::Doctor(args) => args.run(&context),
        Command::Bench(args) => args.run(&context),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Man(args) => args.run(Cli::command()),
        Command::Own(args) => args.run(&context),
    }
}

/// Turns `vmm --ami IMAGE …` into `vmm run -it IMAGE …`, so that the short form takes all that the long one does.
fn spell_out(arguments: Vec<OsString>) -> Vec<OsString> {
    let long = ["run", "-it"].map(OsString::from);
    let (skip, image) = match arguments.get(1).and_then(|a| a.to_str()) {
        Some("--ami") => match arguments.get(2) {
            Some(image) => (3, image.clone()),
            None => return arguments,
        },
        Some(first) => match first.strip_prefix("--ami=") {
            Some(image) => (2, image.into()),
            None => return arguments,
        },
        None => return arguments,
    };
    arguments[..1]
        .iter()
        .cloned()
        .chain(long)
        .chain([image])
        .chain(arguments[skip..].iter().cloned())
        .collect()
}

/// Messages of the program itself go to standard error: warnings always, more when asked for.
fn start_log(verbose: u8) {
    let filter = match (verbose, std::env::var("KILN_LOG")) {
        (0, Err(_)) => tracing::Level::WARN,
        (0, Ok(filter)) => filter.parse().unwrap_or(tracing::Level::INFO),
        (1, _) => tracing::Level::INFO,
        (2, _) => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(text: &str) -> String {
        let arguments = text.split(' ').map(OsString::from).collect();
        spell_out(arguments)
            .iter()
            .map(|a| a.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_short_form_is_spelled_out() {
        assert_eq!(spelled("vmm --ami x.ami"), "vmm run -it x.ami");
        assert_eq!(spelled("vmm --ami=x.ami --cpus 2"), "vmm run -it x.ami --cpus 2");
        for unchanged in ["vmm", "vmm --ami", "vmm ps", "vmm run --ami x"] {
            assert_eq!(spelled(unchanged), unchanged);
        }
    }
}
