//! The agent: carries out what the host asks over vsock.
//!
//! It is a process of its own beside PID 1, so that it goes on when the image's own init takes over. Each
//! connection is served by a thread; nothing is shared between them but the frozen file systems.

mod clock;
mod configure;
mod copy;
mod exec;
mod freeze;
mod hosts;
mod identity;
mod link;
mod port;
mod renewal;
mod scrub;
mod secrets;
mod seed;
mod stop;
mod vsock;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::proto::{
    AGENT_PORT, END_PORT, Ended, Error, Failure, Frame, Kind, READY_PORT, Ready, Reason, Request, read_frame,
    write_frame,
};
use crate::users::User;

pub use clock::{HostTime, follow as follow_host_clock};
pub use identity::renew;
pub use scrub::{scrub, trim};
pub use secrets::make as make_secrets;

/// Connections at once. The host opens one for each command that runs.
const CONNECTIONS_CAP: usize = 64;

/// Stack of a connection's thread: it reads frames of 64 KiB into the heap and recurses nowhere.
const STACK: usize = 256 * 1024;

/// Whether cloud-init is in the image and will configure the instance.
pub fn has_cloud_init() -> bool {
    Path::new("/usr/bin/cloud-init").exists()
}

/// Serves requests until the machine stops. `ready` is called once requests are taken, before the host gets a
/// connection. `host_time` is what the clock follows.
pub fn serve(ready: impl FnOnce(), host_time: Box<HostTime>) -> std::io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let host_time: Arc<HostTime> = host_time.into();
    stop::when_asked(&open)?;
    let mut listener = vsock::listen(AGENT_PORT)?;
    // The image's init may have set it by a clock of its own. One that cannot be set is no reason not to
    // serve.
    let _ = clock::follow(&*host_time);
    ready();
    announce();
    loop {
        let connection = match vsock::accept(&listener) {
            Ok(connection) => connection,
            // A reset of the transport, as after a restore, ends connections. Should it end the listener, too,
            // there is a new one.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                drop(listener);
                listener = vsock::listen(AGENT_PORT)?;
                continue;
            }
            Err(_) => continue,
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_CAP {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let done = Arc::clone(&open);
        let host_time = Arc::clone(&host_time);
        let serve = move || {
            // The failure was reported to the host, or the host is gone.
            let _ = connection_loop(connection, &*host_time);
            done.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().stack_size(STACK).spawn(serve).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Tells the host that requests are taken. A host that does not listen does not care.
fn announce() {
    if let Ok(mut host) = vsock::connect(READY_PORT)
        && let Ok(frame) = Frame::json(Kind::Done, &state())
    {
        let _ = write_frame(&mut host, frame.kind, &frame.payload);
    }
}

/// How long the host may take to note how the main program has ended.
const NOTED_WITHIN: Duration = Duration::from_secs(5);

/// Tells the host how the image's main program has ended, and waits until it has noted it. A host that does
/// not listen does not care.
pub fn report_end(ended: Ended) {
    if let Ok(mut host) = vsock::connect(END_PORT)
        && let Ok(frame) = Frame::json(Kind::Ended, &ended)
        && write_frame(&mut host, frame.kind, &frame.payload).is_ok()
    {
        vsock::wait_closed(&mut host, NOTED_WITHIN);
    }
}

fn state() -> Ready {
    let line = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Ready {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: line("/proc/sys/kernel/osrelease"),
        hostname: line("/proc/sys/kernel/hostname"),
        cloud_init: has_cloud_init(),
        renews: true,
    }
}

fn connection_loop(mut connection: File, host_time: &HostTime) -> Result<(), Error> {
    let Some(first) = read_frame(&mut connection)? else {
        return Ok(());
    };
    if first.kind != Kind::Request {
        return Err(Error::Unexpected(first.kind));
    }
    match first.message::<Request>() {
        Ok(request) => carry_out(request, connection, host_time),
        Err(error) => fail(
            &mut connection,
            &Failure {
                reason: Reason::Other,
                message: error.to_string(),
            },
        ),
    }
}

fn carry_out(request: Request, mut connection: File, host_time: &HostTime) -> Result<(), Error> {
    let result = match request {
        Request::Ping => {
            let answer = Frame::json(Kind::Done, &state())?;
            return write_frame(&mut connection, answer.kind, &answer.payload);
        }
        Request::Exec(exec) => return exec::run(&exec, connection),
        Request::CopyOut { path, notes } => copy::send(&absolute(&path), notes, &mut connection),
        Request::CopyIn { path } => copy::receive(&absolute(&path), &mut connection),
        Request::WaitPort { port } => port::wait(port, &connection),
        Request::Connect { port } => return port::connect(port, connection),
        Request::Shutdown { reboot } => {
            write_frame(&mut connection, Kind::Done, b"")?;
            return shutdown(reboot, &mut connection);
        }
        Request::Freeze { seconds } => return freeze::serve(seconds, &mut connection),
        Request::Thaw => freeze::thaw(),
        Request::SetClock { nanoseconds } => clock::set(nanoseconds),
        Request::FollowClock { nanoseconds } => match clock::follow(host_time) {
            Ok(false) => clock::set(nanoseconds),
            done => done.map(drop),
        },
        Request::Configure(configure) => configure::apply(&configure),
        Request::Renew(renew) => renewal::apply(&renew, host_time),
    };
    match result {
        Ok(()) => write_frame(&mut connection, Kind::Done, b""),
        Err(failure) => fail(&mut connection, &failure),
    }
}

/// A path as the superuser would mean it: a relative one begins at home.
fn absolute(path: &str) -> PathBuf {
    let home = User::find(Path::new("/"), "root").map(|root| PathBuf::from(root.home));
    home.filter(|home| home.is_dir())
        .unwrap_or_else(|| PathBuf::from("/"))
        .join(path)
}

fn fail(connection: &mut impl Write, failure: &Failure) -> Result<(), Error> {
    let frame = Frame::json(Kind::Failed, failure)?;
    write_frame(connection, frame.kind, &frame.payload)
}

fn shutdown(reboot: bool, connection: &mut File) -> Result<(), Error> {
    signal_init(reboot).or_else(|error| fail(connection, &failed("PID 1 could not be signalled", error)))
}

/// Asks PID 1, guest-init or another init, by the signals that both guest-init and systemd know: SIGRTMIN+4
/// powers off and SIGRTMIN+5 reboots (systemd(1)).
#[allow(unsafe_code)]
pub fn signal_init(reboot: bool) -> Result<(), nix::errno::Errno> {
    let signal = libc::SIGRTMIN() + if reboot { 5 } else { 4 };
    // SAFETY: kill takes no pointers. nix's enumeration of signals has no real-time ones.
    nix::errno::Errno::result(unsafe { libc::kill(1, signal) }).map(drop)
}

/// A failure of the operating system, in the protocol's terms.
fn failed(what: impl std::fmt::Display, error: impl Into<std::io::Error>) -> Failure {
    let error = error.into();
    Failure {
        reason: reason(error.kind()),
        message: format!("{what}: {error}"),
    }
}

fn reason(kind: std::io::ErrorKind) -> Reason {
    match kind {
        std::io::ErrorKind::NotFound => Reason::NotFound,
        std::io::ErrorKind::PermissionDenied => Reason::Denied,
        _ => Reason::Other,
    }
}
