//! What can go wrong with instances and images, and what a person may try.

use std::io;
use std::path::{Path, PathBuf};

use crate::store::state::{Event, State};
use machine::block::space::explain;

/// Why something about an instance or an image did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// {what} {path} failed: {source}
    #[error("{what} {path} failed: {}", explain(path, source))]
    File {
        /// The step, as a gerund: `reading`, `creating`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// {what} failed: {source}
    #[error("{what} failed: {source}")]
    Os {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// {0:?} is not a valid id or name
    #[error("{0:?} is not a valid {1}")]
    Malformed(String, &'static str),
    /// there is no instance {0}
    #[error("there is no instance {0:?}")]
    NoInstance(String),
    /// {text:?} means more than one instance
    #[error("{text:?} could mean any of {candidates}")]
    Ambiguous {
        /// What was typed.
        text: String,
        /// The ids that it could mean.
        candidates: String,
    },
    /// the name {name:?} belongs to {holder}
    #[error("the name {name:?} belongs to {holder} already")]
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// The instance that has it.
        holder: String,
    },
    /// {id} is {state}
    #[error("{id} is {state}: it cannot take the step `{event}`")]
    Transition {
        /// The instance.
        id: String,
        /// Its state.
        state: State,
        /// What was asked of it.
        event: Event,
    },
    /// {0} is in use by another command
    #[error("{0} is in use by another command")]
    Busy(String),
    /// the record of {id} cannot be read
    #[error("the record of {id} cannot be read: {reason}")]
    Damaged {
        /// The instance, by its directory's name.
        id: String,
        /// Why.
        reason: String,
    },
    /// there is no image {0}
    #[error("there is no image {0:?}")]
    NoImage(String),
    /// the image {image} is in use by {users}
    #[error("the image {image} is in use: the root volume of {users} still reads from it")]
    ImageInUse {
        /// The image's id.
        image: String,
        /// The instances that read from it.
        users: String,
    },
    /// {what} of {id} failed: {reason}
    #[error("{what} of {id} failed: {reason}")]
    Guest {
        /// The step.
        what: &'static str,
        /// The instance.
        id: String,
        /// Why.
        reason: String,
    },
    /// the network: {0}
    #[error("the network: {0}")]
    Network(String),
    /// the guest's agent: {0}
    #[error("the guest's agent: {0}")]
    Agent(String),
    /// the owner of {id} does not answer
    #[error("the process that runs {id} does not answer: {reason}")]
    Owner {
        /// The instance.
        id: String,
        /// Why.
        reason: String,
    },
    /// the machine could not be built or run: {0}
    #[error("the machine could not be built or run: {0}")]
    Machine(String),
    /// the identity could not be removed from the copy
    #[error("the identity could not be removed from the copy; its console says:\n{0}")]
    Scrub(String),
    /// an AMI
    #[error(transparent)]
    Ami(#[from] ami::Error),
    /// a volume
    #[error(transparent)]
    Volume(#[from] machine::block::volume::Error),
    /// {0}
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub fn file(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { what, path, source }
    }

    /// For `map_err` on other system calls.
    pub fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Os { what, source }
    }

    /// What a person may try, if there is something worth saying.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoInstance(_) | Error::Ambiguous { .. } => "`vmm ps -a` lists all instances".into(),
            Error::NameTaken { holder, .. } => {
                format!(
                    "choose another name, or `vmm terminate {holder}` if that instance is no longer needed"
                )
            }
            Error::Transition { id, state, .. } => match state {
                State::Stopped => format!("`vmm start {id}`"),
                State::Running => format!("`vmm stop {id}` first"),
                State::Pending | State::Stopping => {
                    format!("wait until it has settled: `vmm ps -a` shows {id}")
                }
                State::Terminated => "launch a new one with `vmm run`".into(),
            },
            Error::Busy(_) => "try again in a moment; `vmm ps -a` shows what runs".into(),
            Error::Damaged { id, .. } => format!("`vmm terminate {id}` removes what is left of it"),
            Error::NoImage(_) => "`vmm images` lists the images; a path to an AMI file works as well".into(),
            Error::ImageInUse { users, .. } => {
                format!("terminate {users}, or use `--force`, which completes their volumes first")
            }
            Error::Scrub(_) => "`--keep-identity` makes the image with it, for yourself".into(),
            Error::Ami(error) => error.hint().into(),
            Error::Owner { id, .. } => format!("`vmm stop --time 0 {id}` ends it at once"),
            Error::File { source, .. } | Error::Os { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => "make room on the file system".into(),
                io::ErrorKind::PermissionDenied => {
                    "check the permissions of the file and its directories".into()
                }
                _ => return None,
            },
            _ => return None,
        })
    }
}
