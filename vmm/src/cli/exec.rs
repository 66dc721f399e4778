//! `exec`: a command in a running guest, with its streams and its exit status.

use std::io::{self, ErrorKind, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use guest_init::proto::{Ended, Exec as Command, Reason, Size, Terminal};
use nix::sys::signal::Signal;

use super::failure::Advice;
use super::stream::Stream;
use super::{Context, Status, signals, terminal, value};
use instance::api;
use instance::guest::agent::{self, Incoming, Sender};
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::Determinism;

/// Run a command in a running instance
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    options: ExecOptions,
    /// How long to wait for an instance that is still booting
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    wait_timeout: Duration,
    /// Id, beginning of an id, or name
    instance: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// How a command is run.
#[derive(Debug, Clone, Default, Args)]
pub struct ExecOptions {
    /// Pass standard input to the command; without this option it is not read, and the command's is empty
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal of its own
    #[arg(short, long)]
    pub tty: bool,
    /// The user to run it as (default: root)
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The directory to run it in (default: the user's home)
    #[arg(short, long, value_name = "DIRECTORY")]
    pub workdir: Option<String>,
    /// An environment variable; may be given many times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = value::variable)]
    pub env: Vec<(String, String)>,
}

impl Exec {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let ready = context
            .service
            .ready_instance(&self.instance, self.wait_timeout)?;
        let signals = CommandSignals::default();
        let by_signal = signals.clone();
        let mut leaving = Leaving::default();
        signals::hold()?.deliver(move |signal| {
            leaving.signal(signal);
            by_signal.signal(signal);
        })?;
        run_in(
            ready.directory(),
            &Determinism::default(),
            &self.command,
            &self.options,
            &signals,
        )
        .with_context(|| format!("cannot run {} in {}", self.command[0], self.instance))
    }
}

/// Termination signals of this process are passed to the command, too. A guest that hangs or is paused passes
/// nothing on, so the process ends on a second such signal, or some time after the first. Ctrl-C goes to the
/// command only.
#[derive(Default)]
struct Leaving {
    asked: bool,
}

impl Leaving {
    fn signal(&mut self, signal: Signal) {
        if !matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
            return;
        }
        let end = move || {
            terminal::restore();
            std::process::exit(128 + signal as i32);
        };
        if std::mem::replace(&mut self.asked, true) {
            end();
        }
        let wait = move || {
            std::thread::sleep(api::STOP_TIMEOUT);
            end();
        };
        // Without a thread the second signal is left.
        let _ = sandbox::spawn("leaving", Kind::Control, wait);
    }
}

/// Where signals go while a command runs: the terminal's size and Ctrl-C are the command's business.
#[derive(Clone, Default)]
pub struct CommandSignals(std::sync::Arc<std::sync::Mutex<Option<Sender>>>);

impl CommandSignals {
    fn connect(&self, sender: Option<Sender>) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = sender;
    }

    /// Whether a command runs.
    pub fn is_connected(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .is_some()
    }

    /// Passes a signal on. A second Ctrl-C has the same effect as the first: the command decides.
    pub fn signal(&self, signal: Signal) {
        let sender = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let Some(sender) = sender else {
            if signal != Signal::SIGWINCH {
                std::process::exit(128 + signal as i32);
            }
            return;
        };
        let _ = match (signal, terminal::size()) {
            (Signal::SIGWINCH, Some((rows, columns))) => sender.resize(rows, columns),
            (Signal::SIGWINCH, None) => Ok(()),
            (signal, _) => sender.signal(signal as u8),
        };
    }
}

/// Runs `command` through the agent of the instance kept in `directory`, on this process's standard streams.
pub fn run_in(
    directory: &Path,
    determinism: &Determinism,
    command: &[String],
    options: &ExecOptions,
    signals: &CommandSignals,
) -> anyhow::Result<Status> {
    let tty = options.tty && io::stdin().is_terminal();
    let exec = Command {
        argv: command.to_vec(),
        environment: options.env.clone(),
        directory: options.workdir.clone(),
        user: options.user.clone(),
        terminal: tty.then(own_terminal),
    };
    let mut session = agent::exec(directory, determinism, exec)?;
    let raw = if tty { terminal::Raw::enter_stdin()? } else { None };
    signals.connect(Some(session.sender()));
    // What was not asked for is not read: it may be the rest of a script, or the list that a loop goes
    // through.
    if options.interactive {
        let (sender, determinism) = (session.sender(), determinism.clone());
        determinism.take();
        // Ends with the process: a thread that waits for input cannot be woken.
        sandbox::spawn("input", Kind::Control, move || {
            pass_input(&sender, &determinism);
            determinism.give();
        })?;
    } else {
        session.without_input();
    }
    let end = copy_streams(&mut session);
    signals.connect(None);
    drop(raw);
    end
}

fn own_terminal() -> Terminal {
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    let kind = std::env::var("TERM").unwrap_or_else(|_| "vt100".into());
    Terminal {
        kind,
        size: Size { rows, columns },
    }
}

/// Standard input to the command, to its end.
fn pass_input(sender: &Sender, determinism: &Determinism) {
    let mut stdin = io::stdin().lock();
    let mut chunk = vec![0; 32 << 10];
    loop {
        determinism.readable(&io::stdin());
        match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) if sender.input(&chunk[..n]).is_ok() => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The command takes no more, or there is no more input.
            Ok(_) | Err(_) => break,
        }
    }
    let _ = sender.end_input();
}

/// The command's streams to ours, until it ends.
fn copy_streams(session: &mut agent::Session) -> anyhow::Result<Status> {
    let mut outputs = Outputs::default();
    loop {
        match session.receive()? {
            Some(Incoming::Started) => {}
            Some(Incoming::Output(bytes)) => outputs.put(Stream::Output, &bytes, session),
            Some(Incoming::ErrorOutput(bytes)) => outputs.put(Stream::Error, &bytes, session),
            Some(Incoming::Ended(ended)) => return Ok(outputs.status(ended)),
            Some(Incoming::Failed(failure)) => return failed(failure.reason, failure.message),
            Some(Incoming::Done(_)) => return Ok(Status::OK),
            None => {
                let advice = "`vmm ps -a` shows how the instance ended";
                return Err(Advice::new("the guest went away while the command ran", advice).into());
            }
        }
    }
}

/// The state of the streams that the command's output goes to.
#[derive(Default)]
struct Outputs {
    /// Streams that take nothing any more.
    closed: Vec<Stream>,
    /// What was lost, as a status.
    lost: Option<Status>,
}

impl Outputs {
    /// Writes to a stream of ours. When it takes no more, the command gets what it would get from a local
    /// pipe, and what it still prints is dropped: it must not wait for a reader that does not come.
    fn put(&mut self, stream: Stream, bytes: &[u8], session: &agent::Session) {
        if self.closed.contains(&stream) {
            return;
        }
        if let Err(unwritten) = stream.put(bytes) {
            self.closed.push(stream);
            self.lose(&unwritten.into());
            let _ = session.sender().signal(Signal::SIGPIPE as u8);
        }
    }

    /// Reported at once, because the command may go on for long. A full disk counts more than a reader that
    /// has left.
    fn lose(&mut self, error: &anyhow::Error) {
        let lost = super::failure::report(error);
        if self.lost != Some(Status::UNWRITTEN) {
            self.lost = Some(lost);
        }
    }

    /// The status of a command that has ended so.
    fn status(&self, ended: Ended) -> Status {
        let own = Status::of_command(ended.status());
        match self.lost {
            // A command that has noticed has said what it thinks of it.
            Some(Status::NOT_READ) if own != Status::OK => own,
            Some(lost) => lost,
            None => own,
        }
    }
}

/// The command did not start: the statuses are the shell's.
fn failed(reason: Reason, message: String) -> anyhow::Result<Status> {
    let status = match reason {
        Reason::NotFound => Status::NOT_FOUND,
        Reason::Denied => Status::NOT_EXECUTABLE,
        Reason::Other => return Err(anyhow::anyhow!(message)),
    };
    super::failure::complain(&anyhow::anyhow!(message));
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::super::stream::Unwritten;
    use super::*;

    fn status_after(lost: &[ErrorKind], ended: u8) -> Status {
        let mut outputs = Outputs::default();
        for kind in lost {
            outputs.lose(&Unwritten::output((*kind).into()).into());
        }
        outputs.status(Ended::Exited(ended))
    }

    #[test]
    fn lost_output_is_not_a_success() {
        use ErrorKind::{BrokenPipe, StorageFull};
        for (lost, ended, status) in [
            (&[][..], 3, 3),
            (&[StorageFull], 0, 120),
            (&[StorageFull], 3, 120),
            (&[BrokenPipe], 0, 141),
            (&[BrokenPipe], 3, 3),
            (&[StorageFull, BrokenPipe], 0, 120),
            (&[BrokenPipe, StorageFull], 0, 120),
        ] {
            assert_eq!(
                u8::from(status_after(lost, ended)),
                status,
                "{lost:?} and {ended}"
            );
        }
    }
}
