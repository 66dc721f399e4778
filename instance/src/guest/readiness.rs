//! What stands around a guest while it runs: console log, control socket, readiness.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guest_init::proto::{Configure, END_PORT, Ended, Kind as FrameKind, READY_PORT, Request, read_frame};
use nix::poll::{PollFd, PollFlags, poll};

use crate::api;
use crate::guest::agent;
use crate::guest::clock_sync;
use crate::process::console::Console;
use crate::process::network;
use crate::process::owner::Owner;
use crate::store::LockedInstance;
use crate::store::sockets;
use crate::{Error, Result};
use machine::footprint;
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::{Determinism, Times};

/// How long after a guest's readiness its launch is over, in milliseconds: those who waited are told meanwhile, and what tells them is
/// used once more. At once would unmap some of it, or all, as the threads happen to run.
const SETTLING: u16 = 500;

/// Takes charge of `held`. The guest itself is run by [`Owner::run`]. `turn` is the machine's.
pub fn own(mut held: LockedInstance, determinism: &Determinism) -> Arc<Owner> {
    held.name_process();
    let console = Console::new(held.directory());
    let asked = determinism.clone();
    let ask = move |directory: &Path, shutdown| agent::ask_to_shut_down(directory, &asked, shutdown);
    Owner::new(held, console, Box::new(ask), determinism.clone())
}

/// Opens the owner's sockets. `on_ready` is called when the guest's agent says that it is there.
pub fn serve(
    owner: &Arc<Owner>,
    determinism: &Determinism,
    on_ready: impl Fn() + Send + 'static,
) -> Result<()> {
    listen_for_readiness(owner, determinism.clone(), on_ready)?;
    listen_for_end(owner, determinism.clone())?;
    if !determinism.is_enabled() {
        clock_sync::start(owner)?;
    }
    api::serve(Arc::clone(owner))
}

/// The agent says that it is there by connecting; what it sends is of no interest.
fn listen_for_readiness(
    owner: &Arc<Owner>,
    determinism: Determinism,
    on_ready: impl Fn() + Send + 'static,
) -> Result<()> {
    let listener = sockets::bind(owner.directory(), &format!("{}_{READY_PORT}", sockets::VSOCK))?;
    determinism.expect(READY_PORT, Times::Always);
    let owner = Arc::clone(owner);
    sandbox::spawn("readiness", Kind::Control, move || {
        listener.incoming().flatten().for_each(|stream| {
            // Closed before anything else, so that the guest hears of it first in every run.
            drop(stream);
            if let Err(error) = configure(&owner, &determinism) {
                tracing::warn!(%error, "the guest could not be configured");
            }
            on_ready();
            owner.set_ready();
            determinism.give();
            if is_quiet(&listener) {
                footprint::give_back();
            }
        })
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// How long the guest may take to say how its main program has ended, once it has connected.
const END_SAID_WITHIN: Duration = Duration::from_secs(5);

/// Notes how the image's main program has ended. The guest waits for the end of its connection before it powers off.
pub(crate) fn listen_for_end(owner: &Arc<Owner>, determinism: Determinism) -> Result<()> {
    let listener = sockets::bind(owner.directory(), &format!("{}_{END_PORT}", sockets::VSOCK))?;
    determinism.expect(END_PORT, Times::Always);
    let owner = Arc::clone(owner);
    sandbox::spawn("end", Kind::Control, move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(END_SAID_WITHIN));
            // What is no such frame says nothing.
            if let Ok(Some(frame)) = read_frame(&mut stream)
                && frame.kind == FrameKind::Ended
                && let Ok(ended) = frame.message::<Ended>()
            {
                owner.set_exited(ended.status());
            }
            drop(stream);
            determinism.give();
        }
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// Whether the launch is over: who waited for the guest has been told, and it has not started anew meanwhile.
fn is_quiet(listener: &impl AsFd) -> bool {
    let mut next = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut next, SETTLING) == Ok(0)
}

/// Gives the guest what belongs to this instance, unless there is nothing. cloud-init, where the image has it, asks the
/// metadata service itself; the agent knows.
fn configure(owner: &Owner, determinism: &Determinism) -> Result<()> {
    let record = owner.record();
    let user_data = network::user_data(owner.directory())?;
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
    agent::request(owner.directory(), determinism, &request).map(drop)
}
