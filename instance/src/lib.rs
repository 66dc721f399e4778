//! Instances: each a copy of an AMI with a root volume, a state directory, a process and a control socket of
//! its own.
//!
//! There is no daemon. The process that runs a guest, the *instance process*, holds a lock in the instance's
//! directory, and the kernel drops that lock however the process ends. So two facts tell every later command
//! where an instance stands: its record, and whether the lock is held ([`store`]).
//!
//! Begin with [`service`], which is what the command line calls, and follow one request down; or with
//! [`process::instance_process`] for what happens while a guest runs.
//!
//! | layer | what |
//! |---|---|
//! | `store` | what is kept: records, identifiers, locks, directories |
//! | `images` | AMI files as a launch sees them, the store of them, the identity removed from a copy |
//! | `process` | what runs a guest: launch, machine, confinement, console, network |
//! | `guest` | the guest's agent: requests to it, and what it says of itself |
//! | `api` | the control socket of a running instance: server and client |
//! | `service` | what can be asked for, in plain structs |
//!
//! A layer uses those above it in the table and none below; `tests/layers.rs` holds the code to that.
//! [`Error`] is for all of them.
//!
//! The crate uses `machine`, `ami` and the protocol of `guest-init`. It knows no command line and no
//! terminal, reads no environment variable for a decision, and prints nothing: what is for a person is
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
