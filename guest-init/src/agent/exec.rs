//! Running a command for the host: one poll loop between the connection, the command's streams and its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};

use super::{fail, failed};
use crate::proto::{Ended, Error, Exec, Failure, Frame, Kind, Reason, Size, read_frame, write_frame};
use crate::users::User;

/// Bytes of standard input that wait for the command. While there are this many, no more are taken from the
/// host.
const INPUT_CAP: usize = 64 * 1024;

/// Bytes read from a stream at once.
const CHUNK: usize = 32 * 1024;

/// A command that runs, with our ends of its streams.
struct Running {
    child: Child,
    /// Readable when the command has ended (pidfd_open(2)).
    ended: OwnedFd,
    input: Option<File>,
    output: Option<File>,
    errors: Option<File>,
    /// The terminal, where the command has one.
    terminal: Option<OwnedFd>,
}

/// Runs `exec` and serves its streams until it has ended and all that it printed has been sent.
pub fn run(exec: &Exec, mut connection: File) -> Result<(), Error> {
    let running = match start(exec) {
        Ok(running) => running,
        Err(failure) => return fail(&mut connection, &failure),
    };
    write_frame(&mut connection, Kind::Started, b"")?;
    Pump {
        running,
        connection,
        waiting: VecDeque::new(),
        input_ended: false,
    }
    .run()
}

fn start(exec: &Exec) -> Result<Running, Failure> {
    let name = exec.user.as_deref().unwrap_or("root");
    let Some(user) = User::find("/".as_ref(), name) else {
        return Err(Failure {
            reason: Reason::NotFound,
            message: format!("there is no user {name} in the guest"),
        });
    };
    let Some((program, arguments)) = exec.argv.split_first() else {
        return Err(Failure {
            reason: Reason::Other,
            message: "no command was given".to_owned(),
        });
    };
    let directory = exec
        .directory
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| home(&user));
    // The kernel reports a missing directory as it reports a missing program.
    if !std::path::Path::new(directory).is_dir() {
        return Err(Failure {
            reason: Reason::Other,
            message: format!("there is no directory {directory} in the guest"),
        });
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(user.environment())
        .envs(exec.environment.iter().cloned());
    command.current_dir(directory);
    let terminal = exec.terminal.as_ref().map(|terminal| {
        command.env("TERM", &terminal.kind);
        openpty(Some(&window(terminal.size)), None).map_err(|error| failed("a terminal", error))
    });
    match terminal.transpose()? {
        Some(OpenptyResult { master, slave }) => {
            let copy = || slave.try_clone().map_err(|error| failed("a terminal", error));
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
            user.run(&mut command, true);
            spawn(command, program)
                .and_then(|child| Running::on_terminal(child, master).map_err(|error| failed(program, error)))
        }
        None => {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            user.run(&mut command, false);
            spawn(command, program)
                .and_then(|child| Running::on_pipes(child).map_err(|error| failed(program, error)))
        }
    }
}

fn home(user: &User) -> &str {
    if std::path::Path::new(&user.home).is_dir() {
        &user.home
    } else {
        "/"
    }
}

fn spawn(mut command: Command, program: &str) -> Result<Child, Failure> {
    command.spawn().map_err(|error| failed(program, error))
}

fn window(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Running {
    fn on_pipes(mut child: Child) -> io::Result<Running> {
        let ended = child::pidfd(child.id())?;
        let input = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let output = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let errors = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        for stream in [&input, &output, &errors].into_iter().flatten() {
            nonblocking(stream.as_fd())?;
        }
        Ok(Running {
            child,
            ended,
            input,
            output,
            errors,
            terminal: None,
        })
    }

    fn on_terminal(child: Child, master: OwnedFd) -> io::Result<Running> {
        nonblocking(master.as_fd())?;
        let ended = child::pidfd(child.id())?;
        let (input, output) = (
            Some(File::from(master.try_clone()?)),
            Some(File::from(master.try_clone()?)),
        );
        Ok(Running {
            child,
            ended,
            input,
            output,
            errors: None,
            terminal: Some(master),
        })
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The loop's state.
struct Pump {
    running: Running,
    connection: File,
    waiting: VecDeque<u8>,
    input_ended: bool,
}

/// What poll said of each descriptor, in the order in which they are served.
#[derive(Default)]
struct Readiness {
    ended: bool,
    host: bool,
    input: bool,
    output: bool,
    errors: bool,
}

impl Pump {
    fn run(mut self) -> Result<(), Error> {
        let result = self.serve();
        if result.is_err() {
            // The host is gone or breaks the protocol: the command is not waited for any more.
            child::hang_up(self.running.child.id());
            let _ = self.running.child.wait();
        }
        result
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            let ready = self.wait()?;
            if ready.input {
                self.feed();
            }
            if ready.output {
                drain(&mut self.running.output, Kind::Output, &mut self.connection)?;
            }
            if ready.errors {
                drain(&mut self.running.errors, Kind::ErrorOutput, &mut self.connection)?;
            }
            if ready.host {
                self.take_frame()?;
            }
            if ready.ended {
                return self.finish();
            }
        }
    }

    fn wait(&self) -> Result<Readiness, Error> {
        let Running {
            ended,
            input,
            output,
            errors,
            ..
        } = &self.running;
        let want_input = !self.waiting.is_empty();
        let want_host = self.waiting.len() < INPUT_CAP;
        let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        fds.push(PollFd::new(
            self.connection.as_fd(),
            flags(want_host, PollFlags::POLLIN),
        ));
        let wanted = [
            (input.as_ref().filter(|_| want_input), PollFlags::POLLOUT),
            (output.as_ref(), PollFlags::POLLIN),
            (errors.as_ref(), PollFlags::POLLIN),
        ];
        let index = wanted.map(|(stream, events)| {
            stream.map(|stream| {
                fds.push(PollFd::new(stream.as_fd(), events));
                fds.len() - 1
            })
        });
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let any = |index: usize| fds[index].any().unwrap_or(false);
        let maybe = |index: Option<usize>| index.is_some_and(any);
        Ok(Readiness {
            ended: any(0),
            host: want_host && any(1),
            input: maybe(index[0]),
            output: maybe(index[1]),
            errors: maybe(index[2]),
        })
    }

    /// Gives the command what waits for it.
    fn feed(&mut self) {
        let Some(input) = &mut self.running.input else {
            return;
        };
        let (front, _) = self.waiting.as_slices();
        match input.write(front) {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => {
                // The command does not read any more: what it was to get is dropped, as in a pipe.
                self.waiting.clear();
                self.running.input = None;
            }
        }
        self.close_input_when_done();
    }

    fn close_input_when_done(&mut self) {
        if self.input_ended && self.waiting.is_empty() {
            if self.running.terminal.is_some()
                && let Some(input) = &mut self.running.input
            {
                // A terminal has no end to close: the end-of-file character says it.
                let _ = input.write(&[4]);
            }
            self.running.input = None;
        }
    }

    fn take_frame(&mut self) -> Result<(), Error> {
        let Some(frame) = read_frame(&mut self.connection)? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        match frame.kind {
            Kind::Input if !self.input_ended => {
                if self.running.input.is_some() {
                    self.waiting.extend(frame.payload);
                }
            }
            Kind::InputEnd => {
                self.input_ended = true;
                self.close_input_when_done();
            }
            Kind::Resize => {
                if let Some(terminal) = &self.running.terminal {
                    child::resize(terminal, &window(frame.message()?));
                }
            }
            Kind::Signal => {
                if let [signal] = frame.payload[..] {
                    child::signal(self.running.child.id(), signal.into());
                }
            }
            other => return Err(Error::Unexpected(other)),
        }
        Ok(())
    }

    /// The command has ended: sends what is left in its streams and how it ended. A descendant that still
    /// holds a stream does not keep us.
    fn finish(&mut self) -> Result<(), Error> {
        drain_all(&mut self.running.output, Kind::Output, &mut self.connection)?;
        drain_all(&mut self.running.errors, Kind::ErrorOutput, &mut self.connection)?;
        let status = self.running.child.wait()?;
        let frame = Frame::json(Kind::Ended, &ended(status))?;
        write_frame(&mut self.connection, frame.kind, &frame.payload)
    }
}

fn flags(wanted: bool, events: PollFlags) -> PollFlags {
    if wanted { events } else { PollFlags::empty() }
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exited(code as u8),
        (None, signal) => Ended::Signaled(signal.unwrap_or(0) as u8),
    }
}

/// Sends one chunk of a stream. Returns whether there may be more now.
fn drain(stream: &mut Option<File>, kind: Kind, to: &mut File) -> Result<bool, Error> {
    let Some(open) = stream else { return Ok(false) };
    let mut chunk = [0; CHUNK];
    match open.read(&mut chunk) {
        Ok(0) => *stream = None,
        Ok(n) => {
            write_frame(to, kind, &chunk[..n])?;
            return Ok(true);
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // A terminal whose last user is gone reads EIO.
        Err(_) => *stream = None,
    }
    Ok(false)
}

/// Bytes sent after the end of a command at most: what a pipe or terminal can hold, so that a descendant that
/// prints without end does not hold the connection.
const TAIL_CAP: usize = 1024 * 1024;

fn drain_all(stream: &mut Option<File>, kind: Kind, to: &mut File) -> Result<(), Error> {
    for _ in 0..TAIL_CAP / CHUNK {
        if !drain(stream, kind, to)? {
            break;
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
mod child {
    //! What has no safe form: signals and terminals of the child.

    use super::*;
    use std::os::fd::{AsRawFd, FromRawFd};

    nix::ioctl_write_ptr_bad!(set_window, libc::TIOCSWINSZ, Winsize);

    /// A descriptor that becomes readable when the process ends.
    pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_open takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned the descriptor, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Tells the command's session that its terminal is gone.
    pub fn hang_up(pid: u32) {
        signal(pid, libc::SIGHUP);
        signal(pid, libc::SIGKILL);
    }

    /// Signals the command and its process group. It may be gone already.
    pub fn signal(pid: u32, signal: i32) {
        // SAFETY: kill takes no pointers. The child has not been waited for, so its number is still its own.
        unsafe {
            libc::kill(-(pid as libc::pid_t), signal);
        }
    }

    /// Sets the terminal's size; the kernel signals the foreground group.
    pub fn resize(terminal: &OwnedFd, window: &Winsize) {
        // SAFETY: `window` is a live winsize, which TIOCSWINSZ reads.
        let _ = unsafe { set_window(terminal.as_raw_fd(), window) };
    }
}

#[cfg(test)]
mod tests;
