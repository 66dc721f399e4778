//! What runs a guest: the process of an instance, from its record to the guest's end.

pub mod assemble;
pub mod confine;
pub mod console;
mod consoles;
mod descriptors;
pub mod detach;
pub mod guest;
pub mod instance_process;
pub mod janitor;
pub mod launch;
mod measure;
pub mod network;
pub mod per_run;
pub mod preflight;
mod search;
mod space_watch;
pub mod subscription;
