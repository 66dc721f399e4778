//! What can go wrong between this process, the one that runs an instance, and the guest's agent.

use std::io;

use displaydoc::Display;
use guest_init::proto::{self, Kind};

use super::Error;
use crate::api::http::Malformed;

/// Why the process that runs an instance could not be asked.
#[derive(Debug, Display, thiserror::Error)]
pub enum CallError {
    /// it timed out
    TooLong,
    /// it has not stopped in time
    NotStopped,
    /// {0}
    Connect(#[source] Box<Error>),
    /// {0}
    Io(#[source] io::Error),
    /// {0}
    Http(#[from] Malformed),
    /// {0}
    Body(#[from] serde_json::Error),
}

impl From<io::Error> for CallError {
    /// A time limit is reported by the kernel as a stream that would block.
    fn from(error: io::Error) -> CallError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => CallError::TooLong,
            _ => CallError::Io(error),
        }
    }
}

/// Why the guest's agent could not be asked, or did not do what it was asked for.
#[derive(Debug, Display, thiserror::Error)]
pub enum AgentError {
    /// nothing listens there: no agent in the guest, or not yet
    Absent,
    /// it has not answered within {0} s
    Silent(u64),
    /// unexpected answer {0:?}
    OddAnswer(String),
    /// it sent {0:?}, which only the host may send
    Unexpected(Kind),
    /// it answered {0} instead of saying that it is done
    NotDone(String),
    /// the guest went away in the middle of a request
    Gone,
    /// {0}
    Refused(String),
    /// {0}
    Protocol(#[from] proto::Error),
    /// {0}
    Io(#[source] io::Error),
    /// the server closed the connection without an answer
    NoGreeting,
    /// the program that listens there is not an SSH server
    NotSsh,
}
