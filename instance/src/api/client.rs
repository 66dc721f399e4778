//! The other end of the control socket: what commands use to speak to an instance process.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::api::StopRequest;
use crate::api::http::{self, Response};
use crate::error::{CallError, Code};
use crate::process::instance_process::StatusEvent;
use crate::store::record::Record;
use crate::store::sockets;
use crate::store::tags::TagChange;
use crate::{Error, InstanceId, Result};

/// An instance process answers at once; one that takes this long is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Writing all of a guest's memory takes as long as the disk does: 64 GiB at 100 MB/s.
const SAVE_TIMEOUT: Duration = Duration::from_secs(12 * 60);
/// A pending instance binds its socket within milliseconds of its launch.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream from the instance process, with what came along with the response's head in front.
pub type Incoming = Chain<Cursor<Vec<u8>>, UnixStream>;

/// Speaks to the instance process of one instance.
#[derive(Debug, Clone)]
pub struct Client {
    id: InstanceId,
    directory: PathBuf,
}

impl Client {
    /// For the instance process of `id`, whose state directory is given.
    pub fn new(id: InstanceId, directory: PathBuf) -> Client {
        Client { id, directory }
    }

    /// The record.
    pub fn describe(&self) -> Result<Record> {
        let response = self.call("GET", "/v1/instance", b"")?;
        serde_json::from_slice(&response.body).map_err(|e| self.call_failed(e.into()))
    }

    /// Asks for power-off within `timeout` (rounded up to seconds). A guest that is to stop at once is not
    /// waited for long.
    pub fn stop(&self, timeout: Duration) -> Result<()> {
        let seconds = timeout.as_millis().div_ceil(1000).try_into().unwrap_or(u32::MAX);
        let body = serde_json::to_vec(&StopRequest { time: Some(seconds) }).unwrap_or_default();
        let limit = ANSWER_TIMEOUT.min(timeout + SOCKET_TIMEOUT);
        self.call_within("POST", "/v1/instance/stop", &body, limit)
            .map(drop)
    }

    /// Asks for a restart.
    pub fn reboot(&self) -> Result<()> {
        self.call("POST", "/v1/instance/reboot", b"").map(drop)
    }

    /// Stops the guest where it is.
    pub fn pause(&self) -> Result<()> {
        self.call("POST", "/v1/instance/pause", b"").map(drop)
    }

    /// Goes on after a pause.
    pub fn resume(&self) -> Result<()> {
        self.call("POST", "/v1/instance/resume", b"").map(drop)
    }

    /// Changes tags.
    pub fn change_tags(&self, change: &TagChange) -> Result<()> {
        let body = serde_json::to_vec(change).map_err(|e| self.call_failed(e.into()))?;
        self.call("POST", "/v1/instance/tags", &body).map(drop)
    }

    /// Has the paused guest saved into the state directory.
    pub fn save(&self) -> Result<()> {
        self.call_within("POST", "/v1/instance/save", b"", SAVE_TIMEOUT)
            .map(drop)
    }

    /// Has the guest saved for the next start, and ended.
    pub fn hibernate(&self) -> Result<()> {
        self.call_within("POST", "/v1/instance/hibernate", b"", SAVE_TIMEOUT)
            .map(drop)
    }

    /// What becomes of the instance until it ends. The first is where it stands now.
    pub fn watch(&self) -> Result<impl Iterator<Item = StatusEvent> + use<>> {
        let incoming = self.open("/v1/events", false)?.0;
        let lines = BufReader::new(incoming).lines();
        Ok(lines.map_while(|line| serde_json::from_str(&line.ok()?).ok()))
    }

    /// Waits until the instance has ended, it is `deadline`, or its process says nothing more. Which of them,
    /// the record and the lock know.
    pub fn wait_ended(&self, deadline: Instant) {
        let Ok((events, stream)) = self.open_until("/v1/events", false, deadline) else {
            return;
        };
        let mut lines = BufReader::new(events).lines();
        while wait_until(&stream, deadline).is_ok() && lines.next().is_some_and(|line| line.is_ok()) {}
    }

    /// The console log so far and what follows.
    pub fn logs(&self) -> Result<Incoming> {
        Ok(self.open("/v1/logs", false)?.0)
    }

    /// The console: what it prints, and where to type.
    pub fn console(&self) -> Result<(Incoming, UnixStream)> {
        self.open("/v1/console", true)
    }

    /// One request and its answer. A refusal is an error with the instance process's words.
    fn call(&self, method: &str, target: &str, body: &[u8]) -> Result<Response> {
        self.call_within(method, target, body, ANSWER_TIMEOUT)
    }

    fn call_within(&self, method: &str, target: &str, body: &[u8], limit: Duration) -> Result<Response> {
        let mut stream = self.connect()?;
        let failed = |e: io::Error| self.call_failed(e.into());
        stream.set_read_timeout(Some(limit)).map_err(failed)?;
        http::send_request(&mut stream, method, target, false, body).map_err(failed)?;
        let received = http::receive(&mut stream, http::parse_response).map_err(failed)?;
        let (response, _) = received.map_err(|m| self.call_failed(m.into()))?;
        self.check(response)
    }

    fn open(&self, target: &str, upgrade: bool) -> Result<(Incoming, UnixStream)> {
        let opened = self.open_until(target, upgrade, Instant::now() + ANSWER_TIMEOUT)?;
        // What follows comes when there is something.
        let endless = opened.1.set_read_timeout(None);
        endless.map_err(|e| self.call_failed(e.into()))?;
        Ok(opened)
    }

    fn open_until(&self, target: &str, upgrade: bool, deadline: Instant) -> Result<(Incoming, UnixStream)> {
        let mut stream = self.connect()?;
        let failed = |e: io::Error| self.call_failed(e.into());
        wait_until(&stream, deadline).map_err(failed)?;
        http::send_request(&mut stream, "GET", target, upgrade, b"").map_err(failed)?;
        let received = http::receive(&mut stream, http::parse_response).map_err(failed)?;
        let (response, rest) = received.map_err(|m| self.call_failed(m.into()))?;
        self.check(response)?;
        let typed = stream.try_clone().map_err(failed)?;
        Ok((Cursor::new(rest).chain(stream), typed))
    }

    fn check(&self, response: Response) -> Result<Response> {
        if matches!(response.status, 101 | 200 | 202) {
            return Ok(response);
        }
        #[derive(Deserialize)]
        struct Problem {
            error: String,
            // One that is older does not send it.
            #[serde(default)]
            code: String,
        }
        let problem = serde_json::from_slice::<Problem>(&response.body);
        let (reason, code) = problem.map_or_else(
            |_| (format!("status {}", response.status), None),
            |problem| (problem.error, Code::named(&problem.code)),
        );
        let code = code.unwrap_or(match response.status {
            409 => Code::IncorrectState,
            503 => Code::Busy,
            _ => Code::Internal,
        });
        Err(Error::Declined { code, reason })
    }

    /// Connects. An instance process that has only just begun may not have its socket yet.
    fn connect(&self) -> Result<UnixStream> {
        let deadline = Instant::now() + SOCKET_TIMEOUT;
        loop {
            match sockets::connect(&self.directory, sockets::CONTROL) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    let owned =
                        crate::store::lock::Lock::is_held(&self.directory.join("lock")).unwrap_or(false);
                    if !owned || Instant::now() >= deadline {
                        return Err(self.call_failed(CallError::Connect(Box::new(error))));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn call_failed(&self, source: CallError) -> Error {
        Error::Unresponsive {
            id: self.id.to_string(),
            source,
        }
    }
}

/// Lets reads of `stream` fail at `deadline`.
fn wait_until(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => stream.set_read_timeout(Some(left)),
    }
}
