//! The `ec2` command.
//!
//! The C library calls `main` here itself, since instances are run by this program, too;
//! [`instance::process::startup`] says why.
#![no_main]
#![allow(unsafe_code)]

use std::env;
use std::ffi::{c_char, c_int};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use ec2::api::Api;
use ec2::credentials::Credentials;
use instance::InstanceId;
use instance::service::{Service, metadata};
use instance::store::home::Home;
use machine::timeline::Timeline;

mod own;

/// EC2's API over the instances and images that `vmm` has.
#[derive(Debug, Parser)]
#[command(
    name = "ec2",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    /// Say more on standard error (-vv: still more)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API until it is ended; instances run on
    Serve(Endpoint),
    /// Print what makes `aws` and the SDKs use it, for `eval "$(ec2 env)"`
    Env(Endpoint),
    /// Run an instance whose lock is inherited
    #[command(name = instance::process::detach::COMMAND, hide = true)]
    Own { id: InstanceId, per_run: String },
}

#[derive(Debug, Args)]
struct Endpoint {
    /// Where it is served; another address than loopback is open to whoever reaches it and has the keys
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// The key pair that requests are signed with, as in AWS's credentials file; made if it does not exist
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

/// The exit status of whatever failed here, as that of `vmm`.
const FAILED: c_int = 125;

// SAFETY: no other symbol of this program bears the name, and the C library calls it once with these
// arguments.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    let timeline = Timeline::start();
    if !instance::process::startup::prepare() {
        return FAILED;
    }
    let status = match run(timeline) {
        Ok(()) => 0,
        Err(error) => {
            note(format_args!("{error:#}"));
            FAILED
        }
    };
    // Writes out what standard output holds back, as returning would not.
    std::process::exit(status)
}

fn run(timeline: Timeline) -> anyhow::Result<()> {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let service = Service::new(home()?);
    match cli.command {
        Command::Serve(endpoint) => endpoint.serve(service),
        Command::Env(endpoint) => endpoint.print(&service),
        Command::Own { id, per_run } => own::run(&service, &id, &per_run, timeline),
    }
}

impl Endpoint {
    fn serve(self, service: Service) -> anyhow::Result<()> {
        let path = self.credentials_file(&service);
        let (credentials, is_new) = keys(&path)?;
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("cannot serve on {}; try another --listen", self.listen))?;
        let address = listener.local_addr().context("the address that is served")?;
        leave_no_zombies()?;
        let api = Api::new(service, credentials, address.to_string());
        api.resume()
            .map_err(|error| anyhow!("going on where it was ended: {error}"))?;
        if is_new {
            note(format_args!("a new key pair is in {}", path.display()));
        }
        note(format_args!(
            "serving on http://{address}; in a shell that is to use it:"
        ));
        print(&lines(address, &path))?;
        let never = ec2::http::serve(listener, api).context("serving")?;
        match never {}
    }

    fn print(&self, service: &Service) -> anyhow::Result<()> {
        let path = self.credentials_file(service);
        keys(&path)?;
        print(&lines(self.listen, &path))
    }

    fn credentials_file(&self, service: &Service) -> PathBuf {
        let ours = || service.home().state().join("ec2/credentials");
        let path = self.credentials.clone().unwrap_or_else(ours);
        std::path::absolute(&path).unwrap_or(path)
    }
}

fn keys(path: &Path) -> anyhow::Result<(Credentials, bool)> {
    Credentials::read_or_make(path).with_context(|| format!("cannot use the key pair in {}", path.display()))
}

/// A line for a person. Nobody may be reading it.
fn note(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "ec2: {text}");
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.context("what was to be printed could not be written")
}

/// What makes a shell's `aws` and programs with an SDK use the endpoint. Versions of `aws` before 2.13 do not
/// read its address from the environment.
fn lines(address: SocketAddr, credentials: &Path) -> String {
    let file = credentials.display().to_string().replace('\'', r"'\''");
    format!(
        "unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; export AWS_SHARED_CREDENTIALS_FILE='{file}'\n\
         export AWS_ENDPOINT_URL=http://{address} AWS_DEFAULT_REGION={region} AWS_REGION={region}\n\
         aws() {{ command aws --endpoint-url http://{address} \"$@\"; }}\n",
        region = metadata::REGION,
    )
}

/// The processes of instances are this one's children and may outlive it: nobody waits for them, and the
/// kernel is to keep nothing of one that has ended. It resets this in a child that executes a program.
fn leave_no_zombies() -> anyhow::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &action) }.context("ignoring the end of children")?;
    Ok(())
}

/// The directories that `vmm` uses: the XDG base directory specification, version 0.8.
fn home() -> anyhow::Result<Home> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let directory = |variable: &str, default: &str| {
        let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(default)));
        base.map(|base| base.join("kiln"))
    };
    let needed = |variable: &str, default: &str| {
        directory(variable, default).with_context(|| {
            format!("neither {variable} nor HOME is set; set {variable} to a directory that you can write to")
        })
    };
    Ok(Home::new(
        needed("XDG_STATE_HOME", ".local/state")?,
        needed("XDG_DATA_HOME", ".local/share")?,
        directory("XDG_CACHE_HOME", ".cache"),
    ))
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(false)
        .init();
}
