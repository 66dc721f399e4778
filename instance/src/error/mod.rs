//! What can go wrong with instances and images. The first line of each variant's description is its message.
//!
//! A message says what failed and why. What to try depends on how the library is used, so its users say that.
//! Programs tell errors apart by their [`Code`].

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use displaydoc::Display;

use crate::store::pause::{NoSpace, Paused};
use crate::store::state::{Event, State};
use machine::block::space::left;

mod code;
mod remote;

pub use code::Code;
pub use remote::{AgentError, CallError};

/// Why something about an instance or an image did not work.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {what} {path} failed: {source}
    File {
        /// The step, as a gerund: `reading`, `creating`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: FileError,
    },
    /// {what} failed: {source}
    Os {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// {0:?} is not a valid {1}
    Malformed(String, &'static str),
    /// there is no instance {0:?}
    NoInstance(String),
    /// {text:?} could mean any of {candidates}
    Ambiguous {
        /// What was given.
        text: String,
        /// The ids that it could mean.
        candidates: String,
        /// Whether they are of images.
        image: bool,
    },
    /// the name {name:?} belongs to {holder} already
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// The instance that has it.
        holder: String,
    },
    /// {id} is {state}: `{event}` is not possible in this state
    Transition {
        /// The instance.
        id: String,
        /// Its state.
        state: State,
        /// What was asked of it.
        event: Event,
    },
    /// {0} is not stopped: this is changed while an instance is stopped
    NotStopped(String),
    /// {0} was hibernated: its guest goes on with the processors and memory that it had; start and stop it before
    OtherMachine(String),
    /// {0} is in use by another command
    Busy(String),
    /// the record of {id} cannot be read: {source}
    Damaged {
        /// The instance, by its directory's name.
        id: String,
        /// Why.
        source: RecordError,
    },

    /// there is no image {0:?}
    NoImage(String),
    /// {0} is not a regular file
    NotAFile(PathBuf),
    /// the image {image} is in use: the root volume of {users} still reads from it
    ImageInUse {
        /// The image's id.
        image: String,
        /// The instances that read from it.
        users: String,
    },
    /// {path} is now image {now}, but the instance was launched from {then}
    ImageChanged {
        /// The file.
        path: PathBuf,
        /// The id of what is there.
        now: String,
        /// The id of what the instance was launched from.
        then: String,
    },
    /// {path} is for {image}: KVM runs guests for {host}, as this host, and the software processor for x86_64 and i386
    ForeignImage {
        /// The image's file.
        path: PathBuf,
        /// The image's architecture.
        image: ami::Architecture,
        /// The host's architecture, as the kernel calls it.
        host: &'static str,
    },
    /// {0}
    Ami(#[from] ami::Error),

    /// user data may have {0} KiB at most
    UserDataTooLong(u64),
    /// an instance has at most {0} volumes
    TooManyVolumes(usize),
    /// an instance has at most {0} tags
    TooManyTags(usize),
    /// the tag {key:?} is too long: a key has 1 to {max_key} characters, a value at most {max_value}
    TagLength {
        /// The key.
        key: String,
        /// Most characters of a key.
        max_key: usize,
        /// Most characters of a value.
        max_value: usize,
    },
    /// a name belongs to one instance
    NameForSeveral,
    /// a port of this host belongs to one instance
    PortForSeveral,
    /// ports can be published on the built-in network only
    PortsWithoutNetwork,
    /// KVM cannot count instructions
    KvmCannotCount,
    /// the number of CPUs must be 1 where instructions are counted, not {0}
    CountingSeveralCpus(u32),
    /// limits use this host's time, and cannot be used where instructions are counted as time
    CountingWithLimits,

    /// the launch of {id} failed: {reason}
    Launch {
        /// The instance.
        id: String,
        /// What its process says of it.
        reason: String,
    },
    /// {what} of {id} failed: it is {state}
    NotRunning {
        /// The step.
        what: &'static str,
        /// The instance.
        id: String,
        /// Its state.
        state: State,
    },
    /// {what} of {id} failed: it is {paused}
    StandsStill {
        /// The step.
        what: &'static str,
        /// The instance.
        id: String,
        /// Why it is paused.
        paused: Box<Paused>,
    },
    /// {what} of {id} failed: its agent has not connected yet
    NotReady {
        /// The step.
        what: &'static str,
        /// The instance.
        id: String,
    },
    /// {id} is {paused}
    IsPaused {
        /// The instance.
        id: String,
        /// Why it is paused.
        paused: Box<Paused>,
    },
    /// {0} is paused already
    PausedAlready(String),
    /// {0} is not paused
    NotPaused(String),
    /// {id} cannot be resumed: {full}; try to free space there
    StillFull {
        /// The instance.
        id: String,
        /// What is full.
        full: Box<NoSpace>,
    },
    /// {0} has ended
    HasEnded(String),
    /// {0} ended before its agent answered
    EndedEarly(String),
    /// the agent of {id} has not answered within {seconds} s
    AgentSilent {
        /// The instance.
        id: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// {id}: waiting for port {port}: {source}
    Port {
        /// The instance.
        id: String,
        /// The port.
        port: u16,
        /// Why it cannot be waited for.
        source: Box<Error>,
    },
    /// nothing listens on port {port} of {id} after {seconds} s
    PortSilent {
        /// The instance.
        id: String,
        /// The port.
        port: u16,
        /// How long it was waited for.
        seconds: u64,
    },
    /// the process that runs {id} does not answer: {source}
    Unresponsive {
        /// The instance.
        id: String,
        /// Why.
        source: CallError,
    },
    /// {reason}
    Declined {
        /// What kind of refusal it is.
        code: Code,
        /// The instance process's words.
        reason: String,
    },

    /// {label} is {paused}: its guest cannot flush its file systems
    CapturePaused {
        /// The instance.
        label: String,
        /// Why it is paused.
        paused: Box<Paused>,
    },
    /// {0} is removed when it stops
    CaptureRemoved(String),
    /// {0} is removed when it stops, and could not be started again
    HibernationRemoved(String),
    /// {0} has no root volume
    NoRoot(String),
    /// the identity could not be removed from the copy; its console says:{0}
    Scrub(String),

    /// {0} has volumes besides its root: an image holds the content of the root only
    SnapshotVolumes(String),
    /// cloud-init in {0} configures an instance when it boots, and a guest that goes on does not boot
    SnapshotCloudInit(String),
    /// the agent in {0} is of an older release: it cannot renew a guest that goes on
    SnapshotAgent(String),
    /// the guest of {id} cannot go on: {why}
    NotRestored {
        /// The instance.
        id: String,
        /// Why not.
        why: String,
    },
    /// the state of the guest in the image has {length} bytes, more than {max}
    StateTooLong {
        /// Its length.
        length: u64,
        /// What is read.
        max: u64,
    },
    /// the guest could not be saved or restored: {0}
    Snapshot(#[from] machine::snapshot::Error),

    /// the network: {0}
    Network(#[from] machine::net::Error),
    /// the guest's agent: {0}
    Agent(#[from] AgentError),
    /// the machine could not be built or run: {0}
    Machine(#[from] machine::Error),
    /// the machine could not be built or run: {0}
    Accelerator(#[from] machine::accel::Error),
    /// the machine could not be built or run: {0}
    Part(#[from] machine::memory::PartError),
    /// {0}
    Volume(#[from] machine::block::volume::Error),
    /// {0}
    Confinement(#[from] machine::sandbox::Error),
    /// {0}
    Removal(String),
}

/// Why a record cannot be read.
#[derive(Debug, Display, thiserror::Error)]
pub enum RecordError {
    /// {0}
    Read(#[from] io::Error),
    /// {0}
    Parse(#[from] serde_json::Error),
    /// its format is {found}, this program knows {known}
    Format {
        /// The record's format.
        found: u32,
        /// The newest format that can be read.
        known: u32,
    },
    /// it is that of {0}
    OfAnother(String),
}

/// Why a step on a file failed: the operating system's reason, and where there was no space, how much was left.
#[derive(Debug)]
pub struct FileError {
    source: io::Error,
    left: String,
}

impl Deref for FileError {
    type Target = io::Error;

    fn deref(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.source, self.left)
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Error {
    /// For `map_err` on file operations.
    pub fn file(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| {
            let left = left(&path, &source);
            let source = FileError { source, left };
            Error::File { what, path, source }
        }
    }

    /// For `map_err` on other system calls.
    pub fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Os { what, source }
    }
}
