//! `own`: the process of an instance that this program has launched.

use std::sync::Arc;

use anyhow::Context as _;
use machine::sandbox::{self, Kind};
use machine::timeline::Timeline;
use nix::sys::signal::{SigSet, Signal};

use instance::process::detach;
use instance::process::per_run::PerRun;
use instance::service::Service;
use instance::service::hosting::Host;
use instance::{Error, InstanceId, api};

/// Signals that end an instance in good order.
const TAKEN: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Runs the instance whose lock is inherited, until it ends. No other thread may have been started before.
///
/// # Errors
/// When it cannot be taken over, or its end cannot be written down.
pub fn run(service: &Service, id: &InstanceId, per_run: &str, timeline: Timeline) -> anyhow::Result<()> {
    let per_run = PerRun::from_json(per_run).map_err(anyhow::Error::msg)?;
    let (held, report) = detach::take_over(service.store(), id)?;
    let signals: SigSet = TAKEN.into_iter().collect();
    // Every thread inherits that these are not its own.
    signals.thread_block().context("keeping signals back")?;
    let host = Host::new(held, service.home(), per_run, Arc::new(timeline));
    let process = Arc::clone(host.process());
    host.run(Some(report), || {
        sandbox::spawn("signals", Kind::Control, move || {
            while let Ok(signal) = signals.wait() {
                let _ = process.stop(api::STOP_TIMEOUT, &format!("its process received {signal}"));
            }
        })
        .map_err(Error::os("starting a thread"))?;
        Ok(())
    })?;
    Ok(())
}
