//! Instances: one live copy of an AMI each, with its own root volume, state directory, process and control socket.
//!
//! There is no daemon. The process that runs a guest *owns* its instance: it holds a lock in the state directory for
//! as long as it lives, and the kernel drops that lock however the process ends. So any later command can tell the
//! truth from two facts, the record on disk and whether the lock is held; see [`store`].

pub mod api;
pub mod guest;
pub mod images;
pub mod process;
pub mod service;
pub mod store;
pub mod terminal;

mod error;
#[cfg(test)]
pub(crate) mod test_image;

pub use error::Error;
pub use store::id::{InstanceId, VolumeId};
pub use store::record::Record;
pub use store::state::{Event, State};

/// The result of what this layer does.
pub type Result<T> = std::result::Result<T, Error>;
