//! `--wait`: what a launched instance is waited for. The guest says when it is there; nothing here asks again and again.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use guest_init::proto::Request;

use super::failure::{Advice, TimedOut};
use super::lifecycle::wait_ready;
use super::{Context, value};
use instance::InstanceId;
use instance::guest::agent::{Incoming, Session};
use machine::virtio::determinism::Determinism;

/// The SSH server's port and how it greets (RFC 4253 §4.2).
const SSH: u16 = 22;
const SSH_GREETING: &[u8] = b"SSH-";

/// What to wait for, and how long.
#[derive(Debug, Clone, Args)]
pub struct Waiting {
    /// Return when the guest's agent answers, its SSH server greets, or something listens on its port N
    #[arg(long, value_name = "agent|ssh|port=N")]
    pub wait: Option<WaitFor>,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    pub wait_timeout: Duration,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// The guest's agent.
    Agent,
    /// The SSH server's greeting.
    Ssh,
    /// A TCP port of the guest.
    Port(u16),
}

impl std::str::FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<WaitFor, String> {
        match (text, text.strip_prefix("port=").map(str::parse)) {
            ("agent", _) => Ok(WaitFor::Agent),
            ("ssh", _) => Ok(WaitFor::Ssh),
            (_, Some(Ok(port @ 1..))) => Ok(WaitFor::Port(port)),
            (_, Some(_)) => Err("a port is a number from 1 to 65535".into()),
            _ => Err("write agent, ssh or port=N".into()),
        }
    }
}

impl Waiting {
    /// Waits for each of `ids`.
    pub fn run(&self, context: &Context, ids: &[InstanceId]) -> anyhow::Result<()> {
        let Some(wait) = self.wait else { return Ok(()) };
        ids.iter()
            .try_for_each(|id| wait.wait(context, id, self.wait_timeout))
    }
}

impl WaitFor {
    /// Waits for it on `id`, for at most `patience`.
    pub fn wait(self, context: &Context, id: &InstanceId, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        wait_ready(context, id, timeout)?;
        let port = match self {
            WaitFor::Agent => return Ok(()),
            WaitFor::Ssh => SSH,
            WaitFor::Port(port) => port,
        };
        let directory = context.home().instance(id);
        let (sender, receiver) = channel();
        // The thread ends with the process, or when the instance does.
        std::thread::Builder::new().name("wait".into()).spawn(move || {
            let listening = Session::open(&directory, &Determinism::default(), &Request::WaitPort { port })
                .and_then(Session::finish)
                .map_err(anyhow::Error::from);
            let greeted = listening.and_then(|_| match self {
                WaitFor::Ssh => greeting(&directory),
                _ => Ok(()),
            });
            let _ = sender.send(greeted);
        })?;
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let message = format!("{id}: waiting for port {port}: {error:#}");
                Err(Advice::new(message, format!("`vmm logs {id}` shows what it printed")).into())
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(TimedOut(format!(
                "nothing listens on port {port} of {id} after {} s",
                timeout.as_secs()
            ))
            .into()),
        }
    }
}

/// Returns when the SSH server has greeted.
fn greeting(directory: &std::path::Path) -> anyhow::Result<()> {
    let mut session = Session::open(
        directory,
        &Determinism::default(),
        &Request::Connect { port: SSH },
    )?;
    let mut said = Vec::new();
    while said.len() < SSH_GREETING.len() {
        match session.receive()? {
            Some(Incoming::Output(bytes)) => said.extend(bytes),
            Some(Incoming::Started) => {}
            Some(Incoming::Failed(failure)) => bail!("{failure}"),
            _ => bail!("the server closed the connection without a word"),
        }
    }
    if !said.starts_with(SSH_GREETING) {
        bail!("what listens there is no SSH server");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_waited_for() {
        assert_eq!("agent".parse(), Ok(WaitFor::Agent));
        assert_eq!("ssh".parse(), Ok(WaitFor::Ssh));
        assert_eq!("port=80".parse(), Ok(WaitFor::Port(80)));
        for wrong in ["", "port", "port=", "port=0", "port=65536", "boot"] {
            assert!(wrong.parse::<WaitFor>().is_err(), "{wrong}");
        }
    }
}
