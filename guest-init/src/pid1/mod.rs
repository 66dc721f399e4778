//! PID 1: from the kernel's hand-over to a running system. [`main`] reads as a checklist.

mod commands;
mod disk;
mod grow;
mod local_services;
mod main_program;
mod modules;
mod mounts;
mod network;
mod power;
mod supervise;
mod timer;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{ForkResult, fork};

use crate::agent;
use crate::command_line::CommandLine;
use crate::config::{Config, INIT_GUEST};
use crate::proto::{SCRUBBED, STOPPED_AT_INIT, mark};
use timer::BootTimer;

/// Where the root file system is mounted before it becomes the root.
const NEW_ROOT: &str = "/sysroot";

/// What stops a boot. The message goes to the console: what failed, why, and what to try.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} failed: {source}
    Os {
        /// The step.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// {0}
    Config(#[from] crate::config::Error),
    /// no root disk {device} within {seconds} s; does the machine have it, and the image its driver's module?
    NoDisk {
        /// Such as `/dev/vda`.
        device: String,
        /// How long was waited.
        seconds: u64,
    },
    /// {device} could not be mounted as {filesystem}: {source}; `imgtool verify` finds a damaged image
    Mount {
        /// The root disk.
        device: String,
        /// Its file system type by the image.
        filesystem: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// {init} could not be started: {source}; kiln.init= on the kernel command line names another
    Init {
        /// The image's init.
        init: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// Wraps an operating system's error with the step that met it.
fn os<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |error| Error::Os {
        what: what.into(),
        source: error.into(),
    }
}

/// The program.
pub fn main() -> ! {
    if std::process::id() != 1 {
        eprintln!("guest-init: this is PID 1 of a Kiln guest; it does nothing elsewhere");
        std::process::exit(1);
    }
    match boot() {
        Ok(never) => match never {},
        Err(error) => {
            // The end of PID 1 is a kernel panic, which a host distinguishes from a machine that was switched
            // off.
            mounts::say(&format!("guest-init: fatal: {error}"));
            nix::unistd::sync();
            std::process::exit(1)
        }
    }
}

/// Returns only if the boot has failed.
fn boot() -> Result<std::convert::Infallible, Error> {
    mounts::early()?;
    let machine = mounts::command_line();
    let timer = BootTimer::open(machine.boot_timer);
    timer.kernel_started();
    timer.mark(mark::KERNEL_READY);
    set_clock(&timer);
    let mut config = Config::load()?;
    if let Some(device) = &machine.root {
        config.root_device.clone_from(device);
    }

    modules::load(&config.modules);
    disk::wait_for(&config.root_device, machine.root_wait.unwrap_or(disk::WAIT))?;
    mounts::root(&config, NEW_ROOT)?;
    timer.mark(mark::ROOT_MOUNTED);
    if machine.scrub {
        scrub()?;
        power::off()
    }
    if config.grow_root && config.root_writable {
        grow::to_disk_size(&config.root_device, NEW_ROOT);
    }
    mounts::switch_root(NEW_ROOT)?;
    let named = config.root_writable && renew_identity(&machine);

    let init = machine.init.as_deref().unwrap_or(&config.init);
    let console = machine.console.as_deref().unwrap_or(&config.console);
    if init == INIT_GUEST {
        name_machine(&machine, &config, named);
        network::up(machine.network.as_ref(), &machine.search);
        start_agent(timer.clone())?;
        timer.mark(mark::INIT);
        stop_if_asked(&machine);
        supervise::run(&config, console, !machine.without_main)
    } else {
        start_agent(timer.clone())?;
        timer.mark(mark::INIT);
        stop_if_asked(&machine);
        drop(timer);
        // The kernel's own arguments for init (single, 3, …) are the image's init's.
        let source = Command::new(init).args(std::env::args_os().skip(1)).exec();
        Err(Error::Init {
            init: init.to_owned(),
            source,
        })
    }
}

/// Makes the root file system one that an image can be made of, and says so on the console.
fn scrub() -> Result<(), Error> {
    agent::scrub(Path::new(NEW_ROOT)).map_err(os("removing the identity"))?;
    // A disk that takes no discards keeps the deleted blocks; they are still not part of any file.
    let _ = agent::trim(Path::new(NEW_ROOT));
    nix::mount::umount(NEW_ROOT).map_err(os("unmounting the root file system"))?;
    mounts::say(SCRUBBED);
    Ok(())
}

/// The kernel has counted ticks since it asked for the time, and lost some: file systems and services are to
/// see the right time.
fn set_clock(timer: &BootTimer) {
    let timer = timer.clone();
    if let Err(failure) = agent::follow_host_clock(&move || timer.host_time()) {
        mounts::say(&format!("guest-init: {failure}"));
    }
}

/// A machine that boots without a renewed identity is better than none: a failure is reported and nothing
/// more. Returns whether the files of the root file system are those of this instance.
fn renew_identity(machine: &CommandLine) -> bool {
    let root = Path::new("/");
    let renewed = agent::renew(root, machine.instance.as_deref(), machine.hostname.as_deref());
    if let Err(error) = &renewed {
        mounts::say(&format!(
            "guest-init: the machine's identity could not be renewed: {error}"
        ));
    }
    // After the host name, which goes into certificates; again at the next boot after a power cut.
    agent::make_secrets(root, &mounts::say);
    renewed.is_ok()
}

/// Names the machine. With `named`, its `/etc/hostname` has the instance's name, or the one that its
/// administrator has chosen since.
fn name_machine(machine: &CommandLine, config: &Config, named: bool) {
    let kept = std::fs::read_to_string("/etc/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    let given = machine.hostname.clone();
    let name = match named {
        true => kept.or(given),
        false => given.or(kept),
    };
    let name = name.or_else(|| config.hostname.clone());
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        // An invalid name in the image leaves the kernel's.
        let _ = nix::unistd::sethostname(name);
    }
}

/// The end of a boot that is only measured.
fn stop_if_asked(machine: &CommandLine) {
    if machine.stop_at_init {
        mounts::print(STOPPED_AT_INIT);
        power::off()
    }
}

/// Forks the agent off, before PID 1 becomes something else.
fn start_agent(timer: BootTimer) -> Result<(), Error> {
    // SAFETY: PID 1 has one thread here, so the child has all that it needs.
    match unsafe { fork() }.map_err(os("starting the agent"))? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            // A session of its own: signals of a console's terminal do not reach it.
            let _ = nix::unistd::setsid();
            power::restore_signals();
            power::survive_systemd();
            let clock = timer.clone();
            let error = agent::serve(
                move || timer.mark(mark::READY),
                Box::new(move || clock.host_time()),
            )
            .err();
            if let Some(error) = error {
                mounts::say(&format!("guest-init: no agent: vsock: {error}"));
            }
            std::process::exit(1)
        }
    }
}
