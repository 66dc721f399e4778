//! The image's main program: a container's command. It has the console as `docker run -it` would give it a
//! terminal, and the machine ends with it.

use std::io;

use nix::sys::termios::tcdrain;
use nix::unistd::{Pid, Uid, fchown};

use super::power::{self, End};
use super::{mounts, supervise};
use crate::agent;
use crate::config::Service;
use crate::proto::Ended;

/// What shells and container engines say of a command that is not there, that cannot be run, and of all other
/// failures.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

/// Starts it with the console as its terminal.
pub fn start(service: &Service, console: &str) -> io::Result<Pid> {
    let (mut command, user) = supervise::command_of(service)?;
    let terminal = supervise::open_terminal(console)?;
    // So that a program may open /dev/stdout again, which is this device, as login(1) does for its user.
    let _ = fchown(&terminal, Some(Uid::from_raw(user.uid)), None);
    if !service.environment.contains_key("TERM") {
        command.env("TERM", supervise::terminal_kind());
    }
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    user.run(&mut command, true);
    supervise::spawn(command)
}

/// Ends the machine whose main program could not be started; the console says why.
pub fn end_without(service: &Service, error: &io::Error, console: &str) -> ! {
    let program = service.command.first().map_or("", String::as_str);
    mounts::print(&format!("guest-init: {program} did not start: {error}"));
    end(Ended::Exited(status_of(error)), console)
}

/// The exit status of a program that could not be started.
fn status_of(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::PermissionDenied => NOT_EXECUTABLE,
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => NOT_EXECUTABLE,
        _ => FAILED,
    }
}

/// Ends the machine with its main program.
pub fn end(ended: Ended, console: &str) -> ! {
    // What it has printed is to leave the machine before the machine stops.
    if let Ok(terminal) = supervise::open_terminal(console) {
        let _ = tcdrain(&terminal);
    }
    agent::report_end(ended);
    power::shut_down(End::Off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_start_has_a_shells_status() {
        for (error, status) in [
            (io::Error::from_raw_os_error(libc::ENOENT), 127),
            (io::Error::from_raw_os_error(libc::EACCES), 126),
            (io::Error::from_raw_os_error(libc::ENOEXEC), 126),
            (io::Error::other("there is no user x"), 125),
        ] {
            assert_eq!(status_of(&error), status);
        }
    }
}
