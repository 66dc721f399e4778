//! The host's side of the protocol with the guest's agent (`guest_init::proto`), over the vsock device's
//! Unix socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_init::proto::{
    AGENT_PORT, Ended, Exec, Failure, Frame, Kind, Request, Size, read_frame, write_frame,
};

use crate::error::AgentError;
use crate::process::instance_process::ShutdownKind;
use crate::store::sockets;
use crate::{Error, Result};
use machine::virtio::determinism::Determinism;

/// How long the vsock device may take to say that the guest has accepted: a guest on a slow accelerator, busy
/// booting.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// `OK <port>` and a newline.
const MAX_ANSWER: usize = 32;

/// What came from the agent.
#[derive(Debug)]
pub enum Incoming {
    /// The command runs.
    Started,
    /// Standard output, or a piece of an archive.
    Output(Vec<u8>),
    /// Standard error.
    ErrorOutput(Vec<u8>),
    /// The command has ended.
    Ended(Ended),
    /// The request is done; the answer in JSON, if there is one.
    Done(Vec<u8>),
    /// The request has failed.
    Failed(Failure),
}

/// One request and what belongs to it.
pub struct Session {
    stream: Answers,
    sender: Sender,
}

/// What the agent says. Whoever waits for it is not at work meanwhile.
struct Answers {
    stream: UnixStream,
    determinism: Determinism,
}

impl Read for Answers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.determinism.readable(&self.stream);
        self.stream.read(buffer)
    }
}

/// Sends to the agent, from any thread; clones send in the same session.
#[derive(Clone)]
pub struct Sender(Arc<Mutex<UnixStream>>);

impl Session {
    /// Sends `request` to the agent of the instance kept in `directory`.
    pub fn open(directory: &Path, determinism: &Determinism, request: &Request) -> Result<Session> {
        let stream = connect(directory, determinism)?;
        let sender = stream.stream.try_clone().map_err(broken)?;
        let session = Session {
            stream,
            sender: Sender(Arc::new(Mutex::new(sender))),
        };
        let frame = Frame::json(Kind::Request, request).map_err(protocol)?;
        session.sender.send(Kind::Request, &frame.payload)?;
        Ok(session)
    }

    /// To send input, signals and sizes while this session is being read.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Says that there is no input. A command that is over already does not hear it: its end, which is still
    /// to be received, counts.
    pub fn without_input(&self) {
        let _ = self.sender.end_input();
    }

    /// Waits for what comes next. `None` when the guest has gone away.
    pub fn receive(&mut self) -> Result<Option<Incoming>> {
        let Some(frame) = read_frame(&mut self.stream).map_err(protocol)? else {
            return Ok(None);
        };
        Ok(Some(match frame.kind {
            Kind::Started => Incoming::Started,
            Kind::Output => Incoming::Output(frame.payload),
            Kind::ErrorOutput => Incoming::ErrorOutput(frame.payload),
            Kind::Ended => Incoming::Ended(frame.message().map_err(protocol)?),
            Kind::Done => Incoming::Done(frame.payload),
            Kind::Failed => Incoming::Failed(frame.message().map_err(protocol)?),
            kind => {
                return Err(Error::Agent(AgentError::Unexpected(kind)));
            }
        }))
    }

    /// Waits for the end of a request that brings nothing but its answer.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.answer()
    }

    /// Waits for the answer of a request that has nothing else to say, and keeps the session open.
    pub fn answer(&mut self) -> Result<Vec<u8>> {
        match self.receive()? {
            Some(Incoming::Done(answer)) => Ok(answer),
            Some(Incoming::Failed(failure)) => Err(Error::Agent(AgentError::Refused(failure.message))),
            Some(other) => Err(Error::Agent(AgentError::NotDone(format!("{other:?}")))),
            None => Err(Error::Agent(AgentError::Gone)),
        }
    }
}

impl Sender {
    /// Standard input, or a piece of an archive, of any length.
    pub fn input(&self, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(guest_init::proto::frame::PAYLOAD_CAP)
            .try_for_each(|piece| self.send(Kind::Input, piece))
    }

    /// No more input.
    pub fn end_input(&self) -> Result<()> {
        self.send(Kind::InputEnd, b"")
    }

    /// Sends the command a signal, by its Linux number.
    pub fn signal(&self, number: u8) -> Result<()> {
        self.send(Kind::Signal, &[number])
    }

    /// The terminal has another size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let frame = Frame::json(Kind::Resize, &Size { rows, columns }).map_err(protocol)?;
        self.send(Kind::Resize, &frame.payload)
    }

    /// Ends the session from this side.
    pub fn close(&self) {
        let _ = self.lock().shutdown(Shutdown::Both);
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        write_frame(&mut *self.lock(), kind, payload).map_err(protocol)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, UnixStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that brings nothing but its answer.
pub fn request(directory: &Path, determinism: &Determinism, request: &Request) -> Result<Vec<u8>> {
    Session::open(directory, determinism, request)?.finish()
}

/// Starts a command.
pub fn exec(directory: &Path, determinism: &Determinism, exec: Exec) -> Result<Session> {
    Session::open(directory, determinism, &Request::Exec(exec))
}

/// Asks the guest to power off or to restart.
pub fn ask_to_shut_down(directory: &Path, determinism: &Determinism, shutdown: ShutdownKind) -> Result<()> {
    request(
        directory,
        determinism,
        &Request::Shutdown {
            reboot: shutdown == ShutdownKind::Reboot,
        },
    )
    .map(drop)
}

/// Connects to the agent's port in the guest.
fn connect(directory: &Path, determinism: &Determinism) -> Result<Answers> {
    let mut stream = sockets::connect(directory, sockets::VSOCK)?;
    stream.set_read_timeout(Some(ACCEPT_TIMEOUT)).map_err(broken)?;
    writeln!(stream, "CONNECT {AGENT_PORT}").map_err(broken)?;
    let mut answers = Answers {
        stream,
        determinism: determinism.clone(),
    };
    // Byte by byte: what follows the line is the agent's.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
        let mut byte = [0];
        match answers.read(&mut byte).map_err(broken)? {
            0 => return Err(broken(io::ErrorKind::BrokenPipe.into())),
            _ => answer.extend(byte),
        }
    }
    if !answer.starts_with(b"OK ") {
        let answer = String::from_utf8_lossy(&answer).into_owned();
        return Err(Error::Agent(AgentError::OddAnswer(answer)));
    }
    answers.stream.set_read_timeout(None).map_err(broken)?;
    Ok(answers)
}

fn broken(error: io::Error) -> Error {
    Error::Agent(match error.kind() {
        // The device has closed the connection, before or after it was written to.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => AgentError::Absent,
        io::ErrorKind::WouldBlock => AgentError::Silent(ACCEPT_TIMEOUT.as_secs()),
        _ => AgentError::Io(error),
    })
}

fn protocol(error: guest_init::proto::Error) -> Error {
    Error::Agent(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A guest whose agent answers one connection with what the test says.
    fn guest(
        directory: &Path,
        answer: impl FnOnce(Request, &mut UnixStream) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let listener = sockets::bind(directory, sockets::VSOCK).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, "CONNECT 1024\n");
            stream.write_all(b"OK 4000\n").unwrap();
            let request = read_frame(&mut reader).unwrap().unwrap();
            assert_eq!(request.kind, Kind::Request);
            answer(request.message().unwrap(), &mut stream);
        })
    }

    #[test]
    fn a_command_that_ends_before_its_input_was_sent_returns_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let agent = guest(dir.path(), |_, stream| {
            let ended = Frame::json(Kind::Ended, &Ended::Exited(3)).unwrap();
            write_frame(stream, ended.kind, &ended.payload).unwrap();
        });
        let request = Exec {
            argv: vec!["true".into()],
            ..Exec::default()
        };
        let mut session = exec(dir.path(), &Determinism::default(), request).unwrap();
        agent.join().unwrap();
        assert!(session.sender().end_input().is_err(), "the guest has closed");
        session.without_input();
        assert!(matches!(
            session.receive(),
            Ok(Some(Incoming::Ended(Ended::Exited(3))))
        ));
    }

    #[test]
    fn a_command_returns_both_streams_and_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let agent = guest(dir.path(), |request, stream| {
            let Request::Exec(exec) = request else {
                panic!("{request:?}")
            };
            assert_eq!(exec.argv, ["id"]);
            write_frame(stream, Kind::Started, b"").unwrap();
            write_frame(stream, Kind::Output, b"uid=0").unwrap();
            write_frame(stream, Kind::ErrorOutput, b"oops").unwrap();
            let ended = Frame::json(Kind::Ended, &Ended::Exited(7)).unwrap();
            write_frame(stream, ended.kind, &ended.payload).unwrap();
        });
        let mut session = exec(
            dir.path(),
            &Determinism::default(),
            Exec {
                argv: vec!["id".into()],
                ..Exec::default()
            },
        )
        .unwrap();
        assert!(matches!(session.receive().unwrap(), Some(Incoming::Started)));
        assert!(matches!(session.receive().unwrap(), Some(Incoming::Output(bytes)) if bytes == b"uid=0"));
        assert!(matches!(session.receive().unwrap(), Some(Incoming::ErrorOutput(bytes)) if bytes == b"oops"));
        assert!(matches!(
            session.receive().unwrap(),
            Some(Incoming::Ended(Ended::Exited(7)))
        ));
        agent.join().unwrap();
        assert!(session.receive().unwrap().is_none());
    }

    #[test]
    fn a_refusal_carries_the_agents_message() {
        let dir = tempfile::tempdir().unwrap();
        let agent = guest(dir.path(), |request, stream| {
            assert_eq!(request, Request::Shutdown { reboot: true });
            let failure = Failure {
                reason: guest_init::proto::Reason::Other,
                message: "no".into(),
            };
            let frame = Frame::json(Kind::Failed, &failure).unwrap();
            write_frame(stream, frame.kind, &frame.payload).unwrap();
        });
        let refused =
            ask_to_shut_down(dir.path(), &Determinism::default(), ShutdownKind::Reboot).unwrap_err();
        assert_eq!(
            refused.to_string(),
            Error::Agent(AgentError::Refused("no".into())).to_string()
        );
        agent.join().unwrap();
    }

    #[test]
    fn a_guest_without_an_agent_is_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        let listener = sockets::bind(dir.path(), sockets::VSOCK).unwrap();
        let device = std::thread::spawn(move || drop(listener.accept()));
        let refused = request(dir.path(), &Determinism::default(), &Request::Ping)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("no agent") || refused.contains("reset"),
            "{refused}"
        );
        device.join().unwrap();
    }
}
