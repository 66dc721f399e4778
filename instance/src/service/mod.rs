//! The interface of this crate: requests and answers in plain structs, and errors with a
//! [`Code`](crate::Code).
//!
//! The command line calls it, and a server for EC2's API can. Nothing here prints, reads an environment
//! variable or uses a terminal. Requests name an instance or image by its id, the beginning of its id, or its
//! name.
//!
//! | file | requests |
//! |---|---|
//! | [`run_instances`](Service::run_instances), `launch.rs` | launches, and what they would be refused for |
//! | `instances.rs` | describe, start, stop, reboot, pause, resume, terminate |
//! | `modify.rs` | tags; size, user data and shutdown behaviour of a stopped instance |
//! | `guest.rs` | waiting for the guest, its agent, its console, its ports |
//! | `images.rs` | register, describe, tag, export, deregister, create of an instance |
//! | `documents.rs` | what the metadata service says, a stop without waiting, what a calling program remembers |
//! | `snapshot.rs`, `working_set.rs` | warm image of an instance, of an image; clones; hibernation |
//! | [`hosting`] | for the instance process: run the guest and serve its control socket |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use instance::service::{RunInstances, Service, TerminateInstance, WaitFor};
//! use instance::store::home::Home;
//!
//! # fn main() -> Result<(), instance::Error> {
//! let home = Home::new("/var/lib/kiln/state".into(), "/var/lib/kiln/data".into(), None);
//! let service = Service::new(home);
//! let reservation = service.run_instances(&RunInstances::of("hello"))?;
//! for record in &reservation.instances {
//!     service.wait_for(record.id.as_str(), WaitFor::Agent, Duration::from_secs(120))?;
//! }
//! let request = TerminateInstance {
//!     instance: reservation.instances[0].id.to_string(),
//!     timeout: Duration::from_secs(10),
//! };
//! match service.terminate_instance(&request) {
//!     Err(error) if error.code() == instance::Code::InstanceNotFound => println!("it is gone already"),
//!     done => drop(done?),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A launched instance runs in a process of its own, which is this program with the arguments `own ID JSON`
//! ([`detach`](crate::process::detach)): a program that launches instances hands these to [`hosting`], and
//! begins with [`startup`](crate::process::startup).

mod capture;
mod documents;
mod guest;
pub mod hosting;
mod images;
mod instances;
mod launch;
mod modify;
mod shutdown;
mod snapshot;
#[cfg(test)]
mod tests;
mod working_set;

use crate::api::client::Client;
use crate::images::Images;
use crate::store::Store;
use crate::store::home::Home;
use crate::{InstanceId, Result};

pub use documents::metadata;
pub use guest::{ReadyInstance, WaitFor};
pub use images::{CreateImage, CreatedImage, DeregisterImage, RegisterImage};
pub use instances::{
    DescribeInstances, DescribedInstances, StartInstance, StopInstance, TerminateInstance, Terminated,
};
pub use launch::{Launched, Launches, Reservation, RunInstances};
pub use modify::{MachineSize, ModifyInstance};
pub use snapshot::{CloneInstance, SnapshotInstance, Snapshotted, WarmImage};

/// Instances and images of one user.
#[derive(Debug, Clone)]
pub struct Service {
    store: Store,
    images: Images,
}

impl Service {
    /// What is kept in the directories of `home`, which need not exist yet.
    pub fn new(home: Home) -> Service {
        let images = Images::new(&home);
        let store = Store::new(home);
        Service { store, images }
    }

    /// Where things are kept.
    pub fn home(&self) -> &Home {
        self.store.home()
    }

    /// The records and locks of instances.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The instance that `text` names.
    ///
    /// # Errors
    /// When there is none, or it could be several.
    pub fn find_instance(&self, text: &str) -> Result<InstanceId> {
        self.store.find(text)
    }

    /// The control socket of `id`.
    fn client(&self, id: &InstanceId) -> Client {
        Client::new(id.clone(), self.home().instance(id))
    }
}
