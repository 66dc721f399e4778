//! `imgtool import`: an AMI around a root that others made.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ami::boot::{BootConfig, Restart, Service};
use ami::{Ami, Architecture, ExposedPort, INIT_GUEST, Manifest, Protocol};
use displaydoc::Display;

use super::{Config, Imported};
use crate::advice::Advice;
use crate::compose::kernel::Kernel;
use crate::compose::modules::Module;
use crate::compose::{self, Written, initramfs, kernel};
use crate::fetch::Access;
use crate::progress::{Progress, Unit};
use crate::store::Store;
use crate::tree::{Meta, Tree};
use crate::{base, boot, build, unpack};

/// Why a source did not become an image.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Source(#[from] super::Error),
    /// {0}
    Kernel(#[from] build::Error),
    /// {0}
    Ami(#[from] ami::Error),
    /// {0}
    Base(#[from] base::Error),
    /// {0}
    Compose(#[from] compose::Error),
    /// the programs of {path} are for {found}, not for {wanted}
    Architecture {
        /// The source.
        path: PathBuf,
        /// What it says.
        found: Architecture,
        /// What was asked for.
        wanted: Architecture,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Source(error) => error.advice(),
            Self::Kernel(error) => error.advice(),
            Self::Ami(error) => error.advice(),
            Self::Base(error) => error.advice(),
            Self::Compose(error) => error.advice(),
            Self::Architecture { found, .. } => Some(format!("--arch {found}, or leave --arch out").into()),
        }
    }
}

/// Where an imported image's kernel comes from.
#[derive(Clone, Copy)]
pub enum KernelSource<'a> {
    /// An AMI or a kernel image.
    File(&'a Path),
    /// Debian's archive.
    Debian {
        /// The cache.
        store: &'a Store,
        /// How servers are reached.
        access: &'a Access,
    },
}

/// How to import.
pub struct Options<'a> {
    /// The source.
    pub source: &'a Path,
    /// Where to write the image.
    pub output: &'a Path,
    /// Its name.
    pub name: &'a str,
    /// Its architecture; unset, what the source says, or this host's.
    pub architecture: Option<Architecture>,
    /// Its kernel.
    pub kernel: KernelSource<'a>,
    /// The guest-init to use.
    pub guest_init: Option<&'a Path>,
    /// Size of the root in bytes; unset, as the content needs.
    pub root_size: Option<u64>,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

/// Import a source.
pub fn image(options: &Options<'_>) -> Result<Written, Error> {
    let host = || Architecture::host().unwrap_or(Architecture::X86_64);
    let wanted = options.architecture.unwrap_or_else(host);
    let step = options.progress.start("read source", None, Unit::Items);
    let Imported { mut tree, config } = super::load(options.source, wanted, &std::env::temp_dir())?;
    step.finish(&format!("{} files", tree.len()));
    let epoch = newest(&tree);
    let config = config.unwrap_or_default();
    let architecture = match (config.architecture, options.architecture) {
        (Some(found), Some(wanted)) if found != wanted => {
            let path = options.source.to_owned();
            return Err(Error::Architecture { path, found, wanted });
        }
        (found, _) => found.unwrap_or(wanted),
    };
    complete(&mut tree, &config.directory, epoch)?;
    let (kernel, modules) = match options.kernel {
        KernelSource::Debian { store, access } => {
            build::debian_kernel(architecture, (store, access), options.progress)?
        }
        KernelSource::File(path) => take_kernel(path, architecture)?,
    };
    let guest_init = initramfs::find_guest_init(kernel.target(architecture), options.guest_init)?;
    let mut manifest = Manifest::new(options.name, architecture);
    manifest.command_line = boot::command_line("");
    manifest.init = init_of(&tree, &config);
    manifest.exposed_ports = config.ports.iter().filter_map(|port| exposed(port)).collect();
    let boot = boot_config(options.name, &manifest.init, config);
    let image = compose::Image {
        tree: &tree,
        kernel: &kernel,
        modules: &modules,
        guest_init: &guest_init,
        boot,
        manifest,
        sbom: None,
        root_size: options.root_size,
        epoch,
    };
    Ok(compose::write(image, options.output, options.progress)?)
}

/// The newest file's time: nothing in the image should look as if it came from the future.
fn newest(tree: &Tree) -> i64 {
    tree.walk()
        .map(|(_, id)| tree.node(id).meta.mtime)
        .max()
        .unwrap_or(0)
        .max(0)
}

/// Container images leave out the directories that a runtime mounts things on, and may leave out the one that
/// the command begins in.
fn complete(tree: &mut Tree, working: &str, epoch: i64) -> Result<(), Error> {
    for directory in [
        "usr", "etc", "dev", "proc", "sys", "run", "var", "var/lib", "var/log", "root", "mnt", working,
    ] {
        let made = tree.create_dirs(directory.as_bytes(), &Meta::new(0o755, 0, 0, epoch));
        made.map_err(compose::Error::Tree)?;
    }
    unpack::complete(tree, epoch).map_err(compose::Error::Tree)?;
    Ok(())
}

/// A container's command runs under guest-init; a whole system has an init of its own.
fn init_of(tree: &Tree, config: &Config) -> String {
    let own = ["sbin/init", "usr/lib/systemd/systemd"];
    let found = own
        .iter()
        .find(|path| matches!(tree.find_followed(path.as_bytes()), Ok(Some(_))));
    match found {
        Some(path) if config.command.is_empty() => format!("/{path}"),
        _ => INIT_GUEST.to_owned(),
    }
}

fn boot_config(name: &str, init: &str, config: Config) -> BootConfig {
    let Config {
        command,
        environment,
        directory,
        user,
        ports: _,
        architecture: _,
    } = config;
    let ours = init == INIT_GUEST;
    let service = (ours && !command.is_empty()).then(|| Service {
        name: name.to_owned(),
        command,
        environment,
        directory: if directory.is_empty() {
            "/".into()
        } else {
            directory
        },
        user: if user.is_empty() { "root".into() } else { user },
        restart: Restart::Never,
        main: true,
    });
    BootConfig {
        // The console is the command's.
        console_shell: ours && service.is_none(),
        services: service.into_iter().collect(),
        ..boot::defaults(init)
    }
}

fn exposed(text: &str) -> Option<ExposedPort> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = if protocol == "udp" {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    Some(ExposedPort {
        port: port.parse().ok().filter(|port| *port != 0)?,
        protocol,
    })
}

/// The kernel of another AMI with its modules, or a kernel image that needs none.
fn take_kernel(path: &Path, architecture: Architecture) -> Result<(Kernel, Vec<Module>), Error> {
    let ami = match Ami::open(path) {
        Ok(ami) => ami,
        Err(ami::Error::NotAnAmi { .. }) => {
            let failed = |source| build::Error::KernelFile {
                path: path.into(),
                source,
            };
            let image = std::fs::read(path).map_err(failed)?;
            return Ok((
                kernel::from_bytes(&path.display().to_string(), &image, architecture)?,
                Vec::new(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(base::kernel_of(&ami)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_command_is_the_main_program() {
        let config = || Config {
            command: vec!["/bin/server".into(), "-v".into()],
            directory: "/srv".into(),
            user: "1001:www".into(),
            ..Config::default()
        };
        let boot = boot_config("app", INIT_GUEST, config());
        let [main] = &boot.services[..] else {
            panic!("{boot:?}")
        };
        assert!(main.main && !boot.console_shell, "{boot:?}");
        assert_eq!(main.restart, Restart::Never);
        assert_eq!(
            (main.directory.as_str(), main.user.as_str()),
            ("/srv", "1001:www")
        );
        // A container without a command, and a system with an init of its own, have none.
        assert!(boot_config("app", INIT_GUEST, Config::default()).console_shell);
        assert!(boot_config("app", "/sbin/init", config()).services.is_empty());
    }

    #[test]
    fn the_directory_that_a_command_begins_in_is_there() {
        let mut tree = Tree::new();
        complete(&mut tree, "/srv/app", 0).unwrap();
        assert!(tree.find(b"srv/app").unwrap().is_some());
    }
}
