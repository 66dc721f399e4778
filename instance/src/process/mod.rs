//! What runs a guest: the process of an instance, from its record to the guest's end.
//!
//! | file | what |
//! |---|---|
//! | `launch` | from an image to a record, a directory and volumes |
//! | `startup` | what the program does first |
//! | `preflight` | what a launch would be refused for |
//! | `detach` | the instance process apart from the command that launched it |
//! | `instance_process` | its main loop: run the guest, again after a reboot, until it ends for good |
//! | `assemble`, `guest_run` | the machine of one run, and its run |
//! | `confine`, `descriptors`, `janitor` | what the process may reach, and what removes its directory |
//! | `console`, `consoles`, `network`, `space_watch` | what the guest's devices are connected to |

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
mod search;
mod space_watch;
pub mod startup;
pub(crate) mod subscription;
