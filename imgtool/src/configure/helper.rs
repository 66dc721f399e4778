//! The process in the sandbox: enters its namespaces and does the job; when it ends, all of its children end.
//!
//! It runs as two processes. The first enters the namespaces; the second is process 1 of the new process
//! namespace, so that whatever a package starts ends with it.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::chroot::{ENTER, enter};
use super::execute;
use super::failure::Failure;
use super::job::{HELPER, Job, Message};

/// The second process.
const INNER: &str = "inner";

/// Runs as the process in the sandbox if the arguments say so; `arguments` are those after the program's
/// name. The program's `main` calls this before anything else, while it has one thread.
pub fn run_if_asked(arguments: &[std::ffi::OsString]) -> Option<ExitCode> {
    if arguments.first()? != HELPER {
        return None;
    }
    let words: Vec<_> = arguments.iter().skip(1).collect();
    Some(match words.as_slice() {
        [] => report(outer()),
        [role] if *role == INNER => report(inner()),
        [role, root, program, rest @ ..] if *role == ENTER => enter(Path::new(root), program, rest),
        _ => ExitCode::FAILURE,
    })
}

fn report(result: Result<(), Failure>) -> ExitCode {
    let message = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => Message::Failed(failure),
    };
    // The receiver is gone if this fails.
    let _ = message.send(&mut io::stdout());
    ExitCode::SUCCESS
}

fn sandbox_error(what: &'static str) -> impl Fn(nix::Error) -> Failure {
    move |e| Failure::Sandbox {
        what: what.into(),
        why: e.to_string(),
    }
}

fn read_job(input: &mut impl BufRead) -> Result<(String, Job), Failure> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(Failure::other)?;
    let job = serde_json::from_str(&line).map_err(Failure::other)?;
    Ok((line, job))
}

/// Ends this process when its parent has ended, however that was: a build that was killed leaves nothing
/// running. The kernel forgets it when the process becomes another user (prctl(2), `PR_SET_PDEATHSIG`).
fn end_with_parent() -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGKILL).map_err(sandbox_error("be ended with the program that builds"))
}

fn outer() -> Result<(), Failure> {
    end_with_parent()?;
    let mut input = io::stdin().lock();
    let (line, job) = read_job(&mut input)?;
    if job.user_namespace {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(sandbox_error("make a user namespace"))?;
        Message::MapIds.send(&mut io::stdout()).map_err(Failure::other)?;
        let mut answer = String::new();
        input.read_line(&mut answer).map_err(Failure::other)?;
        become_root()?;
        end_with_parent()?;
    }
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(flags).map_err(sandbox_error("make namespaces"))?;
    nix::unistd::sethostname("localhost").map_err(sandbox_error("set the host name"))?;
    let mut child = Command::new("/proc/self/exe")
        .args([HELPER, INNER])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .map_err(Failure::other)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(line.as_bytes()).map_err(Failure::other)?;
    }
    child.wait().map_err(Failure::other)?;
    Ok(())
}

fn become_root() -> Result<(), Failure> {
    let failed = sandbox_error("become root of the user namespace");
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(&failed)?;
    setgroups(&[]).map_err(&failed)?;
    setresuid(uid, uid, uid).map_err(&failed)
}

fn inner() -> Result<(), Failure> {
    end_with_parent()?;
    let (_, job) = read_job(&mut io::stdin().lock())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let result = execute::run(&job);
    // Files on disk have owners that only this namespace can remove; a root in memory is removed with its
    // mount.
    let root = job.work.join("root");
    if nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).is_err() {
        let _ = std::fs::remove_dir_all(&root);
    }
    result?;
    Message::Done.send(&mut io::stdout()).map_err(Failure::other)
}
