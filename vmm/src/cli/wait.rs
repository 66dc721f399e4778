//! `--wait`: the event after which a launch returns.

use std::time::Duration;

use clap::Args;

use super::{Context, value};
use instance::InstanceId;
use instance::service::WaitFor;

/// What to wait for, and how long.
#[derive(Debug, Clone, Args)]
pub struct Waiting {
    /// Return when the guest's agent answers, its SSH server answers, or something listens on its port N
    #[arg(long, value_name = "agent|ssh|port=N", value_parser = wait_for)]
    pub wait: Option<WaitFor>,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    pub wait_timeout: Duration,
}

/// `agent`, `ssh` or `port=N`.
pub fn wait_for(text: &str) -> Result<WaitFor, String> {
    match (text, text.strip_prefix("port=").map(str::parse)) {
        ("agent", _) => Ok(WaitFor::Agent),
        ("ssh", _) => Ok(WaitFor::Ssh),
        (_, Some(Ok(port @ 1..))) => Ok(WaitFor::Port(port)),
        (_, Some(_)) => Err("a port is a number from 1 to 65535".into()),
        _ => Err("write agent, ssh or port=N".into()),
    }
}

impl Waiting {
    /// Waits for each of `ids`.
    pub fn run(&self, context: &Context, ids: &[InstanceId]) -> anyhow::Result<()> {
        let Some(wait) = self.wait else { return Ok(()) };
        for id in ids {
            context.service.wait_for_launched(id, wait, self.wait_timeout)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_conditions_are_parsed() {
        assert_eq!(wait_for("agent"), Ok(WaitFor::Agent));
        assert_eq!(wait_for("ssh"), Ok(WaitFor::Ssh));
        assert_eq!(wait_for("port=80"), Ok(WaitFor::Port(80)));
        for wrong in ["", "port", "port=", "port=0", "port=65536", "boot"] {
            assert!(wait_for(wrong).is_err(), "{wrong}");
        }
    }
}
