//! `imgtool build`: from a recipe file to an AMI file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ami::boot::{BootConfig, Service};
use ami::{Architecture, BlockDeviceMapping, Digest, ExposedPort, INIT_GUEST, Manifest};
use displaydoc::Display;

use crate::advice::Advice;
use crate::base::{self, Base};
use crate::boot::{command_line, defaults};
use crate::compose::kernel::Kernel;
use crate::compose::{self, Written, initramfs, kernel, modules, sbom};
use crate::fetch::Access;
use crate::progress::{Progress, Unit};
use crate::recipe::{self, Recipe};
use crate::root::{self, Root};
use crate::store::{self, Store};

/// Why an image could not be built.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Recipe(#[from] recipe::Error),
    /// {0}
    Store(#[from] store::Error),
    /// {0}
    Root(#[from] root::Error),
    /// {0}
    Compose(#[from] compose::Error),
    /// recipe {recipe} is not for {arch}
    Architecture {
        /// The recipe.
        recipe: String,
        /// What was asked for.
        arch: Architecture,
        /// What it is for.
        first: Architecture,
    },
    /// {0}
    Base(#[from] base::Error),
    /// the built-in recipe of the kernel is wrong: {0}
    Builtin(#[source] toml::de::Error),
    /// cannot read the kernel {path}: {source}
    KernelFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Recipe(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::Root(error) => error.advice(),
            Self::Compose(error) => error.advice(),
            Self::Base(error) => error.advice(),
            Self::Architecture { arch, first, .. } => {
                Some(format!("--arch {first}, or add \"{arch}\" to `arch` in the recipe").into())
            }
            Self::Builtin(..) => Some("report it, and give --kernel meanwhile".into()),
            Self::KernelFile { .. } => Some("correct kernel.path in the recipe".into()),
        }
    }
}

/// How to build.
pub struct Options<'a> {
    /// The recipe.
    pub recipe: &'a Path,
    /// Where to write the image; unset, the recipe's name and `.ami` in the current directory.
    pub output: Option<&'a Path>,
    /// For which architecture; unset, the host's if the recipe allows it, else the recipe's first.
    pub arch: Option<Architecture>,
    /// Refuse to change the lock file.
    pub locked: bool,
    /// Use the cache only.
    pub offline: bool,
    /// The guest-init to use.
    pub guest_init: Option<&'a Path>,
    /// The cache.
    pub store: &'a Store,
    /// How servers are reached.
    pub access: &'a Access,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// Where the image is.
    pub path: PathBuf,
    /// What it is.
    pub image: Written,
}

/// Build an image.
pub fn build(options: &Options<'_>) -> Result<Built, Error> {
    let mut recipe = Recipe::load(options.recipe)?;
    let arch = choose_arch(&recipe, options.arch)?;
    let base = open_base(&mut recipe, arch)?;
    // Looked up first: it is the cheapest thing that can be missing.
    let expected = recipe.kernel_target(arch);
    let guest_init = initramfs::find_guest_init(expected, options.guest_init)?;
    let path = match options.output {
        Some(path) => path.to_path_buf(),
        None => PathBuf::from(format!("{}.ami", recipe.name)),
    };
    // So is a place for the result: a file without a name is begun there, and goes at once.
    drop(ami::NewFile::create(&path).map_err(compose::Error::Ami)?);
    let lock = crate::lock::path_for(options.recipe);
    let root = root::build(
        &recipe,
        &root::Options {
            arch,
            base: base.as_ref(),
            store: options.store,
            access: options.access,
            lock: Some(&lock),
            locked: options.locked,
            offline: options.offline,
            progress: options.progress,
        },
    )?;
    let step = options.progress.start("kernel", None, Unit::Items);
    let (kernel, modules) = match &base {
        Some(base) if recipe.kernel_of_base() => base.kernel(&recipe.modules_for(arch))?,
        _ => kernel_of(&recipe, &root, arch)?,
    };
    step.finish(&format!(
        "{}, {} modules",
        kernel.release.as_deref().unwrap_or("own"),
        modules.len()
    ));
    let guest_init = match kernel.target(arch) {
        target if target == expected => guest_init,
        // Which kernel a file or the base has is known only now.
        target => initramfs::find_guest_init(target, options.guest_init)?,
    };
    let document = sbom::document(&recipe.name, &root.packages, root.epoch);
    let image = compose::Image {
        tree: &root.tree,
        kernel: &kernel,
        modules: &modules,
        guest_init: &guest_init,
        boot: boot_config(&recipe),
        manifest: Manifest {
            parent: base.as_ref().map(|base| base.id().clone()),
            ..manifest(&recipe, arch, &root)
        },
        sbom: (!root.packages.is_empty()).then_some(&document[..]),
        root_size: recipe.root_size.0.or_else(|| size_for_first_boot(&root)),
        epoch: root.epoch,
    };
    let image = compose::write(image, &path, options.progress)?;
    Ok(Built { path, image })
}

/// The size of a root whose first boot needs more than the usual headroom.
fn size_for_first_boot(root: &Root) -> Option<u64> {
    (root.room > 0).then(|| compose::ext4::automatic_size(&root.tree) + root.room)
}

/// Opens the base image, and fills in from it what the recipe leaves open.
pub fn open_base(recipe: &mut Recipe, arch: Architecture) -> Result<Option<Base>, Error> {
    let Some(path) = &recipe.base else {
        return Ok(None);
    };
    let base = Base::open(&recipe.resolve_path(path), arch)?;
    base.complete(recipe);
    Ok(Some(base))
}

/// The architecture that a recipe is built for.
pub fn choose_arch(recipe: &Recipe, asked: Option<Architecture>) -> Result<Architecture, Error> {
    // `check` refuses an empty list.
    let first = recipe.arch.first().copied().unwrap_or(Architecture::X86_64);
    match asked {
        Some(arch) if recipe.arch.contains(&arch) => Ok(arch),
        Some(arch) => Err(Error::Architecture {
            recipe: recipe.name.clone(),
            arch,
            first,
        }),
        None => Ok(Architecture::host()
            .filter(|arch| recipe.arch.contains(arch))
            .unwrap_or(first)),
    }
}

fn kernel_of(
    recipe: &Recipe,
    root: &Root,
    architecture: Architecture,
) -> Result<(Kernel, Vec<modules::Module>), Error> {
    if let Some(path) = &recipe.kernel.path {
        let path = recipe.resolve_path(path);
        let image = std::fs::read(&path).map_err(|source| Error::KernelFile {
            path: path.clone(),
            source,
        })?;
        let name = path.display().to_string();
        let kernel = kernel::from_bytes(&name, &image, architecture)?;
        return Ok((kernel, Vec::new()));
    }
    let tree = root.kernel.as_ref().ok_or(compose::Error::NoKernel)?;
    let kernel = kernel::from_tree(tree, architecture)?;
    let release = kernel.release.as_deref().unwrap_or_default();
    let wanted = recipe.modules_for(architecture);
    let modules = modules::closure(tree, release, &wanted, &recipe.command_line)?;
    Ok((kernel, modules))
}

/// Debian's kernel for an architecture with the modules that every image needs, for images that no recipe
/// describes.
pub fn debian_kernel(
    architecture: Architecture,
    (store, access): (&Store, &Access),
    progress: &dyn Progress,
) -> Result<(Kernel, Vec<modules::Module>), Error> {
    let text = "name = \"kernel\"\nvariant = \"extract\"\n";
    let recipe: Recipe = toml::from_str(text).map_err(Error::Builtin)?;
    let options = root::Options {
        arch: architecture,
        base: None,
        store,
        access,
        lock: None,
        locked: false,
        offline: false,
        progress,
    };
    let root = root::build(&recipe, &options)?;
    kernel_of(&recipe, &root, architecture)
}

fn manifest(recipe: &Recipe, architecture: Architecture, root: &Root) -> Manifest {
    let mut manifest = Manifest::new(&recipe.name, architecture);
    manifest.description.clone_from(&recipe.description);
    manifest.created.clone_from(&recipe.created);
    manifest.tags.clone_from(&recipe.tags);
    manifest.command_line = command_line(&recipe.command_line);
    manifest.init = recipe.init().to_owned();
    manifest.exposed_ports = recipe.all_ports().into_iter().map(exposed).collect();
    if let Some(cpus) = recipe.cpus {
        manifest.default_cpus = cpus;
    }
    if let Some(memory) = recipe.memory.and_then(|size| size.0) {
        manifest.default_memory = memory;
    }
    manifest.package_lock = Some(Digest::of(root.lock_text.as_bytes()));
    manifest.block_device_mappings = recipe
        .block_devices
        .iter()
        .map(|device| BlockDeviceMapping {
            device: device.name.clone(),
            size: device.size.0.unwrap_or(1 << 30),
            delete_on_termination: device.delete_on_termination,
        })
        .collect();
    manifest
}

fn exposed(port: recipe::Port) -> ExposedPort {
    ExposedPort {
        port: port.number,
        protocol: port.protocol,
    }
}

fn boot_config(recipe: &Recipe) -> BootConfig {
    let ours = recipe.init() == INIT_GUEST;
    BootConfig {
        // A main program, of a container image that this one is layered on, has the console.
        console_shell: ours && !recipe.services.iter().any(|service| service.main),
        hostname: recipe.hostname.clone(),
        // With an init of its own, services are its units.
        services: if ours {
            recipe.services.iter().map(service).collect()
        } else {
            Vec::new()
        },
        ..defaults(recipe.init())
    }
}

fn service(service: &recipe::Service) -> Service {
    Service {
        name: service.name.clone(),
        command: service.command.clone(),
        environment: service.environment.clone(),
        directory: service.working_directory.clone(),
        user: service.user.clone(),
        restart: service.restart,
        main: service.main,
    }
}
