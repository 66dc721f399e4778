//! Instances on disk: records, identifiers, locks, directories.
//!
//! Begin with [`Store`]: the directory of all instances, and how the state of each is derived from its record
//! and its lock.

pub mod documents;
pub mod home;
pub mod id;
pub(crate) mod instances;
pub mod keys;
pub mod limits;
pub(crate) mod lock;
mod locked;
pub mod network;
pub mod pause;
pub(crate) mod process_lock;
pub mod record;
mod record_file;
pub(crate) mod replace;
mod reserve;
pub(crate) mod saved;
pub mod size;
pub mod sockets;
pub mod state;
pub mod tags;

pub use instances::{Entry, Store};
pub(crate) use locked::remove_directory;
pub use locked::{Damaged, LockedInstance};
