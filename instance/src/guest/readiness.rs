//! Reports of the guest, by connections to the host: that its agent is ready, and how its main program ended.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use guest_init::proto::{Configure, END_PORT, Ended, Kind as FrameKind, READY_PORT, Request, read_frame};
use nix::poll::{PollFd, PollFlags, poll};

use crate::guest::agent;
use crate::process::instance_process::InstanceProcess;
use crate::process::network;
use crate::store::sockets;
use crate::{Error, Result};
use machine::footprint;
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::{Determinism, Times};

/// How long after a guest's readiness its launch is over, in milliseconds: those who waited are notified
/// meanwhile, and the code for it is used once more. At once would unmap some of it, or all, as the threads
/// happen to run.
const SETTLING: u16 = 500;

/// The agent says that it is there by connecting; what it sends is of no interest.
pub fn listen_for_readiness(
    process: &Arc<InstanceProcess>,
    determinism: Determinism,
    on_ready: impl Fn() + Send + 'static,
) -> Result<()> {
    let listener = sockets::bind(process.directory(), &format!("{}_{READY_PORT}", sockets::VSOCK))?;
    determinism.expect(READY_PORT, Times::Always);
    let process = Arc::clone(process);
    sandbox::spawn("readiness", Kind::Control, move || {
        listener.incoming().flatten().for_each(|stream| {
            // Closed before anything else, so that the guest sees it first in every run.
            drop(stream);
            if let Err(error) = configure(&process, &determinism) {
                tracing::warn!(%error, "the guest could not be configured");
            }
            on_ready();
            process.set_ready();
            determinism.give();
            if is_quiet(&listener) {
                footprint::give_back();
            }
        })
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// How long the guest may take to say how its main program has ended, once it has connected. A busy host may
/// let it stand still between two of its calls; meanwhile only its own other connections wait.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Notes how the image's main program has ended. The guest waits for the end of its connection before it
/// powers off.
pub(crate) fn listen_for_end(process: &Arc<InstanceProcess>, determinism: Determinism) -> Result<()> {
    let listener = sockets::bind(process.directory(), &format!("{}_{END_PORT}", sockets::VSOCK))?;
    determinism.expect(END_PORT, Times::Always);
    let process = Arc::clone(process);
    sandbox::spawn("end", Kind::Control, move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(END_TIMEOUT));
            // Other frames are ignored.
            if let Ok(Some(frame)) = read_frame(&mut stream)
                && frame.kind == FrameKind::Ended
                && let Ok(ended) = frame.message::<Ended>()
            {
                process.set_exited(ended.status());
            }
            drop(stream);
            determinism.give();
        }
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// Whether the launch is over: those who waited for the guest have been notified, and it has not started anew
/// meanwhile.
fn is_quiet(listener: &impl AsFd) -> bool {
    let mut next = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut next, SETTLING) == Ok(0)
}

/// Gives the guest what belongs to this instance, unless there is nothing. cloud-init, where the image has
/// it, asks the metadata service itself; the agent knows.
fn configure(process: &InstanceProcess, determinism: &Determinism) -> Result<()> {
    let record = process.record();
    let user_data = network::user_data(process.directory())?;
    if record.config.ssh_keys.is_empty() && user_data.is_none() {
        return Ok(());
    }
    let request = Request::Configure(Configure {
        instance: record.id.to_string(),
        hostname: None,
        ssh_keys: record.config.ssh_keys,
        // Only a script is the agent's business, and a script is text.
        user_data: user_data.and_then(|data| String::from_utf8(data).ok()),
    });
    agent::request(process.directory(), determinism, &request).map(drop)
}
