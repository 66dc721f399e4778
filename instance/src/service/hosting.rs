//! The process of an instance from the inside: what is set up around a guest while it runs.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::api;
use crate::guest::{agent, clock_sync, readiness};
use crate::process::console::Console;
use crate::process::instance_process::InstanceProcess;
use crate::store::LockedInstance;
use machine::virtio::determinism::Determinism;

/// Takes charge of `held`. The guest itself is run by [`InstanceProcess::run`]. `determinism` is the machine's.
pub fn take_charge(mut held: LockedInstance, determinism: &Determinism) -> Arc<InstanceProcess> {
    held.name_process();
    let console = Console::new(held.directory());
    let asked = determinism.clone();
    let ask = move |directory: &Path, shutdown| agent::ask_to_shut_down(directory, &asked, shutdown);
    InstanceProcess::new(held, console, Box::new(ask), determinism.clone())
}

/// Opens the instance process's sockets. `on_ready` is called when the guest's agent says that it is there.
pub fn serve(
    process: &Arc<InstanceProcess>,
    determinism: &Determinism,
    on_ready: impl Fn() + Send + 'static,
) -> Result<()> {
    readiness::listen_for_readiness(process, determinism.clone(), on_ready)?;
    readiness::listen_for_end(process, determinism.clone())?;
    if !determinism.is_enabled() {
        clock_sync::start(process)?;
    }
    api::serve(Arc::clone(process))
}
