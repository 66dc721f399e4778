//! Running a program in the root: this program starts itself, enters the root and executes the other.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::unistd::{chdir, chroot};

use super::job::HELPER;

/// The role of the process that becomes a program in the root.
pub const ENTER: &str = "enter";

/// A command that runs a program in the root.
pub fn in_root(root: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([HELPER, ENTER]).arg(root);
    command
}

/// Enters the root and becomes the program.
pub fn enter(root: &Path, program: &OsStr, rest: &[&OsString]) -> ExitCode {
    if let Err(e) = chroot(root).and_then(|()| chdir("/")) {
        eprintln!("cannot enter the root: {e}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(rest).exec();
    eprintln!("cannot run {}: {error}", program.display());
    ExitCode::FAILURE
}
