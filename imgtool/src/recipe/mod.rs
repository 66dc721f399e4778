//! The recipe: what an image is made of, as a person writes it. docs/recipe.md explains every key.

mod braces;
mod check;
mod contents;
mod values;
mod wrong;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ami::Architecture;
use ami::boot::Restart;
use serde::{Deserialize, Serialize};

use crate::target::Target;

pub use braces::expand_braces;
pub use check::Error;
pub use contents::{EMPTY_AT_BOOT, is_below};
pub use values::{Mode, Port, Size};

/// A recipe, as `docs/recipe.schema.json` describes it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The image's name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// The creation date in the manifest, RFC 3339 in UTC, and the latest file time in the image. Unset, none
    /// is recorded and file times end at the newest package.
    #[serde(default)]
    pub created: Option<String>,
    /// Free labels.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The architectures that it can be built for, the default one first.
    #[serde(default = "every_architecture")]
    pub arch: Vec<Architecture>,
    /// An AMI to layer on instead of an empty root; `packages` then adds to it.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// The set of packages that the root starts from.
    #[serde(default)]
    pub variant: Variant,
    /// Packages: `name`, `name (>= version)`, `a | b`, `name [amd64]` for one architecture only; `-name`
    /// leaves one out.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Install recommended packages, too.
    #[serde(default)]
    pub recommends: bool,
    /// Paths that are not unpacked, as dpkg's `path-exclude`: `*` matches `/`, too.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Paths that are unpacked although `exclude` matches them.
    #[serde(default)]
    pub include: Vec<String>,
    /// Where packages come from.
    #[serde(default)]
    pub distribution: Distribution,
    /// The kernel.
    #[serde(default)]
    pub kernel: Kernel,
    /// Modules for the initramfs, besides those that every image needs: `name`, or `name [amd64]` for one
    /// architecture only, as Debian writes it.
    #[serde(default)]
    pub modules: Vec<String>,
    /// The kernel command line, after what the image needs itself.
    #[serde(default)]
    pub command_line: String,
    /// The size of the root file system: `auto` or a size such as `2G`.
    #[serde(default)]
    pub root_size: Size,
    /// Process 1 of the running system: `guest-init`, or the path of the image's own. Unset: the base's, or
    /// `guest-init`.
    #[serde(default)]
    pub init: Option<String>,
    /// The host name; an instance's own name goes before it.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Files to write into the root.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// Users to create, and what is set for those that exist.
    #[serde(default)]
    pub users: Vec<User>,
    /// Services to supervise.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Shell commands that run in the root as root, in order, without network.
    #[serde(default)]
    pub run: Vec<String>,
    /// Volumes besides the root.
    #[serde(default)]
    pub block_devices: Vec<BlockDevice>,
    /// Ports that the image listens on.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Default number of processors.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Default memory.
    #[serde(default)]
    pub memory: Option<Size>,
    /// The directory of the recipe: relative paths in it begin here.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// The set of packages that a root starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Only `packages` and what they depend on, unpacked and not configured: no maintainer script runs.
    Extract,
    /// Packages marked essential.
    Essential,
    /// Priority `required`, and apt. What debootstrap calls minbase.
    #[default]
    Minbase,
    /// Priorities `required` and `important`, and apt.
    Important,
    /// Priorities `required`, `important` and `standard`, and apt.
    Standard,
}

/// Where packages come from.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Distribution {
    /// The suite, such as `trixie` or `sid`.
    pub suite: String,
    /// The archive's base address.
    pub mirror: Option<String>,
    /// The components.
    pub components: Vec<String>,
    /// Build from the archive as it was at this moment (`20261121T000000Z`, or RFC 3339). Without `mirror`
    /// the packages come from snapshot.debian.org. Expiry of the archive's index is then no error.
    pub snapshot: Option<String>,
    /// A keyring instead of the built-in keys of Debian.
    pub keyring: Option<PathBuf>,
    /// Use `SUITE-updates`. Unset: yes, for suites that have it, on a mirror of Debian.
    pub updates: Option<bool>,
    /// Use `SUITE-security`. Unset: as `updates`.
    pub security: Option<bool>,
    /// The base address of the security archive.
    pub security_mirror: Option<String>,
    /// Further repositories.
    pub repositories: Vec<ExtraRepository>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            suite: "trixie".into(),
            mirror: None,
            components: vec!["main".into()],
            snapshot: None,
            keyring: None,
            updates: None,
            security: None,
            security_mirror: None,
            repositories: Vec::new(),
        }
    }
}

/// A repository besides the distribution's own.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExtraRepository {
    /// Its base address.
    pub url: String,
    /// The suite.
    pub suite: String,
    /// The components.
    #[serde(default = "default_components")]
    pub components: Vec<String>,
    /// The keys that may sign it, binary or in ASCII armour; Debian's own without.
    pub keyring: Option<PathBuf>,
}

/// The kernel: from a package (the default), built, or a file.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// A kernel package; `$arch` stands for Debian's name of the kernel's architecture. `NAME:i386` is a
    /// 32-bit kernel, for images of i386.
    #[serde(default)]
    pub package: Option<String>,
    /// A kernel configuration to build.
    #[serde(default)]
    pub build: Option<KernelBuild>,
    /// A kernel image on this machine.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

impl Kernel {
    /// What the name of a package ends with that holds a 32-bit kernel.
    pub const OF_32_BITS: &str = ":i386";
}

/// A kernel configuration of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelBuild {
    /// Virtio and what containers need, built in, no modules.
    Microvm,
}

/// A file of the root. Exactly one of `content`, `source`, `link` and `directory` says what it is.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileEntry {
    /// Where, absolute. `{a,b}` stands for both.
    pub path: String,
    /// Its text.
    #[serde(default)]
    pub content: Option<String>,
    /// A file or directory next to the recipe to copy, directories with all that is in them.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// The target of a symbolic link.
    #[serde(default)]
    pub link: Option<String>,
    /// Make an empty directory.
    #[serde(default)]
    pub directory: bool,
    /// Permissions in octal, `"0644"`. Unset: 0644, 0755 for directories and for sources that are executable.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Owner: a name in the image or a number.
    #[serde(default = "root")]
    pub owner: String,
    /// Group: a name in the image or a number.
    #[serde(default = "root")]
    pub group: String,
}

/// A user.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// The login name.
    pub name: String,
    /// The number; unset, the next free one from 1000.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The full name.
    #[serde(default)]
    pub comment: String,
    /// The home directory; unset, `/home/NAME`.
    #[serde(default)]
    pub home: Option<String>,
    /// The login shell. Unset, a new user has `/bin/bash`, or `/bin/sh` in an image without it; one that
    /// exists keeps its own.
    #[serde(default)]
    pub shell: Option<String>,
    /// A crypt(5) hash, as `openssl passwd -6` makes. Unset, no password lets the user in.
    #[serde(default)]
    pub password_hash: Option<String>,
    /// Lines of `authorized_keys`.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Further groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// May become root with sudo, without a password.
    #[serde(default)]
    pub sudo: bool,
}

/// A service: a unit of systemd, or what guest-init supervises.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Program and arguments. No shell is involved.
    pub command: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The working directory.
    #[serde(default = "slash")]
    pub working_directory: String,
    /// When to start it again.
    #[serde(default = "always")]
    pub restart: Restart,
    /// The user that it runs as.
    #[serde(default = "root")]
    pub user: String,
    /// Ports that it listens on: they become the image's.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// The image ends with it. Recipes do not say so: a container image as base does.
    #[serde(skip)]
    pub main: bool,
}

/// A volume besides the root.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockDevice {
    /// The device's name for the API, such as `/dev/sdb`.
    pub name: String,
    /// The size.
    pub size: Size,
    /// Whether the volume is removed with its instance.
    #[serde(default = "yes")]
    pub delete_on_termination: bool,
}

impl Recipe {
    /// Reads and checks a recipe file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        check::load(path)
    }

    /// Process 1 of the running system.
    pub fn init(&self) -> &str {
        self.init.as_deref().unwrap_or("guest-init")
    }

    /// Whether the kernel is that of the base image.
    pub fn kernel_of_base(&self) -> bool {
        let Kernel { package, build, path } = &self.kernel;
        self.base.is_some() && package.is_none() && build.is_none() && path.is_none()
    }

    /// The name of the kernel package for images of an architecture; `None` if the kernel is built, a file,
    /// or the base's.
    pub fn kernel_package(&self, arch: Architecture) -> Option<String> {
        if self.kernel.build.is_some() || self.kernel.path.is_some() || self.kernel_of_base() {
            return None;
        }
        let name = self
            .kernel
            .package
            .as_deref()
            .unwrap_or("linux-image-cloud-$arch");
        Some(name.replace("$arch", arch.of_kernel().debian()))
    }

    /// Debian's name of the architecture of the kernel in images of an architecture, as far as the recipe
    /// says.
    pub fn kernel_arch(&self, arch: Architecture) -> &'static str {
        let package = self.kernel.package.as_deref().unwrap_or_default();
        let is_32_bits = arch == Architecture::I386 && package.ends_with(Kernel::OF_32_BITS);
        let arch = if is_32_bits { arch } else { arch.of_kernel() };
        arch.debian()
    }

    /// What that kernel is built for.
    pub fn kernel_target(&self, arch: Architecture) -> Target {
        if self.kernel_arch(arch) == Architecture::I386.debian() {
            Target::I686
        } else {
            Target::of(arch)
        }
    }

    /// The names of the modules for images of an architecture. Modules are the kernel's: its architecture is
    /// what a restriction names.
    pub fn modules_for(&self, arch: Architecture) -> Vec<String> {
        for_architecture(&self.modules, self.kernel_arch(arch))
    }

    /// The entries of `packages` for an architecture.
    pub fn packages_for(&self, arch: Architecture) -> Vec<String> {
        for_architecture(&self.packages, arch.debian())
    }

    /// Ports of the image and of its services, sorted, each once.
    pub fn all_ports(&self) -> Vec<Port> {
        let services = self.services.iter().flat_map(|service| &service.ports);
        let mut ports: Vec<_> = self.ports.iter().chain(services).copied().collect();
        ports.sort();
        ports.dedup();
        ports
    }

    /// A path of the recipe, seen from the directory in which the recipe is.
    pub fn resolve_path(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }
}

fn every_architecture() -> Vec<Architecture> {
    Architecture::ALL.to_vec()
}

fn always() -> Restart {
    Restart::Always
}

fn default_components() -> Vec<String> {
    vec!["main".into()]
}

fn root() -> String {
    "root".into()
}

fn slash() -> String {
    "/".into()
}

fn yes() -> bool {
    true
}

/// The entries for an architecture: those without a restriction, and those whose restriction (`name [amd64
/// arm64]`, as in Debian Policy 7.1) names it.
fn for_architecture(entries: &[String], debian: &str) -> Vec<String> {
    let chosen = |entry: &String| match entry.split_once('[') {
        None => Some(entry.trim().to_owned()),
        Some((name, restriction)) => {
            let mut architectures = restriction.trim_end_matches(']').split_whitespace();
            architectures
                .any(|one| one == debian)
                .then(|| name.trim().to_owned())
        }
    };
    entries.iter().filter_map(chosen).collect()
}

#[cfg(test)]
mod tests;
