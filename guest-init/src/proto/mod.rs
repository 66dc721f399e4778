//! The protocol between the host and the agent over vsock.
//!
//! The agent listens on [`AGENT_PORT`]. A connection carries one [`Request`] and what belongs to it, in
//! frames ([`frame`]). When the guest is ready, it connects once to the host's [`READY_PORT`] and sends
//! [`Ready`]: the host waits for that connection and does not poll.

pub mod frame;
pub mod message;

pub use frame::{Error, Frame, Kind, read_frame, write_frame};
pub use message::{Configure, Ended, Exec, Failure, Ready, Reason, Renew, Request, Size, Terminal};

/// What the console says once a boot with `kiln.scrub=1` has removed the identity and is about to power off.
pub const SCRUBBED: &str = "guest-init: the identity is removed";

/// The agent's vsock port in the guest.
pub const AGENT_PORT: u32 = 1024;

/// The host's vsock port for [`Ready`].
pub const READY_PORT: u32 = 1025;

/// The host's vsock port for the end of the image's main program: the guest sends one frame with [`Ended`]
/// and waits until the connection is closed. A host that does not listen there (an older `vmm`) sees the
/// guest power off and nothing more, and an older guest never connects.
pub const END_PORT: u32 = 1026;

/// What a guest with `kiln.stop=init` prints on its console where it would start the image's PID 1: the end
/// of a boot that every virtual machine monitor shows alike.
pub const STOPPED_AT_INIT: &str = "guest-init: stopped at init";

/// Marks that the guest writes to the boot timer, by their number in the launch timeline.
pub mod mark {
    /// The kernel has started the initramfs.
    pub const KERNEL_READY: u8 = 7;
    /// The root file system is mounted.
    pub const ROOT_MOUNTED: u8 = 8;
    /// PID 1 of the image is about to run.
    pub const INIT: u8 = 9;
    /// The agent takes requests.
    pub const READY: u8 = 10;
}
