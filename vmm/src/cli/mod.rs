//! The command line.
//!
//! Each command is a file: its arguments, and a `run` that returns the exit status. Errors say what failed,
//! why, and what to try; see [`failure`] for the statuses. What is printed goes through [`stream`].
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::sync::Arc;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use instance::service::Service;
use instance::store::home::Home;
use machine::timeline::Timeline;

mod advice;
mod bench;
mod console;
mod cp;
mod create_image;
mod deferred;
mod directories;
mod doctor;
mod exec;
mod failure;
mod generate;
mod hint;
mod images;
mod lifecycle;
mod list;
mod options;
mod output;
mod own;
mod profile;
mod request;
mod run;
mod signals;
mod snapshot;
mod ssh;
mod stream;
mod terminal;
mod value;
mod wait;

use deferred::DeferredArgs;
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
    Exit status: that of COMMAND, or 0 when the guest powered off, 120 when the output could not be written, \
    121 when its kernel panicked, 122 when its processor shut down (triple fault), 123 when it was killed, 124 \
    when a wait timed out, 125 when vmm failed, 126 when COMMAND \
    cannot be executed, 127 when it is not found.")]
struct Cli {
    /// Launch this image with a console: the same as `vmm run -it IMAGE`
    #[arg(long, value_name = "IMAGE")]
    ami: Option<String>,

    #[command(flatten)]
    global: Global,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Log more to standard error (-vv: debug, -vvv: trace); KILN_LOG=LEVEL does the same
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Launch instances of an image
    Run(DeferredArgs<Box<run::Run>>),
    /// List instances
    #[command(visible_alias = "ls")]
    Ps(DeferredArgs<list::Ps>),
    /// Show all that is known of instances, as JSON
    Inspect(DeferredArgs<list::Inspect>),
    /// Start stopped instances
    Start(DeferredArgs<lifecycle::Start>),
    /// Ask instances to power off
    Stop(DeferredArgs<lifecycle::Stop>),
    /// Ask instances to restart
    Reboot(DeferredArgs<lifecycle::Reboot>),
    /// Stop the processors and devices of instances; the guest does not notice
    Pause(DeferredArgs<lifecycle::Pause>),
    /// Resume paused instances
    Resume(DeferredArgs<lifecycle::Resume>),
    /// Stop instances and remove them with their volumes
    #[command(visible_alias = "rm")]
    Terminate(DeferredArgs<lifecycle::Terminate>),
    /// Show the console output of an instance
    Logs(DeferredArgs<console::Logs>),
    /// Attach to the console of an instance; Ctrl-] leaves
    Console(DeferredArgs<console::Console>),
    /// Run a command in a running instance
    Exec(DeferredArgs<exec::Exec>),
    /// Copy a file or folder to or from a running instance
    Cp(DeferredArgs<cp::Cp>),
    /// Log in to a running instance with OpenSSH
    Ssh(DeferredArgs<ssh::Ssh>),
    /// Show where the published ports of an instance can be reached
    Port(DeferredArgs<list::Ports>),
    /// Boot an image, and show where its kernel spends its instructions
    Profile(DeferredArgs<Box<profile::Profile>>),
    /// Make an image of an instance
    CreateImage(DeferredArgs<create_image::CreateImage>),
    /// Make a warm image of a running instance: launches of it go on from where it is
    Snapshot(DeferredArgs<snapshot::Snapshot>),
    /// Launch an image, and make a warm image of what runs then
    Warm(DeferredArgs<Box<snapshot::Warm>>),
    /// Launch instances that go on from where an instance is
    Clone(DeferredArgs<snapshot::Clone>),
    /// List the images in the store
    Images(DeferredArgs<images::List>),
    /// Work on images in the store
    Image(DeferredArgs<images::One>),
    /// Check what this host offers for running instances
    Doctor(DeferredArgs<doctor::Doctor>),
    /// Measure launches: interleaved, with minimum, median, p99 and paired ratios
    Bench(DeferredArgs<Box<bench::Bench>>),
    /// Print a completion script for a shell
    Completions(DeferredArgs<generate::Completions>),
    /// Write manual pages into a directory
    Man(DeferredArgs<generate::Man>),
    /// Pass standard input and output to a TCP port of an instance (used by `ssh`)
    #[command(hide = true)]
    Tunnel(DeferredArgs<ssh::Tunnel>),
    /// Run an instance whose lock is inherited (used by `run --detach` and `start`)
    #[command(name = instance::process::detach::COMMAND, hide = true)]
    Own(DeferredArgs<own::Own>),
}

/// What every command gets.
struct Context {
    service: Service,
    timeline: Arc<Timeline>,
}

impl Context {
    fn home(&self) -> &Home {
        self.service.home()
    }
}

/// Runs the command line of this process and returns its exit status. `timeline` was started first in `main`.
pub fn main(timeline: Timeline) -> u8 {
    let result = match parse(&spell_out(std::env::args_os().collect())) {
        Ok(cli) => {
            start_log(cli.global.verbose);
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
        service: Service::new(directories::from_environment()?),
        timeline,
    };
    let Some(command) = cli.command else {
        stream::Stream::Output.put(Cli::command().render_help().to_string().as_bytes())?;
        return Ok(Status::VMM_FAILED);
    };
    match command {
        Command::Run(DeferredArgs(args)) => args.run(&context),
        Command::Ps(DeferredArgs(args)) => args.run(&context),
        Command::Inspect(DeferredArgs(args)) => args.run(&context),
        Command::Start(DeferredArgs(args)) => args.run(&context),
        Command::Stop(DeferredArgs(args)) => args.run(&context),
        Command::Reboot(DeferredArgs(args)) => args.run(&context),
        Command::Pause(DeferredArgs(args)) => args.run(&context),
        Command::Resume(DeferredArgs(args)) => args.run(&context),
        Command::Terminate(DeferredArgs(args)) => args.run(&context),
        Command::Logs(DeferredArgs(args)) => args.run(&context),
        Command::Console(DeferredArgs(args)) => args.run(&context),
        Command::Exec(DeferredArgs(args)) => args.run(&context),
        Command::Cp(DeferredArgs(args)) => args.run(&context),
        Command::Ssh(DeferredArgs(args)) => args.run(&context),
        Command::Tunnel(DeferredArgs(args)) => args.run(&context),
        Command::Port(DeferredArgs(args)) => args.run(&context),
        Command::Profile(DeferredArgs(args)) => args.run(&context),
        Command::CreateImage(DeferredArgs(args)) => args.run(&context),
        Command::Snapshot(DeferredArgs(args)) => args.run(&context),
        Command::Warm(DeferredArgs(args)) => args.run(&context),
        Command::Clone(DeferredArgs(args)) => args.run(&context),
        Command::Images(DeferredArgs(args)) => args.run(&context),
        Command::Image(DeferredArgs(args)) => args.run(&context),
        Command::Doctor(DeferredArgs(args)) => args.run(&context),
        Command::Bench(DeferredArgs(args)) => args.run(&context),
        Command::Completions(DeferredArgs(args)) => args.run(Cli::command()),
        Command::Man(DeferredArgs(args)) => args.run(Cli::command()),
        Command::Own(DeferredArgs(args)) => args.run(&context),
    }
}

/// Parses a command line. Those that launch are parsed without the other commands, which would cost more
/// than all else until the machine is made; what is wrong with one, or help, is said by the whole parser.
fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let launch = match arguments.get(1).and_then(|name| name.to_str()) {
        Some("run") => {
            alone(arguments).map(|(args, global)| (Command::Run(DeferredArgs(Box::new(args))), global))
        }
        Some(instance::process::detach::COMMAND) => {
            alone(arguments).map(|(args, global)| (Command::Own(DeferredArgs(args)), global))
        }
        _ => None,
    };
    match launch {
        Some((command, global)) => Ok(Cli {
            ami: None,
            global,
            command: Some(command),
        }),
        None => Cli::try_parse_from(arguments),
    }
}

/// The arguments of the command that is named first; `None` where they are not a valid call of it.
fn alone<T: Args>(arguments: &[OsString]) -> Option<(T, Global)> {
    let command = clap::Command::new("vmm").disable_help_flag(true);
    let command = Global::augment_args(T::augment_args(command));
    let mut matches = command.try_get_matches_from(&arguments[1..]).ok()?;
    // Not `from_arg_matches`, which copies them.
    let args = T::from_arg_matches_mut(&mut matches).ok()?;
    Some((args, Global::from_arg_matches_mut(&mut matches).ok()?))
}

/// Turns `vmm --ami IMAGE …` into `vmm run -it IMAGE …`, so that the short form takes all that the long one
/// does.
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
        // Colours are for a person: a detached instance's messages go to its log. A log that cannot be
        // written, on a full disk, is no reason to end a guest, as the library's report of it would.
        .log_internal_errors(false)
        .with_ansi(output::Style::of(&std::io::stderr()).is_on())
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

    /// What both parsers make of a launch, or the whole parser's error.
    fn parsed(arguments: &[&str]) -> (String, String) {
        let arguments: Vec<_> = ["vmm"].iter().chain(arguments).map(OsString::from).collect();
        let text = |parsed: Result<Cli, clap::Error>| match parsed {
            Ok(cli) => format!("{cli:?}"),
            Err(error) => error.to_string(),
        };
        (text(parse(&arguments)), text(Cli::try_parse_from(&arguments)))
    }

    #[test]
    fn a_launch_is_parsed_alone_as_it_is_with_all_commands() {
        for words in [
            &["run", "x.ami"][..],
            &[
                "run", "x.ami", "--rm", "-vv", "--cpus", "2", "-p", "80:80", "--", "echo", "-v",
            ],
            &[
                "run",
                "-it",
                "x.ami",
                "--memory=1G",
                "--net",
                "none",
                "--tag",
                "a=b",
                "--limit",
                "net=1M",
            ],
            &[
                "run", "-d", "--wait", "agent", "--exits", "x.ami", "--append", "-v",
            ],
            &["-v", "run", "x.ami"],
            &["own", "i-0123456789abcdef0", "{}"],
            // What is wrong, or help.
            &["run"],
            &["run", "x.ami", "--help"],
            &["run", "-h"],
            &["run", "--version"],
            &["run", "x.ami", "--cpus", "0"],
            &["run", "x.ami", "-d", "-it"],
            &["run", "x.ami", "--no-such-option"],
            &["run", "x.ami", "y.ami"],
            &["own", "nothing"],
        ] {
            let (parsed, whole) = parsed(words);
            assert_eq!(parsed, whole, "{words:?}");
        }
        let alone: Option<(run::Run, Global)> = alone(&["vmm", "run", "x.ami", "-v"].map(OsString::from));
        assert_eq!(alone.map(|(_, global)| global.verbose), Some(1));
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
