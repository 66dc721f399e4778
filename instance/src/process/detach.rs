//! Running an instance in a process of its own, away from the terminal.
//!
//! The launching command starts this program anew with the instance's lock as its standard input and a pipe
//! as its standard output. The lock passes with its descriptor, so there is no moment at which nobody owns
//! the instance; the pipe carries one line, which says that the guest runs or why it does not.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::unistd::{dup2_stdin, dup2_stdout, setsid};

use crate::process::descriptors;
use crate::process::per_run::PerRun;
use crate::store::lock::Lock;
use crate::store::record::Ending;
use crate::store::{LockedInstance, Store};
use crate::{Error, Event, InstanceId, Result};

/// The hidden command that a detached instance process is started with.
pub const COMMAND: &str = "own";
/// Where a detached instance process's own messages go.
pub const LOG: &str = "vmm.log";

const RUNNING: &str = "running";
/// It runs, but no saved guest goes on; what follows is why.
const BOOTS: &str = "running, booted: ";
/// All that the new process is given of its caller's environment: where things are kept, and how much it
/// logs. The rest may hold secrets, and an instance runs for months.
const KEPT: [&str; 6] = [
    "HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "KILN_LOG",
    "RUST_BACKTRACE",
];

/// Starts the instance process of `held`, which is pending, and returns when its guest runs. `per_run` is
/// what is asked of this run. Returns why the guest's kernel boots, where a saved guest was to go on.
pub fn spawn(mut held: LockedInstance, per_run: &PerRun) -> Result<Option<String>> {
    let id = held.record().id.clone();
    let answer = match start_owner(&held, per_run) {
        Ok(answer) if answer == RUNNING => return Ok(None),
        Ok(answer) if answer.starts_with(BOOTS) => return Ok(answer.strip_prefix(BOOTS).map(str::to_owned)),
        Ok(answer) => answer,
        Err(error) => error.to_string(),
    };
    let mut reason = if answer.is_empty() {
        "the process that was to run it died".into()
    } else {
        answer
    };
    // An instance process that has failed writes so before it goes; one that died has left that to us.
    let record = Store::record_in(held.directory())?;
    if !record.state.has_process() {
        reason = record.reason;
    } else {
        held.update(Event::Ended, &reason, |r| {
            r.ending = Some(Ending::Failed(reason.clone()))
        })?;
    }
    Err(Error::Launch {
        id: id.to_string(),
        reason,
    })
}

/// Starts the process and returns the line it sends.
fn start_owner(held: &LockedInstance, per_run: &PerRun) -> Result<String> {
    let per_run = per_run
        .to_json()
        .map_err(Error::os("handing on what is asked of the run"))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(held.directory().join(LOG));
    descriptors::keep_from_children().map_err(Error::os("keeping descriptors from the new process"))?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("vmm")
        .env_clear()
        .envs(kept(std::env::vars_os()))
        .args([COMMAND, held.record().id.as_str()])
        .arg(per_run)
        .stdin(held.lock().share()?)
        .stdout(Stdio::piped())
        .stderr(log.map_err(Error::file("opening the log in", held.directory()))?)
        .current_dir("/")
        .spawn()
        .map_err(Error::os("starting the process of its own"))?;
    let mut line = String::new();
    if let Some(pipe) = child.stdout.take() {
        BufReader::new(pipe)
            .read_line(&mut line)
            .map_err(Error::os("reading from the new process"))?;
    }
    Ok(line.trim_end().to_owned())
}

fn kept(all: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (OsString, OsString)> {
    all.filter(|(name, _)| KEPT.iter().any(|kept| name == kept))
}

/// The line that a detached instance process owes to the command that started it.
#[derive(Debug)]
pub struct Report(File);

impl Report {
    /// The guest runs; its kernel boots `instead` of a saved guest that was to go on, if so.
    pub fn running(self, instead: Option<&str>) {
        match instead {
            None => self.say(RUNNING),
            Some(why) => self.say(&format!("{BOOTS}{}", why.replace('\n', "; "))),
        }
    }

    /// It does not, and never will.
    pub fn failed(self, reason: &str) {
        self.say(&reason.replace('\n', "; "));
    }

    /// The receiver may be gone.
    fn say(mut self, line: &str) {
        let _ = writeln!(self.0, "{line}");
    }
}

/// In the new process: leaves the terminal, takes over the instance, and frees standard input and output.
pub fn take_over(store: &Store, id: &InstanceId) -> Result<(LockedInstance, Report)> {
    setsid().map_err(|e| Error::os("leaving the terminal's session")(e.into()))?;
    let inherited = |e: io::Error| Error::os("taking over standard input and output")(e);
    let lock = io::stdin().as_fd().try_clone_to_owned().map_err(inherited)?;
    let report = io::stdout().as_fd().try_clone_to_owned().map_err(inherited)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(inherited)?;
    dup2_stdin(&null).map_err(|e| inherited(e.into()))?;
    dup2_stdout(&null).map_err(|e| inherited(e.into()))?;
    Ok((
        store.inherit(id, Lock::inherit(lock)?)?,
        Report(File::from(report)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_variables_are_passed_on() {
        let all = ["HOME", "AWS_SECRET_ACCESS_KEY", "XDG_STATE_HOME", "PATH", "home"];
        let all = all.map(|name| (name.into(), "x".into()));
        let names: Vec<_> = kept(all.into_iter()).map(|(name, _)| name).collect();
        assert_eq!(names, ["HOME", "XDG_STATE_HOME"]);
    }
}
