//! What is kept of instances: records, identifiers, locks, directories.

pub mod home;
pub mod id;
pub(crate) mod instances;
pub mod keys;
pub mod limits;
pub mod lock;
pub mod network;
pub mod pause;
pub mod process_lock;
pub mod record;
pub(crate) mod replace;
mod reserve;
pub mod size;
pub mod sockets;
pub mod state;

pub(crate) use instances::remove_directory;
pub use instances::{Damaged, Entry, LockedInstance, Store};
