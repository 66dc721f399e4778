//! The instance process: from the record of an instance to the end of its guest.
//!
//! | file | what |
//! |---|---|
//! | `launch` | from an image to a record, a directory and volumes |
//! | `startup` | what the program does first |
//! | `preflight` | checks before a launch |
//! | `detach` | starting the instance process in the background |
//! | `instance_process` | its main loop: run the guest, again after a reboot, until it stops |
//! | `assemble`, `guest_run` | the machine of one run, and its run |
//! | `restore` | the saved guest that a run goes on with instead of booting |
//! | `confine`, `descriptors`, `janitor` | the rights of the process, and the helper that removes its directory |
//! | `console`, `consoles`, `network`, `space_watch` | the host's side of the guest's devices |

pub(crate) mod assemble;
pub(crate) mod confine;
pub mod console;
mod consoles;
pub(crate) mod descriptors;
pub mod detach;
pub(crate) mod guest;
mod guest_run;
pub mod instance_process;
pub(crate) mod janitor;
pub mod launch;
mod measure;
pub(crate) mod network;
pub mod per_run;
pub(crate) mod preflight;
pub mod restore;
mod search;
mod space_watch;
pub mod startup;
pub(crate) mod subscription;
