//! `own`: the process of a detached instance.

use std::sync::Arc;

use clap::Args;
use nix::sys::signal::Signal;

use super::stream::{Stream, note};
use super::{Context, Status, failure, signals};
use instance::process::detach;
use instance::process::per_run::PerRun;
use instance::service::hosting::Host;
use instance::{Error, InstanceId, api};

/// Run an instance whose lock is inherited
#[derive(Debug, Args)]
pub struct Own {
    id: InstanceId,
    /// What is asked of this run, as JSON
    #[arg(value_parser = PerRun::from_json)]
    per_run: PerRun,
}

impl Own {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let (held, report) = detach::take_over(context.service.store(), &self.id)?;
        let signals = signals::hold()?;
        let host = Host::new(held, context.home(), self.per_run, Arc::clone(&context.timeline));
        let process = Arc::clone(host.process());
        process.explain_failures(failure::line);
        let hosted = host.run(Some(report), || {
            let stop = move |signal| {
                if signal != Signal::SIGWINCH {
                    let _ = process.stop(api::STOP_TIMEOUT, &format!("its process received {signal}"));
                }
            };
            signals.deliver(stop).map_err(Error::os("starting a thread"))
        })?;
        Stream::Error.put(hosted.tables.as_bytes())?;
        if let Some(counted) = hosted.counted {
            note(format_args!("{}: {counted}", hosted.record.id));
        }
        Ok(Status::from(&hosted.ending))
    }
}
