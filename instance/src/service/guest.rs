//! Requests to the guest of a running instance: waiting for it, its agent, its console and its ports.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use guest_init::proto::{Exec, Request};

use super::{Service, shutdown};
use crate::api::client::Incoming;
use crate::error::AgentError;
use crate::guest::agent::{self, Session};
use crate::process::console::read_whole_log;
use crate::process::instance_process::StatusEvent;
use crate::process::network::open_ports;
use crate::store::network::Port;
use crate::{Error, Event, InstanceId, Result};
use machine::virtio::determinism::Determinism;

/// The SSH server's port and how it greets (RFC 4253 §4.2).
const SSH: u16 = 22;
const SSH_GREETING: &[u8] = b"SSH-";

/// What an instance is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// The guest's agent.
    Agent,
    /// The SSH server's greeting.
    Ssh,
    /// A TCP port of the guest.
    Port(u16),
}

/// A running instance whose agent has answered.
#[derive(Debug)]
pub struct ReadyInstance {
    id: InstanceId,
    directory: PathBuf,
}

impl ReadyInstance {
    /// Its id.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Its state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a command in the guest.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub fn exec(&self, command: Exec) -> Result<Session> {
        agent::exec(&self.directory, &Determinism::default(), command)
    }

    /// Begins to copy an archive to `path` in the guest.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub fn copy_in(&self, path: &str) -> Result<Session> {
        self.open(&Request::CopyIn { path: path.into() })
    }

    /// Begins to copy `path` out of the guest as an archive, with a line for what is left out.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub fn copy_out(&self, path: &str) -> Result<Session> {
        self.open(&Request::CopyOut {
            path: path.into(),
            notes: true,
        })
    }

    fn open(&self, request: &Request) -> Result<Session> {
        Session::open(&self.directory, &Determinism::default(), request)
    }
}

impl Service {
    /// Waits until the agent of a running instance answers.
    ///
    /// # Errors
    /// When it does not run, is paused, ends, or takes longer than `timeout`.
    pub fn ready_instance(&self, instance: &str, timeout: Duration) -> Result<ReadyInstance> {
        let id = self.wait_for(instance, WaitFor::Agent, timeout)?;
        let directory = self.home().instance(&id);
        Ok(ReadyInstance { id, directory })
    }

    /// Waits for something of a running instance. The guest says when it is there; nothing here asks again
    /// and again.
    ///
    /// # Errors
    /// When the instance does not run, is paused, ends, or takes longer than `timeout`.
    pub fn wait_for(&self, instance: &str, what: WaitFor, timeout: Duration) -> Result<InstanceId> {
        let id = self.running(instance, Event::Started)?;
        self.wait_for_launched(&id, what, timeout)?;
        Ok(id)
    }

    /// The same for an instance that was launched or started a moment ago: that it runs no more means that it
    /// has ended too early.
    ///
    /// # Errors
    /// As [`Service::wait_for`].
    pub fn wait_for_launched(&self, id: &InstanceId, what: WaitFor, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        match self.wait_ready(id, timeout) {
            Err(Error::Unresponsive { .. }) if shutdown::has_ended(&self.store, id)? => {
                return Err(Error::EndedEarly(id.to_string()));
            }
            ready => ready?,
        }
        let port = match what {
            WaitFor::Agent => return Ok(()),
            WaitFor::Ssh => SSH,
            WaitFor::Port(port) => port,
        };
        let directory = self.home().instance(id);
        let found = within(deadline.saturating_duration_since(Instant::now()), move || {
            Session::open(&directory, &Determinism::default(), &Request::WaitPort { port })?.finish()?;
            match what {
                WaitFor::Ssh => greeting(&directory),
                WaitFor::Agent | WaitFor::Port(_) => Ok(()),
            }
        })?;
        match found {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(Error::Port {
                id: id.to_string(),
                port,
                source: Box::new(source),
            }),
            None => Err(Error::PortSilent {
                id: id.to_string(),
                port,
                seconds: timeout.as_secs(),
            }),
        }
    }

    /// Waits until the agent of `id` answers.
    pub(super) fn wait_ready(&self, id: &InstanceId, timeout: Duration) -> Result<()> {
        let client = self.client(id);
        let found = within(timeout, move || {
            let paused_or_ready = |event: &StatusEvent| event.paused.is_some() || event.ready;
            client.watch().map(|mut events| events.find(paused_or_ready))
        })?;
        let id = id.to_string();
        match found {
            Some(Ok(Some(event))) => match event.paused {
                Some(paused) => Err(Error::IsPaused {
                    id,
                    paused: Box::new(paused),
                }),
                None => Ok(()),
            },
            Some(Ok(None)) => Err(Error::EndedEarly(id)),
            Some(Err(error)) => Err(error),
            None => Err(Error::AgentSilent {
                id,
                seconds: timeout.as_secs(),
            }),
        }
    }

    /// What the guest has printed on its console, as far as it is kept.
    ///
    /// # Errors
    /// When there is no such instance, or the log cannot be read.
    pub fn console_output(&self, instance: &str) -> Result<Vec<u8>> {
        let directory = self.home().instance(&self.store.find(instance)?);
        read_whole_log(&directory).map_err(Error::file("reading the console log in", &directory))
    }

    /// The same, and what the guest prints from here on; `None` when it does not run.
    ///
    /// # Errors
    /// As [`Service::console_output`], or when its process does not answer.
    pub fn follow_console(&self, instance: &str) -> Result<Option<Incoming>> {
        let record = self.describe_instance(instance)?;
        match record.state.has_process() {
            true => Ok(Some(self.client(&record.id).logs()?)),
            false => Ok(None),
        }
    }

    /// Attaches to the console of a running instance: what it prints, and where to type.
    ///
    /// # Errors
    /// When it does not run or is paused, or its process does not answer.
    pub fn attach_console(&self, instance: &str) -> Result<(Incoming, UnixStream)> {
        let id = self.running(instance, Event::Started)?;
        self.client(&id).console()
    }

    /// Where the published ports of a running instance can be reached.
    ///
    /// # Errors
    /// When it does not run.
    pub fn published_ports(&self, instance: &str) -> Result<Vec<Port>> {
        let (id, _) = self.active(instance, Event::Started)?;
        open_ports(&self.home().instance(&id))
    }
}

/// What `step` returns, or `None` when that takes longer than `timeout`: its thread ends with the process
/// then, or when the instance does.
fn within<T: Send + 'static>(
    timeout: Duration,
    step: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("wait".into())
        .spawn(move || {
            let _ = sender.send(step());
        })
        .map_err(Error::os("starting a thread"))?;
    match receiver.recv_timeout(timeout) {
        Ok(done) => Ok(Some(done)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
    }
}

/// Returns when the SSH server has greeted.
fn greeting(directory: &Path) -> Result<()> {
    let connect = Request::Connect { port: SSH };
    let mut session = Session::open(directory, &Determinism::default(), &connect)?;
    let mut greeting = Vec::new();
    while greeting.len() < SSH_GREETING.len() {
        match session.receive()? {
            Some(agent::Incoming::Output(bytes)) => greeting.extend(bytes),
            Some(agent::Incoming::Started) => {}
            Some(agent::Incoming::Failed(failure)) => {
                return Err(AgentError::Refused(failure.to_string()).into());
            }
            _ => return Err(AgentError::NoGreeting.into()),
        }
    }
    match greeting.starts_with(SSH_GREETING) {
        true => Ok(()),
        false => Err(AgentError::NotSsh.into()),
    }
}
