//! An image that another is layered on: its root, its packages, its kernel, and what its manifest says where
//! the recipe is silent.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use ami::boot::BootConfig;
use ami::{Ami, Architecture, PartName};
use displaydoc::Display;

use crate::advice::{Advice, Reason};
use crate::compose::kernel::{self, Kernel};
use crate::compose::modules::Module;
use crate::compose::{self, cpio, sbom};
use crate::fetch::Index;
use crate::imagefs;
use crate::lock::Package;
use crate::recipe::{BlockDevice, Port, Recipe, Service, Size};
use crate::tree::{Kind, Tree};

/// Largest initramfs whose modules are taken over.
const MAX_INITRAMFS: u64 = 1 << 30;
/// Largest kernel taken over.
const MAX_KERNEL: u64 = 1 << 30;
/// Largest database of installed packages: 10,000 packages have 10 MB.
const MAX_STATUS: u64 = 64 << 20;
const STATUS: &[u8] = b"var/lib/dpkg/status";
/// The archive of packages that are installed already.
pub const INSTALLED: &str = "installed";

/// Why an image cannot be a base.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Ami(#[from] ami::Error),
    /// {0}
    Root(#[from] imagefs::Error),
    /// {0}
    Kernel(#[from] compose::Error),
    /// cannot take the modules of {path}: {why}
    Initramfs {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        why: Reason,
    },
    /// image {path} is for {found}, and this build is for {wanted}
    Architecture {
        /// The image.
        path: PathBuf,
        /// What it is for.
        found: Architecture,
        /// What is built.
        wanted: Architecture,
    },
    /// image {path} has no packages that dpkg knows, so none can be added
    NoPackages {
        /// The image.
        path: PathBuf,
    },
    /// the initramfs of {path} has no module `{module}`, and its kernel is taken as it is
    NoModule {
        /// The image.
        path: PathBuf,
        /// The module.
        module: String,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ami(error) => error.advice(),
            Self::Root(error) => error.advice(),
            Self::Kernel(error) => error.advice(),
            Self::Initramfs { .. } => Some("another image".into()),
            Self::Architecture { found, wanted, .. } => {
                Some(format!("--arch {found}, or build the base for {wanted} first").into())
            }
            Self::NoPackages { .. } => {
                Some("leave out `packages`, or choose a base of variant `minbase`".into())
            }
            Self::NoModule { .. } => Some("kernel.package in the recipe".into()),
        }
    }
}

/// A base image, verified.
#[derive(Debug)]
pub struct Base {
    ami: Ami,
    /// The files of its root; contents stay in the image.
    pub tree: Tree,
    /// The packages that dpkg knows as installed, as an index of an archive of that name.
    pub installed: Option<Index>,
    boot: BootConfig,
}

impl Base {
    /// Opens an image and verifies what is taken over.
    pub fn open(path: &Path, architecture: Architecture) -> Result<Self, Error> {
        let ami = Ami::open(path)?;
        let found = ami.manifest().architecture;
        if found != architecture {
            return Err(Error::Architecture {
                path: path.into(),
                found,
                wanted: architecture,
            });
        }
        ami.verify_part(PartName::Root)?;
        let tree = imagefs::of_ami(&ami)?;
        let installed = installed(&tree);
        let boot = boot_of(&ami)?;
        Ok(Self {
            ami,
            tree,
            installed,
            boot,
        })
    }

    /// The image's identity.
    pub fn id(&self) -> &ami::AmiId {
        self.ami.id()
    }

    /// The packages that its bill of materials names; none where it has none.
    pub fn packages(&self) -> Result<Vec<Package>, Error> {
        if self.ami.manifest().part(PartName::Sbom).is_none() {
            return Ok(Vec::new());
        }
        self.ami.verify_part(PartName::Sbom)?;
        let document = sbom::decompress(self.ami.reader(PartName::Sbom)?)
            .map_err(|error| ami::Error::io("decompress the bill of materials of", self.ami.path(), error))?;
        Ok(sbom::packages(&document))
    }

    /// Whether packages can be added.
    pub fn demand_packages(&self) -> Result<&Index, Error> {
        self.installed.as_ref().ok_or_else(|| Error::NoPackages {
            path: self.ami.path().into(),
        })
    }

    /// Its kernel and modules; `wanted` must be among them.
    pub fn kernel(&self, wanted: &[String]) -> Result<(Kernel, Vec<Module>), Error> {
        let (kernel, modules) = kernel_of(&self.ami)?;
        let known = |name: &&String| modules.iter().any(|module| module.name == name.replace('-', "_"));
        match wanted.iter().find(|name| !known(name)) {
            None => Ok((kernel, modules)),
            Some(module) => Err(Error::NoModule {
                path: self.ami.path().into(),
                module: module.clone(),
            }),
        }
    }

    /// Fills in what the recipe leaves open.
    pub fn complete(&self, recipe: &mut Recipe) {
        let manifest = self.ami.manifest();
        recipe.init.get_or_insert_with(|| manifest.init.clone());
        recipe.cpus.get_or_insert(manifest.default_cpus);
        recipe.memory.get_or_insert(Size(Some(manifest.default_memory)));
        if recipe.hostname.is_none() {
            recipe.hostname.clone_from(&self.boot.hostname);
        }
        let line = crate::boot::own_words(&manifest.command_line);
        recipe.command_line = ami::command_line::join([line, &recipe.command_line]);
        recipe
            .ports
            .extend(manifest.exposed_ports.iter().map(|exposed| Port {
                number: exposed.port,
                protocol: exposed.protocol,
            }));
        for mapping in &manifest.block_device_mappings {
            let known = recipe
                .block_devices
                .iter()
                .any(|device| device.name == mapping.device);
            if mapping.device != manifest.root_device && !known {
                recipe.block_devices.push(BlockDevice {
                    name: mapping.device.clone(),
                    size: Size(Some(mapping.size)),
                    delete_on_termination: mapping.delete_on_termination,
                });
            }
        }
        for service in self.boot.services.iter().rev() {
            if !recipe.services.iter().any(|own| own.name == service.name) {
                recipe.services.insert(0, taken_over(service));
            }
        }
    }
}

fn taken_over(service: &ami::boot::Service) -> Service {
    Service {
        name: service.name.clone(),
        command: service.command.clone(),
        environment: service.environment.clone(),
        working_directory: service.directory.clone(),
        user: service.user.clone(),
        restart: service.restart,
        ports: Vec::new(),
        main: service.main,
    }
}

/// The installed packages in dpkg's database, with the fields that an archive's index has besides.
fn installed(tree: &Tree) -> Option<Index> {
    let node = tree.node(tree.find(STATUS).ok()??);
    let Kind::File(content) = &node.kind else {
        return None;
    };
    let status = String::from_utf8(content.read(MAX_STATUS).ok()?).ok()?;
    let digest = "0".repeat(64);
    let text: String = status
        .split("\n\n")
        .filter(|paragraph| {
            paragraph
                .lines()
                .any(|line| line == "Status: install ok installed")
        })
        .map(|paragraph| {
            format!(
                "{}\nFilename: installed\nSize: 0\nSHA256: {digest}\n\n",
                paragraph.trim()
            )
        })
        .collect();
    (!text.is_empty()).then(|| Index {
        url: INSTALLED.into(),
        suite: INSTALLED.into(),
        text,
    })
}

fn part(ami: &Ami, name: PartName, cap: u64) -> Result<Vec<u8>, Error> {
    ami.verify_part(name)?;
    let mut bytes = Vec::new();
    ami.reader(name)?
        .take(cap)
        .read_to_end(&mut bytes)
        .map_err(|error| ami::Error::io("read", ami.path(), error))?;
    Ok(bytes)
}

/// What an image's guest-init is to do.
pub fn boot_of(ami: &Ami) -> Result<BootConfig, Error> {
    let archive = part(ami, PartName::Initramfs, MAX_INITRAMFS)?;
    let wrong = |why: Reason| Error::Initramfs {
        path: ami.path().into(),
        why,
    };
    let files = cpio::files(&archive).map_err(|why| wrong(why.into()))?;
    let boot = files
        .get(ami::boot::PATH)
        .ok_or_else(|| wrong(format!("it has no {}", ami::boot::PATH).into()))?;
    serde_json::from_slice(boot).map_err(|e| wrong(e.into()))
}

/// The kernel of an image with the modules of its initramfs.
pub fn kernel_of(ami: &Ami) -> Result<(Kernel, Vec<Module>), Error> {
    let path = ami.path();
    let bytes = kernel::extract(
        &path.display().to_string(),
        &part(ami, PartName::Kernel, MAX_KERNEL)?,
        ami.manifest().architecture,
    )?;
    let archive = part(ami, PartName::Initramfs, MAX_INITRAMFS)?;
    let wrong = |why: Reason| Error::Initramfs {
        path: path.into(),
        why,
    };
    let files = cpio::files(&archive).map_err(|why| wrong(why.into()))?;
    let mut modules = Vec::new();
    for name in &ami.manifest().modules {
        let file = format!("{}/{name}.ko", ami::boot::MODULES);
        let bytes = files
            .get(file.as_str())
            .ok_or_else(|| wrong(format!("its initramfs has no {file}").into()))?;
        modules.push(Module {
            name: name.clone(),
            bytes: bytes.to_vec(),
        });
    }
    Ok((
        Kernel {
            release: ami.manifest().kernel_release.clone(),
            bytes,
        },
        modules,
    ))
}
