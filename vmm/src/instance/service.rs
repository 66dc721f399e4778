//! What stands around a guest while it runs: console log, control socket, readiness.

use std::sync::Arc;

use super::api;
use super::console::Console;
use super::owner::{Ask, Owner};
use super::store::Held;
use super::{Error, Result, sockets};

/// The host's vsock port that the guest's agent connects to when it is ready.
pub const READY_PORT: u32 = 1025;

/// Takes charge of `held` and opens its control socket. The guest itself is run by [`Owner::run`].
pub fn start(held: Held, ask: Ask) -> Result<Arc<Owner>> {
    let directory = held.directory().to_path_buf();
    let console = Console::new(&directory).map_err(Error::file("opening the console log in", &directory))?;
    let owner = Owner::new(held, console, ask);
    listen_for_readiness(&owner)?;
    api::serve(Arc::clone(&owner))?;
    Ok(owner)
}

/// The agent says that it is there by connecting; what it sends is of no interest.
fn listen_for_readiness(owner: &Arc<Owner>) -> Result<()> {
    let listener = sockets::bind(owner.directory(), &format!("{}_{READY_PORT}", sockets::VSOCK))?;
    let owner = Arc::clone(owner);
    std::thread::Builder::new()
        .name("readiness".into())
        .spawn(move || listener.incoming().flatten().for_each(|_| owner.set_ready()))
        .map_err(Error::os("starting a thread"))?;
    Ok(())
}
