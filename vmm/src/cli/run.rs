//! `run`: launch instances, in the foreground or detached.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use guest_init::proto::READY_PORT;
use nix::sys::signal::Signal;

use super::exec::{CommandSignals, ExecOptions, run_in};
use super::failure::{self, Advice};
use super::options::PerRunOptions;
use super::request::{Hardware, NetworkArgs, Storage};
use super::snapshot::{BeginOptions, note_boot};
use super::stream::{Stream, Unwritten, line, note};
use super::wait::Waiting;
use super::{Context, Status, console, output, signals, terminal, value};
use instance::api;
use instance::process::instance_process::InstanceProcess;
use instance::process::launch::Fresh;
use instance::process::per_run::{Devices, PerRun};
use instance::service::hosting::{Host, Hosted};
use instance::service::{RunInstances, WaitFor};
use instance::store::LockedInstance;
use instance::store::record::Ending;
use instance::{Error, Record, State};
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::{Determinism, Times};

/// Launch instances of an image
#[derive(Debug, Args)]
pub struct Run {
    /// An AMI file, or the id or name of an image in the store
    image: String,

    /// Run in the background and print the instance's id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty", "command"])]
    detach: bool,
    /// Pass standard input to the console or to COMMAND; without this option it is not read
    #[arg(short, long)]
    interactive: bool,
    /// Use the terminal: raw for the console, as a pseudo-terminal for COMMAND
    #[arg(short, long)]
    tty: bool,
    /// Remove the instance and its volumes when it stops
    #[arg(long)]
    rm: bool,
    /// A name for the instance
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A tag; may be given many times
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::tag)]
    tag: Vec<(String, String)>,
    /// How many instances to launch
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,

    #[command(flatten)]
    hardware: Hardware,
    #[command(flatten)]
    storage: Storage,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    begin: BeginOptions,
    #[command(flatten)]
    per_run: PerRunOptions,

    #[command(flatten)]
    waiting: Waiting,
    /// Check the launch and print the record that it would create, as JSON, without launching
    #[arg(long)]
    dry_run: bool,

    /// Run this in the guest instead of showing the console, and exit with its status
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Run {
    /// A run of `command` in an instance that boots and is removed afterwards.
    pub fn once(
        image: String,
        hardware: Hardware,
        storage: Storage,
        network: NetworkArgs,
        per_run: PerRun,
        command: Vec<String>,
    ) -> Run {
        Run {
            image,
            detach: false,
            interactive: false,
            tty: false,
            rm: true,
            name: None,
            tag: Vec::new(),
            count: 1,
            hardware,
            storage,
            network,
            begin: BeginOptions {
                cold: true,
                warm_only: false,
            },
            per_run: PerRunOptions(per_run),
            waiting: Waiting {
                wait: None,
                wait_timeout: Duration::from_secs(120),
            },
            dry_run: false,
            command,
        }
    }

    /// The same, waiting this long for the agent.
    pub fn timeout(self, wait_timeout: Duration) -> Run {
        let waiting = Waiting {
            wait_timeout,
            ..self.waiting
        };
        Run { waiting, ..self }
    }

    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        if self.count > 1 && !self.detach {
            return Err(Advice::new(
                "only one instance can have the terminal",
                "launch several with --detach",
            )
            .into());
        }
        if self.waiting.wait.is_some() && !self.detach {
            return Err(Advice::new(
                "an instance in the foreground is not waited for",
                "give --detach with --wait",
            )
            .into());
        }
        let needs_agent = !self.command.is_empty() || self.waiting.wait == Some(WaitFor::Agent);
        if self.per_run.0.devices == Devices::Basic && needs_agent {
            return Err(Advice::new(
                "without vsock the guest's agent is out of reach",
                "leave --devices basic out, or COMMAND and --wait agent",
            )
            .into());
        }
        let request = self.request()?;
        if self.dry_run {
            output::json(&context.service.check_launch(&request)?)?;
            return Ok(Status::OK);
        }
        if self.detach {
            self.detached(context, &request)
        } else {
            self.foreground(context, context.service.prepare_instance(&request)?)
        }
    }

    fn request(&self) -> anyhow::Result<RunInstances> {
        Ok(RunInstances {
            image: self.image.clone(),
            count: self.count,
            name: self.name.clone(),
            tags: self.tag.iter().cloned().collect(),
            config: self.network.config(self.hardware.config()?)?,
            root_size: self.storage.root_size,
            root_copy: self.storage.root_copy,
            volumes: self.storage.volume.clone(),
            auto_remove: self.rm,
            user_data: self.network.user_data()?,
            per_run: self.per_run(),
            reservation: None,
            first_index: 0,
        })
    }

    fn per_run(&self) -> PerRun {
        PerRun {
            begin: self.begin.into(),
            ..self.per_run.0.clone()
        }
    }

    fn detached(&self, context: &Context, request: &RunInstances) -> anyhow::Result<Status> {
        let mut ids = Vec::new();
        for launched in context.service.launch_instances(request)? {
            let launched = launched?;
            note_boot(&launched);
            let id = launched.id;
            line(&id).with_context(|| format!("{id} was launched"))?;
            ids.push(id);
        }
        self.waiting.run(context, &ids)?;
        Ok(Status::OK)
    }

    /// Runs the instance in this process.
    fn foreground(self, context: &Context, (held, fresh): (LockedInstance, Fresh)) -> anyhow::Result<Status> {
        let signals = signals::hold()?;
        let with_console = self.command.is_empty();
        let per_run = self.per_run();
        let host = Host::new(held, context.home(), per_run, Arc::clone(&context.timeline))
            .launched_here(fresh)
            .without_main(!with_console)
            .on_terminal(terminal::size);
        let process = Arc::clone(host.process());
        process.explain_failures(failure::line);
        let determinism = host.determinism().clone();
        if with_console {
            process.console().show_on(Box::new(Stream::Output));
        }
        let mut session = ConsoleSession::default();
        let hosted = host.run(None, || {
            session = self
                .connect_session(&process, &determinism, signals)
                .map_err(Error::os("connecting the terminal"))?;
            Ok(())
        });
        let ConsoleSession {
            raw,
            command,
            ended_by,
        } = session;
        drop(raw);
        let Hosted {
            ending,
            record,
            last_lines,
            tables,
            counted,
        } = hosted?;
        Stream::Error.put(tables.as_bytes())?;
        if let Some(counted) = counted {
            note(format_args!("{}: {counted}", record.id));
        }
        let done = match command.map(|command| command.join()) {
            Some(Ok(Some(done))) => done,
            None if with_console => return conclude(&record, &ending, process.console().take_unshown()),
            None | Some(Ok(None) | Err(_)) => Err(no_command(&ending, &last_lines)),
        };
        // A command that was cut off by a signal to this process has not failed.
        match ended_by.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(signal) if done.is_err() => Ok(Status::of_signal(signal)),
            _ => done,
        }
    }

    /// Connects the person or the command to the guest, which runs.
    fn connect_session(
        &self,
        process: &Arc<InstanceProcess>,
        determinism: &Determinism,
        signals: signals::Held,
    ) -> io::Result<ConsoleSession> {
        let asked_before = Arc::new(AtomicBool::new(false));
        let leave = {
            let (process, auto_remove) = (Arc::clone(process), self.rm);
            move |reason: &str| leave(&process, &asked_before, auto_remove, reason)
        };
        let by_signal = leave.clone();
        let to_command = CommandSignals::default();
        let command_signals = to_command.clone();
        let console = process.console().clone();
        let ended_by = Arc::new(Mutex::new(None));
        let reason = Arc::clone(&ended_by);
        let mut passed_on = false;
        signals.deliver(move |signal| match signal {
            Signal::SIGWINCH => {
                command_signals.signal(signal);
                if let Some((rows, columns)) = terminal::size() {
                    console.resize(columns, rows);
                }
            }
            // As `exec` does; one that takes no notice is ended by the next.
            Signal::SIGINT if command_signals.is_connected() && !std::mem::replace(&mut passed_on, true) => {
                command_signals.signal(signal);
            }
            _ => {
                *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
                by_signal(&format!("its process received {signal}"));
            }
        })?;
        Ok(if self.command.is_empty() {
            ConsoleSession {
                raw: self.connect_keys(process, leave)?,
                command: None,
                ended_by,
            }
        } else {
            ConsoleSession {
                raw: None,
                command: Some(self.start_command(process, determinism, to_command)?),
                ended_by,
            }
        })
    }

    /// Keys go to the console, in raw mode with `-t`.
    fn connect_keys(
        &self,
        process: &Arc<InstanceProcess>,
        leave: impl Fn(&str) + Send + 'static,
    ) -> io::Result<Option<terminal::Raw>> {
        if !self.interactive {
            return Ok(None);
        }
        let raw = if self.tty {
            terminal::Raw::enter_stdin()?
        } else {
            None
        };
        let console = process.console().clone();
        let take = move |keys: &[u8]| {
            console.input(keys);
            true
        };
        // Ends with the process: a thread that waits for a key cannot be woken.
        sandbox::spawn("keys", Kind::Control, move || {
            while console::forward_keys(&take) {
                leave("left by its user");
            }
        })?;
        Ok(raw)
    }

    /// Runs COMMAND when the agent is there, then ends the guest.
    fn start_command(
        &self,
        process: &Arc<InstanceProcess>,
        determinism: &Determinism,
        signals: CommandSignals,
    ) -> io::Result<JoinHandle<CommandEnd>> {
        // Waiting for the agent is no work; the agent's call is.
        determinism.expect(READY_PORT, Times::Once);
        let determinism = determinism.clone();
        let (process, command) = (Arc::clone(process), self.command.clone());
        let options = ExecOptions {
            interactive: self.interactive,
            tty: self.tty,
            ..ExecOptions::default()
        };
        let (timeout, auto_remove) = (self.waiting.wait_timeout, self.rm);
        let run = move || {
            let done = if process.wait_ready(timeout) {
                Some(run_in(
                    process.directory(),
                    &determinism,
                    &command,
                    &options,
                    &signals,
                ))
            } else if process.record().state.has_process() {
                let message = format!(
                    "the guest's agent has not answered within {} s",
                    timeout.as_secs()
                );
                let log = process.console().last_lines(12);
                Some(Err(Advice::new(
                    format!("{message}; its console says:\n{log}"),
                    "--wait-timeout SECONDS",
                )
                .into()))
            } else {
                None
            };
            // Nothing that is removed anyway needs a clean shutdown, but a count of instructions needs an
            // end.
            let timeout = if auto_remove && !determinism.is_enabled() {
                Duration::ZERO
            } else {
                api::STOP_TIMEOUT
            };
            let _ = process.stop(timeout, "its command has ended");
            determinism.give();
            done
        };
        sandbox::spawn("command", Kind::Control, run)
    }
}

/// How COMMAND ended; `None` when the guest ended before the command could run.
type CommandEnd = Option<anyhow::Result<Status>>;

/// What connects a person to the guest.
#[derive(Default)]
struct ConsoleSession {
    /// The terminal, in raw mode until this is dropped.
    raw: Option<terminal::Raw>,
    command: Option<JoinHandle<CommandEnd>>,
    /// The signal by which this process was asked to end the instance.
    ended_by: Arc<Mutex<Option<Signal>>>,
}

/// Asks the guest to shut down the first time, and ends it the second time.
fn leave(process: &Arc<InstanceProcess>, asked_before: &AtomicBool, auto_remove: bool, reason: &str) {
    if auto_remove || asked_before.swap(true, Ordering::Relaxed) {
        process.kill();
    } else if process.stop(api::STOP_TIMEOUT, reason).is_ok() && io::stderr().is_terminal() {
        let text = format!("\r\nstopping {}; once more ends it at once\r\n", process.id());
        let _ = Stream::Error.put(text.as_bytes());
    }
}

fn no_command(ending: &Ending, log: &str) -> anyhow::Error {
    // A machine that could not be built has printed nothing.
    if let Ending::Failed(reason) = ending
        && log.is_empty()
    {
        return Advice::new(
            format!("the command could not be run: {reason}"),
            "`vmm doctor` checks this host",
        )
        .into();
    }
    let message = format!("the command could not be run: {ending}; the console's last lines:\n{log}");
    Advice::new(message, "`vmm --ami IMAGE` shows the whole boot").into()
}

/// Says how an instance without a command ended. `unshown` is why its console could not be shown to the end.
fn conclude(record: &Record, ending: &Ending, unshown: Option<io::Error>) -> anyhow::Result<Status> {
    match ending {
        Ending::Failed(reason) => {
            return Err(Advice::new(
                format!("{}: {reason}", record.id),
                "`vmm doctor` checks this host",
            )
            .into());
        }
        Ending::PoweredOff | Ending::Exited(_) | Ending::Hibernated => {}
        other => note(format_args!("{}: {other}", record.id)),
    }
    if !record.auto_remove && io::stderr().is_terminal() {
        let label = record.label();
        debug_assert!(record.state == State::Stopped);
        note(format_args!(
            "{label} is stopped: `vmm start {label}` runs it again, `vmm terminate {label}` removes it"
        ));
    }
    match unshown {
        Some(error) => Err(Unwritten::output(error).into()),
        None => Ok(Status::from(ending)),
    }
}
