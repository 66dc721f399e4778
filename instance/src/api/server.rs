//! The control socket: a small HTTP/1.1 API on a unix socket in the state directory, served by the instance
//! process.
//!
//! `docs/openapi.json` describes it; a test holds the description against [`ROUTES`] and against what is
//! answered. The directory is private to the user, which is the whole access control.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::http::{self, Request, Response};
use crate::error::Code;
use crate::process::descriptors::MAX_CONNECTIONS;
use crate::process::instance_process::{InstanceProcess, StatusEvent};
use crate::process::subscription::{Next, Subscription};
use crate::store::sockets;
use crate::{Error, Result};
use machine::sandbox::{self, Kind};

/// A peer that takes longer to state its request, or to take its answer, is hung up on.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of the past an attached console sees: the prompt and what led to it.
const CONSOLE_REPLAY: u64 = 2 << 10;
/// After a connection could not be accepted: descriptors are short, and asking again at once would burn a
/// processor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The timeout of a stop, unless the request has another.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be asked of an instance process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The record.
    Describe,
    /// Power off, with a deadline.
    Stop,
    /// Restart the guest.
    Reboot,
    /// Stop the guest where it is.
    Pause,
    /// Go on.
    Resume,
    /// Write memory and state of the paused guest into the state directory.
    Save,
    /// Save the guest for the next start, and end it.
    Hibernate,
    /// Change tags.
    Tag,
    /// Events, a line of JSON each, until the end.
    Watch,
    /// The console log so far and everything after it, until the end.
    Logs,
    /// The console, both ways.
    Console,
}

/// One line of the table of routes.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The whole path: none has parameters.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
    /// The name in the OpenAPI description.
    pub id: &'static str,
}

/// Everything the control socket serves.
pub const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/v1/instance",
        operation: Operation::Describe,
        id: "describeInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/stop",
        operation: Operation::Stop,
        id: "stopInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/reboot",
        operation: Operation::Reboot,
        id: "rebootInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/pause",
        operation: Operation::Pause,
        id: "pauseInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/resume",
        operation: Operation::Resume,
        id: "resumeInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/save",
        operation: Operation::Save,
        id: "saveInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/hibernate",
        operation: Operation::Hibernate,
        id: "hibernateInstance",
    },
    Route {
        method: "POST",
        path: "/v1/instance/tags",
        operation: Operation::Tag,
        id: "changeTags",
    },
    Route {
        method: "GET",
        path: "/v1/events",
        operation: Operation::Watch,
        id: "watchInstance",
    },
    Route {
        method: "GET",
        path: "/v1/logs",
        operation: Operation::Logs,
        id: "followLogs",
    },
    Route {
        method: "GET",
        path: "/v1/console",
        operation: Operation::Console,
        id: "attachConsole",
    },
];

/// The body of a stop request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// Seconds that the guest has to power off; 0 ends it at once.
    pub time: Option<u32>,
}

/// Serves `process` on its control socket for as long as the process lives.
pub fn serve(process: Arc<InstanceProcess>) -> Result<()> {
    serve_counted(process, Arc::default())
}

/// The same; `open` is how many connections are being served.
fn serve_counted(process: Arc<InstanceProcess>, open: Arc<AtomicUsize>) -> Result<()> {
    let listener = sockets::bind(process.directory(), sockets::CONTROL)?;
    sandbox::spawn("control", Kind::Control, move || {
        accept(&listener, &process, &open)
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

fn accept(listener: &UnixListener, process: &Arc<InstanceProcess>, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            std::thread::sleep(ACCEPT_RETRY);
            continue;
        };
        let Some(place) = Place::take(open) else {
            let _ = stream.set_write_timeout(Some(PEER_TIMEOUT));
            let _ = http::send_response(&mut stream, &problem(503, Code::Busy, "too many connections"));
            continue;
        };
        let process = Arc::clone(process);
        let served = sandbox::spawn("request", Kind::Control, move || {
            let _place = place;
            if let Err(error) = converse(&process, stream) {
                tracing::debug!(%error, "a control connection ended");
            }
        });
        if let Err(error) = served {
            tracing::warn!(%error, "a control connection cannot be served");
        }
    }
}

/// One of the [`MAX_CONNECTIONS`], given back when it is dropped, however its thread ends.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection from request to end.
fn converse(process: &Arc<InstanceProcess>, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let (request, rest) = match http::receive(&mut stream, http::parse_request)? {
        Ok(received) => received,
        Err(malformed) => {
            let text = malformed.to_string();
            let response = problem(malformed.status(), Code::InvalidValue, &text);
            return http::send_response(&mut stream, &response);
        }
    };
    match route(&request) {
        Ok(Operation::Watch) => watch(process, stream),
        Ok(Operation::Logs) => {
            let (past, live) = process.console().view(u64::MAX)?;
            begin_stream(&mut stream, "application/octet-stream")?;
            stream.write_all(&past)?;
            follow(stream, &live, |stream, chunk| stream.write_all(&chunk), None)
        }
        Ok(Operation::Console) if !request.upgrade => http::send_response(&mut stream, &upgrade_required()),
        Ok(Operation::Console) => console(process, stream, &rest),
        Ok(operation) => http::send_response(&mut stream, &answer(process, operation, &request)),
        Err(response) => http::send_response(&mut stream, &response),
    }
}

fn route(request: &Request) -> std::result::Result<Operation, Response> {
    let here: Vec<_> = ROUTES.iter().filter(|r| r.path == request.path).collect();
    match here.iter().find(|r| r.method == request.method) {
        Some(route) => Ok(route.operation),
        None if here.is_empty() => Err(problem(404, Code::InvalidAction, "there is nothing at this path")),
        None => {
            let allowed = here.iter().map(|r| r.method).collect::<Vec<_>>().join(", ");
            let mut response = problem(405, Code::InvalidAction, &format!("this path takes {allowed}"));
            // RFC 9110 §15.5.6.
            response.headers.push(("Allow", allowed));
            Err(response)
        }
    }
}

/// RFC 9110 §15.5.22: the response names the protocol.
fn upgrade_required() -> Response {
    let text = format!("the console is a stream: send `Upgrade: {}`", http::STREAM);
    let mut response = problem(426, Code::InvalidAction, &text);
    response.headers.push(("Upgrade", http::STREAM.into()));
    response
}

/// Answers the operations that are not streams.
fn answer(process: &Arc<InstanceProcess>, operation: Operation, request: &Request) -> Response {
    let done = match operation {
        Operation::Describe => {
            return match serde_json::to_vec(&process.record()) {
                Ok(body) => response(200, body),
                Err(error) => problem(500, Code::Internal, &error.to_string()),
            };
        }
        Operation::Stop => match object::<StopRequest>(&request.body) {
            Ok(stop) => {
                let timeout = stop.time.map_or(STOP_TIMEOUT, |s| Duration::from_secs(s.into()));
                process.stop(timeout, "stopped by request")
            }
            Err(reason) => return problem(400, Code::InvalidValue, &reason),
        },
        Operation::Reboot => process.reboot(),
        Operation::Pause => process.pause(),
        Operation::Resume => process.resume(),
        Operation::Save => process.save(),
        Operation::Hibernate => process.hibernate(),
        Operation::Tag => match object(&request.body) {
            Ok(change) => process.change_tags(&change),
            Err(reason) => return problem(400, Code::InvalidValue, &reason),
        },
        Operation::Watch | Operation::Logs | Operation::Console => return upgrade_required(),
    };
    match done {
        Ok(()) => json_response(202, &process.status()),
        Err(error) => problem(409, error.code(), &error.to_string()),
    }
}

/// What a request's body says; one without a body is the default.
fn object<T: DeserializeOwned + Default>(body: &[u8]) -> std::result::Result<T, String> {
    if body.is_empty() {
        return Ok(T::default());
    }
    // serde reads a structure from an array as well, by the order of its fields; the description knows
    // objects only.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the body is not a JSON object".into());
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

fn response(status: u16, body: Vec<u8>) -> Response {
    Response {
        status,
        headers: Vec::new(),
        body,
    }
}

fn json_response(status: u16, value: &impl Serialize) -> Response {
    response(status, serde_json::to_vec(value).unwrap_or_default())
}

fn problem(status: u16, code: Code, text: &str) -> Response {
    json_response(status, &json!({ "error": text, "code": code.as_str() }))
}

/// A response whose body ends with the connection.
fn begin_stream(stream: &mut UnixStream, kind: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    )
}

fn watch(process: &InstanceProcess, mut stream: UnixStream) -> io::Result<()> {
    let (now, events) = process.watch().map_err(io::Error::other)?;
    begin_stream(&mut stream, "application/x-ndjson")?;
    send_event(&mut stream, &now)?;
    follow(stream, &events, |stream, event| send_event(stream, &event), None)
}

fn send_event(stream: &mut UnixStream, event: &StatusEvent) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Both ways until one side closes. Every attached console sees the same output, and what any of them types
/// goes to the guest in the order of arrival.
fn console(process: &InstanceProcess, mut stream: UnixStream, typed_already: &[u8]) -> io::Result<()> {
    let (past, live) = process.console().view(CONSOLE_REPLAY)?;
    http::send_upgrade(&mut stream)?;
    stream.set_read_timeout(None)?;
    if !typed_already.is_empty() {
        process.console().input(typed_already);
    }
    stream.write_all(&past)?;
    let type_in = |keys: &[u8]| process.console().input(keys);
    follow(
        stream,
        &live,
        |stream, chunk| stream.write_all(&chunk),
        Some(&type_in),
    )
}

/// Takes what a peer sends.
type TakeInput<'a> = &'a dyn Fn(&[u8]);

/// Sends what is published to the peer, and what the peer sends to `input`, until either side has ended. A
/// peer that goes away is noticed at once, also while nothing is published: its thread and its place are
/// needed for others.
fn follow<T>(
    mut stream: UnixStream,
    live: &Subscription<T>,
    send: impl Fn(&mut UnixStream, T) -> io::Result<()>,
    mut input: Option<TakeInput<'_>>,
) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        match live.wait(&stream, input.is_some())? {
            Next::Item(item) => send(&mut stream, item)?,
            Next::Input => match (stream.read(&mut chunk)?, input) {
                (n @ 1.., Some(take)) => take(&chunk[..n]),
                // It types no more, but may still look.
                _ => input = None,
            },
            Next::End | Next::Gone => return stream.shutdown(Shutdown::Both),
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
