//! Exit statuses, and how an error reaches a person.
//!
//! | status | meaning |
//! |---|---|
//! | *n* | `COMMAND` (`run … -- COMMAND`, `exec`), or the command of a container image (`run`), ended with status *n*, or 128 + the number of the signal that ended it |
//! | 0 | the guest powered off |
//! | 120 | the output could not be written, to a full disk for example |
//! | 121 | the guest's kernel panicked |
//! | 122 | the guest's processor shut down (triple fault) |
//! | 123 | the guest was killed |
//! | 124 | a wait timed out |
//! | 125 | `vmm` failed, or was called wrongly |
//! | 126 | `COMMAND` exists but cannot be executed |
//! | 127 | `COMMAND` was not found |
//! | 141 | the reader of the output has closed it: 128 + SIGPIPE, without a message |
//!
//! 124 to 127 are those of `timeout`, `docker run` and the shell.

use std::io::{IsTerminal, Write};

use nix::sys::signal::Signal;

use super::stream::{Stream, Unwritten};
use super::{advice, hint, output};
use instance::store::record::Ending;
use instance::{Code, Error};

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    /// All went well.
    pub const OK: Status = Status(0);
    /// The output could not be written.
    pub const UNWRITTEN: Status = Status(120);
    /// The guest's kernel panicked.
    pub const PANICKED: Status = Status(121);
    /// The guest's processor shut down.
    pub const CRASHED: Status = Status(122);
    /// The guest was killed.
    pub const KILLED: Status = Status(123);
    /// A wait timed out.
    pub const TIMED_OUT: Status = Status(124);
    /// `vmm` itself failed.
    pub const VMM_FAILED: Status = Status(125);

    /// The command is there but cannot be executed.
    pub const NOT_EXECUTABLE: Status = Status(126);
    /// The command is not there.
    pub const NOT_FOUND: Status = Status(127);

    /// The reader of the output has closed it: the status of a process that SIGPIPE ends.
    pub const NOT_READ: Status = Status(128 + libc::SIGPIPE as u8);

    /// The status of a process that `signal` ends.
    pub const fn of_signal(signal: Signal) -> Status {
        Status(128 + signal as u8)
    }

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
            Ending::PoweredOff | Ending::Hibernated => Status::OK,
            Ending::Exited(status) => Status::of_command(*status),
            Ending::Panicked(_) => Status::PANICKED,
            Ending::Crashed => Status::CRASHED,
            Ending::Killed => Status::KILLED,
            Ending::Failed(_) | Ending::Lost => Status::VMM_FAILED,
        }
    }
}

/// {message}
///
/// An error that says itself what to try.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
#[ignore_extra_doc_attributes]
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

/// Prints what failed, why, and what to try. A closed reader is not reported.
pub fn report(error: &anyhow::Error) -> Status {
    let unwritten = error.chain().find_map(|cause| cause.downcast_ref::<Unwritten>());
    if unwritten.is_some_and(Unwritten::is_closed_pipe) {
        return Status::NOT_READ;
    }
    complain(error);
    if unwritten.is_some() {
        return Status::UNWRITTEN;
    }
    let codes = error.chain().filter_map(|cause| cause.downcast_ref::<Error>());
    match codes.map(Error::code).any(|code| code == Code::TimedOut) {
        true => Status::TIMED_OUT,
        false => Status::VMM_FAILED,
    }
}

/// Prints an error without ending.
pub fn complain(error: &anyhow::Error) {
    let style = output::Style::of(&std::io::stderr());
    let mut text = format!("{}: {}\n", style.bad("vmm"), sentence(error));
    if let Some(advice) = what_to_try(error) {
        text += &format!("  {}: {advice}\n", style.dim("try"));
    }
    // Nothing is left to do when even that fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What failed and why. The cause of an error whose message contains it already is not printed again.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The first piece of advice in the chain of causes.
fn what_to_try(error: &anyhow::Error) -> Option<String> {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<Error>() {
            Some(error) => advice::of(error),
            None => match cause.downcast_ref::<kiln_benches::Error>() {
                Some(error) => error.hint().map(str::to_owned),
                None => {
                    let advice = cause.downcast_ref::<Advice>().map(|a| a.advice.clone());
                    advice.or_else(|| hint::of(cause))
                }
            },
        })
}

/// An error in one line, with what to try: what is written into the record of an instance whose machine has
/// failed.
pub fn line(error: &Error) -> String {
    let causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| {
        cause.source()
    });
    let hint = causes
        .into_iter()
        .find_map(|cause| match cause.downcast_ref::<Error>() {
            Some(error) => advice::of(error),
            None => hint::of(cause),
        });
    match hint {
        Some(hint) => format!("{error}; try: {hint}"),
        None => error.to_string(),
    }
}

/// Help and version go to standard output with status 0; a wrong command line is `vmm`'s failure.
pub fn usage(error: &clap::Error) -> Status {
    if error.use_stderr() {
        let _ = error.print();
        return Status::VMM_FAILED;
    }
    let text = error.render();
    let printed = match std::io::stdout().is_terminal() {
        true => Stream::Output.put(text.ansi().to_string().as_bytes()),
        false => Stream::Output.put(text.to_string().as_bytes()),
    };
    printed.map_or_else(|error| report(&error.into()), |()| Status::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_output_has_exit_status_120() {
        let lost = |kind: std::io::ErrorKind| {
            let error = anyhow::Error::from(Unwritten::output(kind.into()));
            report(&error.context("i-0 was launched"))
        };
        assert_eq!(lost(std::io::ErrorKind::StorageFull), Status::UNWRITTEN);
        assert_eq!(lost(std::io::ErrorKind::BrokenPipe), Status::NOT_READ);
        assert_eq!(u8::from(Status::NOT_READ), 141);
    }

    #[test]
    fn the_record_of_a_failed_machine_says_what_to_try() {
        let error = |cpu| machine::accel::Error::GicV2 { cpus: cpu, max: 8 };
        let text = line(&Error::from(error(9)));
        assert!(text.contains("8 CPUs, not 9; try: --cpus 8"), "{text}");
        let other = Error::HasEnded("web".into());
        assert_eq!(line(&other), other.to_string());
    }

    #[test]
    fn a_wait_that_times_out_has_exit_status_124() {
        let id = || "i-0".to_owned();
        let silent = Error::AgentSilent { id: id(), seconds: 1 };
        let error = anyhow::Error::from(silent).context("cannot run it");
        assert_eq!(report(&error), Status::TIMED_OUT);
        assert_eq!(report(&Error::EndedEarly(id()).into()), Status::VMM_FAILED);
        let advice = what_to_try(&Error::EndedEarly(id()).into());
        assert!(advice.unwrap().contains("vmm logs i-0"));
    }

    #[test]
    fn no_cause_is_printed_twice() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::from(Error::file("opening", std::path::Path::new("/x"))(missing()));
        let error = error.context("cannot terminate web");
        assert_eq!(
            sentence(&error),
            format!("cannot terminate web: opening /x failed: {}", missing())
        );
        // Where there is no space, a message says how much is left, after its cause.
        let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
        let error = anyhow::Error::from(Error::file("writing", std::path::Path::new("/"))(full()));
        let text = sentence(&error);
        assert_eq!(text.matches(&full().to_string()).count(), 1, "{text}");
        let plain = anyhow::Error::from(missing()).context("reading it");
        assert_eq!(sentence(&plain), format!("reading it: {}", missing()));
    }
}
