//! What stands around a guest while it runs: console log, control socket, readiness.

use std::sync::Arc;

use guest_init::proto::READY_PORT;

use super::api;
use super::console::Console;
use super::owner::Owner;
use super::store::Held;
use super::{Error, Result, agent, sockets};

/// Takes charge of `held` and opens its control socket. The guest itself is run by [`Owner::run`].
/// `on_ready` is called when the guest's agent says that it is there.
pub fn start(held: Held, on_ready: impl Fn() + Send + 'static) -> Result<Arc<Owner>> {
    let directory = held.directory().to_path_buf();
    let console = Console::new(&directory).map_err(Error::file("opening the console log in", &directory))?;
    let owner = Owner::new(held, console, Box::new(agent::ask_to_shut_down));
    listen_for_readiness(&owner, on_ready)?;
    api::serve(Arc::clone(&owner))?;
    Ok(owner)
}

/// The agent says that it is there by connecting; what it sends is of no interest.
fn listen_for_readiness(owner: &Arc<Owner>, on_ready: impl Fn() + Send + 'static) -> Result<()> {
    let listener = sockets::bind(owner.directory(), &format!("{}_{READY_PORT}", sockets::VSOCK))?;
    let owner = Arc::clone(owner);
    std::thread::Builder::new()
        .name("readiness".into())
        .spawn(move || {
            listener.incoming().flatten().for_each(|_| {
                on_ready();
                owner.set_ready();
            })
        })
        .map_err(Error::os("starting a thread"))?;
    Ok(())
}
