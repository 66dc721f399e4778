//! PID 1 for as long as the machine runs: starts services and the console's shell, reaps, restarts, and
//! shuts down when asked.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::power::{self, End};
use super::{Error, commands, local_services, main_program, mounts, os};
use crate::config::{Config, Service};
use crate::proto::Ended;
use crate::users::User;

/// A service that fails at once is not started again at once: pauses double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// A service that has run this long is healthy: its next pause is the first again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Shells for the console, the first that the image has.
const SHELLS: &[&str] = &["/bin/bash", "/bin/sh"];

/// What a child of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The service with this index.
    Service(usize),
    /// The console's shell: the machine ends with it.
    Shell,
    /// The image's main program: the machine ends with it.
    Main,
}

/// What ended among the programs that the machine may end with.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Over {
    shell: bool,
    main: Option<Ended>,
}

/// A service and its history.
struct Supervised {
    service: Service,
    started: Instant,
    pause: Duration,
    /// When it is to be started (again).
    due: Option<Instant>,
}

/// Signals that PID 1 acts on. Blocked, and taken one at a time.
struct Signals {
    set: libc::sigset_t,
}

/// What woke the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// A child has ended.
    Child,
    /// The machine is to end so.
    End(End),
    /// Services have been added.
    Reload,
    /// Time has passed.
    Time,
}

/// Runs the machine to its end. `with_main` says whether the image's main program, if it has one, is part of
/// it.
pub fn run(config: &Config, console: &str, with_main: bool) -> Result<std::convert::Infallible, Error> {
    mounts::late();
    commands::install();
    let signals = Signals::block();
    let now = Instant::now();
    let mut services = Vec::new();
    let (main, others): (Vec<_>, Vec<_>) = config.services.iter().cloned().partition(|service| service.main);
    adopt(&mut services, others);
    adopt(&mut services, local_services::load());
    let mut children = HashMap::new();
    if let Some(main) = main.first().filter(|_| with_main) {
        match main_program::start(main, console) {
            Ok(pid) => drop(children.insert(pid, Role::Main)),
            Err(error) => main_program::end_without(main, &error, console),
        }
    }
    let mut shell_pause = FIRST_PAUSE;
    let mut shell_due = config.console_shell.then_some(now);
    loop {
        start_due(&mut services, &mut children);
        if shell_due.is_some_and(|due| due <= Instant::now()) {
            shell_due = None;
            let shell = start_shell(console).map_err(os(format!("starting a shell on {console}")))?;
            children.insert(shell, Role::Shell);
        }
        let due = services
            .iter()
            .filter_map(|service| service.due)
            .chain(shell_due)
            .min();
        match signals.wait(due.map(|due| due.saturating_duration_since(Instant::now()))) {
            Wake::End(end) => power::shut_down(end),
            Wake::Time => {}
            Wake::Reload => adopt(&mut services, local_services::load()),
            Wake::Child => {
                let over = reap(&mut services, &mut children);
                if let Some(ended) = over.main {
                    main_program::end(ended, console)
                }
                if !over.shell {
                    continue;
                }
                // The shell was the machine's purpose, unless there are services: then it is a way to look at
                // them.
                if services.is_empty() {
                    power::shut_down(End::Off)
                }
                shell_due = Some(Instant::now() + shell_pause);
                shell_pause = (shell_pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Takes services in: new ones start now, known ones have their new definition when they start the next time.
fn adopt(services: &mut Vec<Supervised>, found: impl IntoIterator<Item = Service>) {
    let now = Instant::now();
    for service in found {
        match services
            .iter_mut()
            .find(|known| known.service.name == service.name)
        {
            Some(known) => known.service = service,
            None => services.push(Supervised {
                service,
                started: now,
                pause: FIRST_PAUSE,
                due: Some(now),
            }),
        }
    }
}

fn start_due(services: &mut [Supervised], children: &mut HashMap<Pid, Role>) {
    let now = Instant::now();
    for (index, supervised) in services.iter_mut().enumerate() {
        if supervised.due.is_none_or(|due| due > now) {
            continue;
        }
        supervised.due = None;
        supervised.started = now;
        match start_service(&supervised.service) {
            Ok(pid) => drop(children.insert(pid, Role::Service(index))),
            Err(error) => {
                mounts::say(&format!(
                    "guest-init: service {} did not start: {error}",
                    supervised.service.name
                ));
                supervised.ended(false);
            }
        }
    }
}

/// Takes the ends of all children that have ended. Returns those that the machine may end with.
fn reap(services: &mut [Supervised], children: &mut HashMap<Pid, Role>) -> Over {
    let mut over = Over::default();
    loop {
        let (pid, ended) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, Ended::Exited(status as u8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Signaled(signal as i32 as u8)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return over,
            Ok(_) | Err(_) => continue,
        };
        match children.remove(&pid) {
            Some(Role::Shell) => over.shell = true,
            Some(Role::Main) => over.main = Some(ended),
            Some(Role::Service(index)) => services[index].ended(ended == Ended::Exited(0)),
            // An orphan: reaping it was all there is to do.
            None => {}
        }
    }
}

impl Supervised {
    fn ended(&mut self, succeeded: bool) {
        if !self.service.restart.again(succeeded) {
            return;
        }
        if self.started.elapsed() >= HEALTHY {
            self.pause = FIRST_PAUSE;
        }
        self.due = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }
}

fn start_service(service: &Service) -> io::Result<Pid> {
    let (mut command, user) = command_of(service)?;
    command.stdin(Stdio::null());
    let log = open_log(&service.name)?;
    command.stdout(log.try_clone()?).stderr(log);
    user.run(&mut command, false);
    spawn(command)
}

/// The command of a service without its streams, and the user that is to run it.
pub(super) fn command_of(service: &Service) -> io::Result<(Command, User)> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let (program, arguments) = service
        .command
        .split_first()
        .ok_or_else(|| invalid("no command".to_owned()))?;
    let user = User::find_for_service(Path::new("/"), &service.user)
        .ok_or_else(|| invalid(format!("there is no user {}", service.user)))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(user.environment())
        .envs(&service.environment);
    command.current_dir(&service.directory);
    Ok((command, user))
}

/// What a service prints goes to `/var/log/NAME.log`.
fn open_log(name: &str) -> io::Result<File> {
    std::fs::create_dir_all("/var/log")?;
    let name = name.replace('/', "-");
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(format!("/var/log/{name}.log"))
}

/// A login shell with the console as its controlling terminal.
fn start_shell(console: &str) -> io::Result<Pid> {
    let shell = SHELLS.iter().find(|shell| Path::new(shell).exists());
    let shell =
        shell.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the image has neither bash nor sh"))?;
    let terminal = open_terminal(console)?;
    let mut command = Command::new(shell);
    command.arg0(format!("-{}", shell.rsplit('/').next().unwrap_or("sh")));
    command.env_clear().envs(User::root().environment());
    command.env("TERM", terminal_kind());
    command.current_dir(if Path::new("/root").is_dir() { "/root" } else { "/" });
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal.try_clone()?);
    User::root().run(&mut command, true);
    spawn(command)
}

/// The console as a terminal that is not a controlling terminal yet.
pub(super) fn open_terminal(console: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(format!("/dev/{console}"))
}

/// What the console's user has before the machine says more: the kernel passes `TERM=` on.
pub(super) fn terminal_kind() -> String {
    std::env::var("TERM").unwrap_or_else(|_| "vt220".to_owned())
}

/// Starts a child that [`reap`] takes care of.
pub(super) fn spawn(mut command: Command) -> io::Result<Pid> {
    let child = command.spawn()?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(io::Error::other)
}

impl Signals {
    /// Blocks what the supervisor acts on.
    fn block() -> Signals {
        // SAFETY: the calls initialise and fill a signal set that lives here, then set this thread's mask
        // from it.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [
                libc::SIGCHLD,
                libc::SIGHUP,
                libc::SIGINT,
                libc::SIGTERM,
                libc::SIGUSR1,
                libc::SIGUSR2,
            ] {
                libc::sigaddset(&raw mut set, signal);
            }
            for real_time in [4, 5] {
                libc::sigaddset(&raw mut set, libc::SIGRTMIN() + real_time);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Signals { set }
        }
    }

    /// Waits for a signal, or for `limit` to pass.
    fn wait(&self, limit: Option<Duration>) -> Wake {
        let limit = limit.unwrap_or(Duration::from_secs(3600));
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos() as libc::c_long,
        };
        // SAFETY: both pointers are to live values; a null one says that nobody wants to know more of the
        // signal.
        let signal =
            unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const time) };
        wake(signal)
    }
}

/// What a signal means: services have been added (HUP), the kernel's Ctrl-Alt-Del (INT), busybox's words for
/// its init (USR1, USR2, TERM) and systemd's (RTMIN+4, RTMIN+5), so that `poweroff` and `reboot` of either
/// work.
fn wake(signal: i32) -> Wake {
    let (off, again) = (libc::SIGRTMIN() + 4, libc::SIGRTMIN() + 5);
    match signal {
        libc::SIGCHLD => Wake::Child,
        libc::SIGHUP => Wake::Reload,
        libc::SIGUSR1 | libc::SIGUSR2 => Wake::End(End::Off),
        libc::SIGTERM | libc::SIGINT => Wake::End(End::Reboot),
        signal if signal == off => Wake::End(End::Off),
        signal if signal == again => Wake::End(End::Reboot),
        _ => Wake::Time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Restart;

    fn service(restart: Restart) -> Service {
        Service {
            name: "test".to_owned(),
            command: vec!["/bin/true".to_owned()],
            environment: std::collections::BTreeMap::new(),
            directory: "/".to_owned(),
            user: "root".to_owned(),
            restart,
            main: false,
        }
    }

    fn supervised(service: &Service) -> Supervised {
        Supervised {
            service: service.clone(),
            started: Instant::now(),
            pause: FIRST_PAUSE,
            due: None,
        }
    }

    #[test]
    fn a_failing_service_restarts_with_growing_delays() {
        let service = service(Restart::OnFailure);
        let mut failing = supervised(&service);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            failing.due = None;
            failing.ended(false);
            pauses.push(
                failing
                    .due
                    .expect("due again")
                    .saturating_duration_since(Instant::now()),
            );
        }
        assert!(pauses[0] <= FIRST_PAUSE && pauses[1] > pauses[0]);
        assert!(pauses[11] <= LAST_PAUSE && pauses[11] > LAST_PAUSE / 2);
    }

    #[test]
    fn the_restart_policy_decides() {
        for (restart, succeeded, again) in [
            (Restart::Never, false, false),
            (Restart::OnFailure, true, false),
            (Restart::OnFailure, false, true),
            (Restart::Always, true, true),
        ] {
            let service = service(restart);
            let mut ended = supervised(&service);
            ended.ended(succeeded);
            assert_eq!(ended.due.is_some(), again, "{restart:?} {succeeded}");
        }
    }

    #[test]
    fn a_service_is_added_once() {
        let mut services = Vec::new();
        adopt(&mut services, [service(Restart::Never)]);
        services[0].due = None;
        adopt(&mut services, [service(Restart::Always)]);
        assert_eq!(services.len(), 1);
        assert_eq!(services[0].due, None, "it runs already");
        assert_eq!(services[0].service.restart, Restart::Always);
    }

    #[test]
    fn signals_of_busybox_and_systemd_are_understood() {
        assert_eq!(wake(libc::SIGUSR2), Wake::End(End::Off));
        assert_eq!(wake(libc::SIGTERM), Wake::End(End::Reboot));
        assert_eq!(wake(libc::SIGRTMIN() + 4), Wake::End(End::Off));
        assert_eq!(wake(libc::SIGRTMIN() + 5), Wake::End(End::Reboot));
        assert_eq!(wake(libc::SIGCHLD), Wake::Child);
    }
}
