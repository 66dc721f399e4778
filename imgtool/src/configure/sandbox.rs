//! The side of the sandbox that stays outside: starts the process, maps its user and group numbers, listens.
//!
//! The process is this program again, because entering namespaces needs a process with one thread. As root it
//! gets namespaces for mounts, processes, network, IPC and host name. Without root it gets a user
//! namespace besides, in which 0 is the user and 1 to 65535 are from the user's range in /etc/subuid, so that
//! packages can own their files as they please. A root of another architecture always gets a user namespace:
//! there it can have its own interpreter for foreign programs without touching the host's.

use std::borrow::Cow;
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ami::Architecture;
use displaydoc::Display;
use nix::unistd::{Gid, Uid};

use super::failure::Failure;
use super::job::{HELPER, Job, Message, Task};
use crate::advice::{Advice, Reason};
use crate::progress::{Progress, Step, Unit};

/// Users and groups that a Debian system needs: 65534 is nobody.
const IDS: u32 = 65_536;

/// Why a sandbox did not do its job.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// user {user} has no range of {IDS:} numbers in {file}, which packages need for their own users
    NoRange {
        /// The user.
        user: String,
        /// The file.
        file: &'static str,
    },
    /// {program} failed: {reason}
    Map {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// Why.
        #[source]
        reason: Reason,
    },
    /// the configuring process did not start: {0}
    Start(#[source] io::Error),
    /// the configuring process {0}
    Process(#[source] Reason),
    /// {0}
    Job(#[from] Failure),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Job(error) => error.advice(),
            Self::NoRange { user, .. } => Some(
                format!(
                    "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`, or \
                 build as root"
                )
                .into(),
            ),
            Self::Map { .. } => Some("install package uidmap, or build as root".into()),
            Self::Start(..) | Self::Process(..) => {
                Some("again; if it stays so, report it with the output of `dmesg | tail`".into())
            }
        }
    }
}

/// Runs a task and writes the resulting root to `output`. `work` is an empty directory that the caller owns.
pub fn run(
    arch: Architecture,
    task: Task,
    work: &Path,
    output: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let user_namespace = !Uid::effective().is_root() || !arch.is_native();
    let job = Job {
        arch,
        work: work.to_owned(),
        output: output.to_owned(),
        user_namespace,
        task,
    };
    let maps = if user_namespace { Some(Maps::plan()?) } else { None };
    let mut child = start(&job)?;
    let result = listen(&mut child, maps.as_ref(), progress);
    if result.is_err() {
        // It may wait for an answer that will not come. The first process of its namespace ends with it, and
        // all others with that one.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| Error::Process(e.into()))?;
    result?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Process(format!("ended with {status}").into())),
    }
}

fn start(job: &Job) -> Result<Child, Error> {
    let mut child = Command::new("/proc/self/exe")
        .arg(HELPER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::Start)?;
    let mut text = serde_json::to_vec(job).map_err(|e| Error::Start(e.into()))?;
    text.push(b'\n');
    if let Some(stdin) = &mut child.stdin
        && let Err(e) = stdin.write_all(&text)
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Start(e));
    }
    Ok(child)
}

fn listen(child: &mut Child, maps: Option<&Maps>, progress: &dyn Progress) -> Result<(), Error> {
    let broken = |why: Reason| Error::Process(why);
    let id = child.id();
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| broken("has no output".into()))?;
    let mut from = BufReader::new(stdout);
    let mut step: Option<Box<dyn Step>> = None;
    loop {
        let message = Message::receive(&mut from).map_err(|e| broken(e.into()))?;
        match message.ok_or_else(|| broken("broke off".into()))? {
            Message::MapIds => {
                maps.ok_or_else(|| broken("asks for what it should not".into()))?
                    .apply(id)?;
                let stdin = child
                    .stdin
                    .as_mut()
                    .ok_or_else(|| broken("has no input".into()))?;
                stdin.write_all(b"mapped\n").map_err(|e| broken(e.into()))?;
            }
            Message::Start(what, total) => {
                step = Some(progress.start(&what, Some(total), Unit::Items));
            }
            Message::Tick => step.iter().for_each(|step| step.advance(1)),
            Message::Finish(summary) => step.take().iter().for_each(|step| step.finish(&summary)),
            Message::Done => return Ok(()),
            Message::Failed(failure) => return Err(failure.into()),
        }
    }
}

/// The numbers of the user namespace: (inside, outside, count).
struct Maps {
    users: Vec<[u32; 3]>,
    groups: Vec<[u32; 3]>,
}

impl Maps {
    fn plan() -> Result<Self, Error> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        if uid.is_root() {
            // Root may map every number to itself.
            let all = vec![[0, 0, IDS]];
            return Ok(Self {
                users: all.clone(),
                groups: all,
            });
        }
        let user = nix::unistd::User::from_uid(uid)
            .ok()
            .flatten()
            .map(|user| user.name);
        let user = user.unwrap_or_else(|| uid.to_string());
        let map = |own: u32, file| {
            let start = range(file, &user, uid.as_raw())?;
            Ok::<_, Error>(vec![[0, own, 1], [1, start, IDS - 1]])
        };
        Ok(Self {
            users: map(uid.as_raw(), "/etc/subuid")?,
            groups: map(gid.as_raw(), "/etc/subgid")?,
        })
    }

    fn apply(&self, pid: u32) -> Result<(), Error> {
        if Uid::effective().is_root() {
            let write = |file: &str, map: &[[u32; 3]]| {
                let text: String = map.iter().map(|[a, b, n]| format!("{a} {b} {n}\n")).collect();
                std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|e| Failure::Sandbox {
                    what: format!("write {file}"),
                    why: e.to_string(),
                })
            };
            write("uid_map", &self.users)?;
            return Ok(write("gid_map", &self.groups)?);
        }
        map_with("newuidmap", pid, &self.users)?;
        map_with("newgidmap", pid, &self.groups)
    }
}

fn map_with(program: &'static str, pid: u32, map: &[[u32; 3]]) -> Result<(), Error> {
    let failed = |reason: Reason| Error::Map { program, reason };
    let numbers = map.iter().flatten().map(u32::to_string);
    let output = Command::new(program).arg(pid.to_string()).args(numbers).output();
    let output = output.map_err(|e| failed(e.into()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().into())),
    }
}

/// The first range of enough numbers that the file gives the user, by name or number.
fn range(file: &'static str, user: &str, uid: u32) -> Result<u32, Error> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let uid = uid.to_string();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let (start, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((owner == user || owner == uid) && count >= IDS - 1).then_some(start)
    });
    found.ok_or_else(|| Error::NoRange {
        user: user.to_owned(),
        file,
    })
}
