//! Exit statuses, and how an error reaches a person.
//!
//! | status | meaning |
//! |---|---|
//! | *n* | `COMMAND` (`run … -- COMMAND`, `exec`), or the command of a container image (`run`), ended with status *n*, or 128 + the number of the signal that ended it |
//! | 0 | the guest powered off |
//! | 121 | the guest's kernel panicked |
//! | 122 | the guest's processor shut down (triple fault) |
//! | 123 | the guest was ended without its consent |
//! | 124 | what was to be waited for did not happen in time |
//! | 125 | `vmm` failed, or was called wrongly |
//! | 126 | `COMMAND` is there but cannot be executed |
//! | 127 | `COMMAND` is not there |
//!
//! 124 to 127 are those of `timeout`, `docker run` and the shell.

use std::io::Write;

use super::output;
use crate::instance::Error;
use crate::instance::record::Ending;

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    /// All went well.
    pub const OK: Status = Status(0);
    /// The guest's kernel panicked.
    pub const PANICKED: Status = Status(121);
    /// The guest's processor shut down.
    pub const CRASHED: Status = Status(122);
    /// The guest was ended without its consent.
    pub const KILLED: Status = Status(123);
    /// Waiting took too long.
    pub const TIMED_OUT: Status = Status(124);
    /// `vmm` itself failed.
    pub const VMM_FAILED: Status = Status(125);

    /// The command is there but cannot be executed.
    pub const NOT_EXECUTABLE: Status = Status(126);
    /// The command is not there.
    pub const NOT_FOUND: Status = Status(127);

    /// The status of a command in the guest.
    pub const fn of_command(code: u8) -> Status {
        Status(code)
    }
}

impl From<Status> for u8 {
    fn from(status: Status) -> u8 {
        status.0
    }
}

impl From<&Ending> for Status {
    fn from(ending: &Ending) -> Status {
        match ending {
            Ending::PoweredOff => Status::OK,
            Ending::Exited(status) => Status::of_command(*status),
            Ending::Panicked(_) => Status::PANICKED,
            Ending::Crashed => Status::CRASHED,
            Ending::Killed => Status::KILLED,
            Ending::Failed(_) | Ending::Lost => Status::VMM_FAILED,
        }
    }
}

/// An error that says itself what to try.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Advice {
    message: String,
    advice: String,
}

impl Advice {
    /// What failed and why, and what to try.
    pub fn new(message: impl Into<String>, advice: impl Into<String>) -> Advice {
        Advice {
            message: message.into(),
            advice: advice.into(),
        }
    }
}

/// What was to be waited for did not happen in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TimedOut(pub String);

/// Prints what failed, why, and what to try.
pub fn report(error: &anyhow::Error) -> Status {
    complain(error);
    if error.is::<TimedOut>() {
        Status::TIMED_OUT
    } else {
        Status::VMM_FAILED
    }
}

/// Prints an error without ending.
pub fn complain(error: &anyhow::Error) {
    let style = output::Style::of(&std::io::stderr());
    let mut text = format!("{}: {}\n", style.bad("vmm"), sentence(error));
    if let Some(advice) = advice(error) {
        text += &format!("  {}: {advice}\n", style.dim("try"));
    }
    // Nothing is left to do when even that fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What failed and why. An error that tells its cause in its own words is not followed by the cause once more.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The first piece of advice in the chain of causes.
fn advice(error: &anyhow::Error) -> Option<String> {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<Error>() {
            Some(error) => error.hint(),
            None => match cause.downcast_ref::<crate::bench::Error>() {
                Some(error) => error.hint().map(str::to_owned),
                None => cause.downcast_ref::<Advice>().map(|a| a.advice.clone()),
            },
        })
}

/// Help and version go to standard output with status 0; a wrong command line is `vmm`'s failure.
pub fn usage(error: &clap::Error) -> Status {
    let _ = error.print();
    if error.use_stderr() {
        Status::VMM_FAILED
    } else {
        Status::OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::from(Error::file("opening", std::path::Path::new("/x"))(missing()));
        let error = error.context("cannot terminate web");
        assert_eq!(
            sentence(&error),
            format!("cannot terminate web: opening /x failed: {}", missing())
        );
        let plain = anyhow::Error::from(missing()).context("reading it");
        assert_eq!(sentence(&plain), format!("reading it: {}", missing()));
    }
}
