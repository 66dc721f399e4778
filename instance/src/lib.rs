//! Instances: each a copy of an AMI with a root volume, a state directory, a process and a control socket of
//! its own.
//!
//! There is no daemon. The process that runs a guest, the *instance process*, holds a lock in the instance's
//! directory, and the kernel releases that lock however the process ends. So two facts give the state of an
//! instance: its record, and whether the lock is held ([`store`]).
//!
//! Begin with [`service`], the interface that the command line uses, and follow one request down; or with
//! [`process::instance_process`] for the run of a guest.
//!
//! | layer | what |
//! |---|---|
//! | `store` | files on disk: records, identifiers, locks, directories |
//! | `images` | opening AMI files, the image store, removing the identity from a copy |
//! | `process` | the instance process: launch, machine, confinement, console, network |
//! | `guest` | the guest's agent: requests to it, and its reports |
//! | `api` | the control socket of a running instance: server and client |
//! | `service` | requests and answers in plain structs |
//!
//! A layer uses those above it in the table and none below; `tests/layers.rs` checks that. [`Error`] is used
//! by all of them.
//!
//! The crate uses `machine`, `ami` and the protocol of `guest-init`. It knows no command line and no
//! terminal, reads no environment variable for a decision, and prints nothing: messages for people are
//! returned or, from the instance process, logged.

pub mod api;
pub mod error;
pub mod guest;
pub mod images;
pub mod process;
pub mod service;
pub mod store;

#[cfg(test)]
pub(crate) mod test_guest;
#[cfg(test)]
pub(crate) mod test_image;

pub use error::{Code, Error};
pub use store::id::{InstanceId, VolumeId};
pub use store::record::Record;
pub use store::state::{Event, State};

/// The result of what this crate does.
pub type Result<T> = std::result::Result<T, Error>;
