//! Instances: one live copy of an AMI each, with its own root volume, state directory, process and control socket.
//!
//! There is no daemon. The process that runs a guest *owns* its instance: it holds a lock in the state directory for
//! as long as it lives, and the kernel drops that lock however the process ends. So any later command can tell the
//! truth from two facts, the record on disk and whether the lock is held; see [`store`].

pub mod agent;
pub mod api;
pub mod assemble;
pub mod capture;
pub mod client;
mod clock_sync;
pub mod confine;
pub mod console;
mod consoles;
mod descriptors;
pub mod detach;
pub mod home;
pub mod http;
pub mod id;
pub mod image;
pub mod images;
pub mod janitor;
pub mod keys;
pub mod launch;
pub mod limits;
pub mod lock;
mod measure;
pub mod network;
pub mod owner;
pub mod pause;
pub mod per_run;
pub mod preflight;
pub mod process;
pub mod record;
mod replace;
mod reserve;
pub mod scrub;
mod search;
pub mod service;
pub mod shutdown;
pub mod size;
pub mod sockets;
mod space_watch;
pub mod sparse_copy;
pub mod state;
pub mod store;
pub mod subscription;
pub mod terminal;

mod error;
#[cfg(test)]
pub(crate) mod test_image;

pub use error::Error;
pub use id::{InstanceId, VolumeId};
pub use record::Record;
pub use state::{Event, State};

/// The result of what this layer does.
pub type Result<T> = std::result::Result<T, Error>;
