//! Confinement of the process that runs a guest, without any privilege.
//!
//! Four mechanisms, each independent of the others:
//!
//! - **System calls** ([`allow`]): each kind of thread may make the calls on its list, and dies at any other
//!   (seccomp, `Documentation/userspace-api/seccomp_filter.rst`). The process as a whole may make the union
//!   of the lists, which is [`Kind::Main`]'s: no `execve`, no memory that can be written and executed, no
//!   `ptrace` but by [`Kind::Direct`], of processes in the same Landlock domain.
//! - **Files** ([`files`]): the process may open what it was given and nothing else (Landlock,
//!   `Documentation/userspace-api/landlock.rst`).
//! - **Network** ([`namespaces`]): a process whose guest has no network has none either.
//! - **Privileges** ([`privileges`]): no capabilities but those that an option of the launch needs, and no
//!   way to gain any.
//!
//! Filters are a thread's own and are inherited, so a thread with a short list cannot start one with a longer
//! list. A processor's thread has to: the guest's driver wakes a device by a write to its register. So every
//! thread that is started once the process is confined is started by the *spawner*, a thread that does
//! nothing else; see [`spawn`].

mod allow;
mod files;
mod filter;
mod helper;
mod namespaces;
mod privileges;
mod program;
mod reader;
mod violation;

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

pub use files::Right;
pub use helper::start_helper;
pub use namespaces::offered as network_offered;
pub use privileges::Capability;
pub use reader::read_file;

/// Whether a process is to be confined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Off,
    /// By what the host offers; one line says what it does not.
    #[default]
    Auto,
    /// By all of it, or the guest does not run.
    Required,
}

impl Mode {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Auto => "auto",
            Mode::Required => "required",
        }
    }

    /// The one of this [`name`](Mode::name).
    pub fn named(name: &str) -> Option<Mode> {
        [Mode::Off, Mode::Auto, Mode::Required]
            .into_iter()
            .find(|mode| mode.name() == name)
    }
}

/// What a thread does, and so which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The main thread, which builds machines, waits for their end and writes the record; the spawner. All
    /// that any other kind may do, and more.
    Main,
    /// The same, where processors drive processes in which programs run.
    MainDirect,
    /// Runs a processor of KVM.
    Kvm,
    /// Runs a processor in software.
    Soft,
    /// Runs a processor in software whose programs run on the host's, in processes that this thread drives.
    Direct,
    /// Reads and writes the files behind disks.
    Block,
    /// Serves a device that needs nothing of the host but memory: entropy, balloon.
    Device,
    /// Carries the guest's packets.
    Network,
    /// Carries the guest's vsock streams.
    Vsock,
    /// Carries the console's bytes.
    Console,
    /// Answers requests, signals and keys.
    Control,
    /// Not a thread but a process of its own: reads one file for the others ([`Plan::replaced`]).
    Reader,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::Main,
        Kind::MainDirect,
        Kind::Kvm,
        Kind::Soft,
        Kind::Direct,
        Kind::Block,
        Kind::Device,
        Kind::Network,
        Kind::Vsock,
        Kind::Console,
        Kind::Control,
        Kind::Reader,
    ];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Main => "main",
            Kind::MainDirect => "main-direct",
            Kind::Kvm => "kvm",
            Kind::Soft => "soft",
            Kind::Direct => "direct",
            Kind::Block => "block",
            Kind::Device => "device",
            Kind::Network => "network",
            Kind::Vsock => "vsock",
            Kind::Console => "console",
            Kind::Control => "control",
            Kind::Reader => "reader",
        }
    }
}

/// All that the process needs from here on.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Files and directories, and what may be done with each. One that does not exist is left out.
    pub files: Vec<(PathBuf, Right)>,
    /// A file that other programs replace by another of the same name: [`read_file`] reads it in a process of
    /// its own.
    pub replaced: Option<PathBuf>,
    /// Whether TCP sockets are needed.
    pub tcp: bool,
    /// Whether the host's network is needed at all.
    pub network: bool,
    /// Capabilities that are kept if they are there.
    pub capabilities: Vec<Capability>,
}

/// Why a process could not be confined.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// this host cannot confine the process as required: {0}
    Missing(String),
    /// the process cannot be confined: {what}: {source}
    Os {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Error {
    fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Os { what, source }
    }
}

/// What this host offers, in words for people; `Err` holds what is missing and why.
#[derive(Debug)]
pub struct Offer {
    /// Filters of system calls.
    pub system_calls: Result<String, String>,
    /// Rules for files, signals and ports.
    pub files: Result<String, String>,
}

impl Offer {
    /// Asks the kernel. Changes nothing.
    pub fn of_host() -> Offer {
        Offer {
            system_calls: filter::offered(),
            files: files::offered(),
        }
    }

    /// What is missing, in one line; `None` when nothing is.
    pub fn missing(&self) -> Option<String> {
        let all = [&self.system_calls, &self.files];
        let missing: Vec<_> = all
            .iter()
            .filter_map(|part| part.as_ref().err().cloned())
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

/// A thread to be started.
type SpawnRequest = Box<dyn FnOnce() + Send>;
/// The way to the spawner, once the process is confined by filters.
static SPAWNER: OnceLock<Sender<SpawnRequest>> = OnceLock::new();

thread_local! {
    /// What this thread is; `None` while it is not confined. Read by the handler of SIGSYS, so it is constant
    /// at first and has no destructor.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// Confines this process until it ends: the calling thread, which must be the only one, and all that
/// [`spawn`] starts from now on. Returns what the host does not offer. `start` is called where processes can
/// still be started, and no file can be opened any more that this one may not open. It returns whether
/// processors drive processes that it has started ([`Kind::Direct`]).
///
/// # Errors
/// With [`Mode::Required`] when something is missing, and then nothing has changed; otherwise when the kernel
/// refuses what it says that it offers.
pub fn confine(mode: Mode, plan: &Plan, start: impl FnOnce() -> bool) -> Result<Option<String>, Error> {
    if mode == Mode::Off {
        start();
        return Ok(None);
    }
    let offer = Offer::of_host();
    let required = |missing: Option<String>| match (mode, missing) {
        (Mode::Required, Some(missing)) => Err(Error::Missing(missing)),
        (_, missing) => Ok(missing),
    };
    let host = required(offer.missing())?;
    let network = match plan.network {
        true => None,
        false => required(namespaces::leave_network().err())?,
    };
    // Where files are not restricted, this process reads it itself.
    if let Some(path) = plan.replaced.as_deref().filter(|_| offer.files.is_ok()) {
        reader::start(path)?;
    }
    privileges::drop_all_but(plan).map_err(Error::os("dropping privileges"))?;
    if offer.files.is_ok() {
        files::restrict(plan).map_err(Error::os("restricting files"))?;
    }
    let drives = start();
    if offer.system_calls.is_ok() {
        violation::report().map_err(Error::os("reporting violations"))?;
        filter::install(match drives {
            true => Kind::MainDirect,
            false => Kind::Main,
        })
        .map_err(Error::os("filtering system calls"))?;
        KIND.set(Some(Kind::Main));
        start_spawner().map_err(Error::os("starting the thread that starts threads"))?;
    }
    let missing: Vec<String> = [host, network].into_iter().flatten().collect();
    Ok((!missing.is_empty()).then(|| missing.join("; ")))
}

/// Starts the thread that starts threads.
fn start_spawner() -> io::Result<()> {
    let (requests, to_start) = channel::<SpawnRequest>();
    Builder::new().name("spawner".into()).spawn(move || {
        KIND.set(Some(Kind::Main));
        to_start.into_iter().for_each(|request| request());
    })?;
    // No other code can have set it: a process is confined once.
    let _ = SPAWNER.set(requests);
    Ok(())
}

/// Starts `run` in a thread called `name` (Linux shows the first 15 bytes) that may make the system calls of
/// `kind`, if this process is confined.
///
/// # Errors
/// When no thread is available.
pub fn spawn<T: Send + 'static>(
    name: &str,
    kind: Kind,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.to_owned());
    let Some(spawner) = SPAWNER.get() else {
        return builder.spawn(run);
    };
    let confined = move || {
        filter::install(kind).unwrap_or_else(|error| unconfined(kind, &error));
        KIND.set(Some(kind));
        run()
    };
    if KIND.get() == Some(Kind::Main) {
        return builder.spawn(confined);
    }
    let (made, wait) = sync_channel(1);
    let request = move || drop(made.send(builder.spawn(confined)));
    let closed = || io::Error::other("the thread that starts threads has ended");
    spawner.send(Box::new(request)).map_err(|_| closed())?;
    wait.recv().map_err(|_| closed())?
}

/// Runs `beside` in a thread called `name` while this one runs `here`; where no thread is available, before it.
/// `beside` may make the system calls that this thread may.
///
/// # Panics
/// When one of them does.
pub fn both<T: Send, U>(name: &str, beside: impl Fn() -> T + Sync, here: impl FnOnce() -> U) -> (T, U) {
    let kind = KIND.get();
    let beside = || {
        KIND.set(kind);
        beside()
    };
    std::thread::scope(|scope| {
        let started = Builder::new().name(name.to_owned()).spawn_scoped(scope, beside);
        let Ok(thread) = started else {
            return (beside(), here());
        };
        let here = here();
        (
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            here,
        )
    })
}

/// Runs `ask` in a thread of `kind` and waits for it: for the few steps of a thread that its own list does
/// not allow.
///
/// # Errors
/// When no thread is available.
///
/// # Panics
/// When `ask` does.
pub fn ask<T: Send + 'static>(kind: Kind, ask: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if KIND.get().is_none_or(|own| own == kind || own == Kind::Main) {
        return Ok(ask());
    }
    spawn(kind.name(), kind, ask)?
        .join()
        .or_else(|panic| std::panic::resume_unwind(panic))
}

/// A thread that cannot be confined although others could must not run.
fn unconfined(kind: Kind, error: &io::Error) -> ! {
    let text = format!("vmm: a {} thread cannot be confined: {error}\n", kind.name());
    let _ = io::Write::write_all(&mut io::stderr(), text.as_bytes());
    std::process::abort()
}
