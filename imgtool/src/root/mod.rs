//! From a recipe to a root file system: lock, fetch, unpack, configure, overlay.
//!
//! ```text
//! recipe ─ lock ─ fetch ─ unpack ─ configure ─ overlay ─▶ Root { tree, kernel, packages, … }
//!            └── resolve: only when the lock file does not answer
//! ```

mod cached;
mod download;
mod lock_packages;
mod sources;
mod stage_dir;
mod stages;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ami::Architecture;
use displaydoc::Display;

pub use lock_packages::lock_packages;

use crate::advice::Advice;
use crate::archive;
use crate::base::{self, Base};
use crate::configure;
use crate::fetch::{self, Access};
use crate::lock::{self, Package};
use crate::microvm;
use crate::progress::{Progress, Unit};
use crate::recipe::{Recipe, Variant};
use crate::resolve;
use crate::store::{self, Store};
use crate::tree::Tree;
use crate::unpack::{self, Filter, Unpack};

/// Why a root could not be made.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Fetch(#[from] fetch::Error),
    /// {0}
    Resolve(#[from] resolve::Error),
    /// {0}
    Lock(#[from] lock::Error),
    /// {0}
    Store(#[from] store::Error),
    /// {0}
    Unpack(#[from] unpack::Error),
    /// {0}
    Configure(#[from] configure::Error),
    /// {0}
    Base(#[from] base::Error),
    /// cannot use {path}, which was just written: {damage}
    Result {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        damage: archive::Damage,
    },
    /// {0}
    Sandbox(#[from] configure::SandboxError),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Fetch(error) => error.advice(),
            Self::Resolve(error) => error.advice(),
            Self::Lock(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::Unpack(error) => error.advice(),
            Self::Configure(error) => error.advice(),
            Self::Base(error) => error.advice(),
            Self::Sandbox(error) => error.advice(),
            Self::Result { .. } => Some("the same command again".into()),
        }
    }
}

/// How to make a root.
pub struct Options<'a> {
    /// For which architecture.
    pub arch: Architecture,
    /// The base image.
    pub base: Option<&'a Base>,
    /// The cache.
    pub store: &'a Store,
    /// How servers are reached.
    pub access: &'a Access,
    /// The lock file; `None` neither reads nor writes one.
    pub lock: Option<&'a Path>,
    /// Refuse to change the lock file.
    pub locked: bool,
    /// Use the cache only.
    pub offline: bool,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

/// A root file system and what it was made of.
pub struct Root {
    /// Its files.
    pub tree: Tree,
    /// The files of the kernel packages, which are not in the root; `None` if the recipe's kernel is no
    /// package.
    pub kernel: Option<Tree>,
    /// Its packages, and those of the kernel at the end.
    pub packages: Vec<Package>,
    /// The packages as text, one a line: what a lock digest is taken of.
    pub lock_text: String,
    /// SOURCE_DATE_EPOCH of this build, in seconds since 1970: no file is newer.
    pub epoch: i64,
    /// Room that its first boot needs besides the files, in bytes.
    pub room: u64,
}

/// Makes the root of a recipe.
pub fn build(recipe: &Recipe, options: &Options<'_>) -> Result<Root, Error> {
    let section = lock_packages(recipe, options)?;
    download::fetch_packages(&section.packages, options)?;
    let (packages, kernel): (Vec<Package>, Vec<Package>) = section
        .packages
        .iter()
        .cloned()
        .partition(|package| !package.kernel);
    let (mut tree, epoch) = match (options.base, recipe.variant) {
        (Some(base), _) => stages::layered(base, recipe, &packages, options)?,
        (None, Variant::Extract) => extracted(recipe, &packages, options)?,
        (None, _) => stages::configured(recipe, &packages, options)?,
    };
    let base = options.base.map(|base| &base.tree);
    let made = configure::made_by_packages(&tree, base)?;
    overlay(&mut tree, recipe, epoch)?;
    if !recipe.run.is_empty() {
        tree = stages::run_steps(recipe, &tree, epoch, options)?;
    }
    configure::check_root(&tree, recipe, options.arch)?;
    for warning in configure::remove_secrets(&mut tree, &made, recipe, epoch)? {
        options.progress.warn(&warning);
    }
    for found in configure::private_keys(&tree, recipe, base)? {
        options.progress.warn(&configure::private_key_warning(&found));
    }
    let lock_text = section.text();
    let mut packages = section.packages;
    if let Some(base) = options.base {
        let of_base = base.packages()?;
        packages.extend(
            of_base
                .into_iter()
                .filter(|package| !package.kernel || recipe.kernel_of_base()),
        );
    }
    let kernel = if recipe.kernel.build.is_some() {
        let built = stages::microvm(&kernel, options)?;
        // What compiled the kernel is locked, but not in the image.
        packages.retain(|package| !package.kernel || microvm::is_source(&package.name));
        Some(built)
    } else if kernel.is_empty() {
        None
    } else {
        Some(stages::kernel(&kernel, options)?)
    };
    Ok(Root {
        room: configure::first_boot_room(&tree)?,
        tree,
        kernel,
        lock_text,
        packages,
        epoch,
    })
}

/// Packages unpacked, not configured, with the least that programs expect of a root.
fn extracted(recipe: &Recipe, packages: &[Package], options: &Options<'_>) -> Result<(Tree, i64), Error> {
    let step = options
        .progress
        .start("unpack", Some(packages.len() as u64), Unit::Items);
    let filter = Filter::new(&recipe.exclude, &recipe.include);
    let (load, scratch) = (unpack::from_store(options.store), cached::scratch(options.store));
    let unpack = Unpack {
        load: &load,
        packages,
        filter: &filter,
        scratch: &scratch,
        step: &*step,
    };
    download::renew_damaged(packages, options)?;
    let mut tree = Tree::new();
    let created = stages::created(recipe);
    unpack::merge_usr(&mut tree, options.arch.debian(), 0).map_err(unpack::Error::Layout)?;
    let newest = unpack.with_database(&mut tree, options.arch.debian())?.0;
    step.finish(&format!("{} packages", packages.len()));
    let epoch = created.unwrap_or(newest);
    unpack::complete(&mut tree, epoch).map_err(unpack::Error::Layout)?;
    configure::clean(&mut tree, epoch).map_err(unpack::Error::Layout)?;
    configure::basic_accounts(&mut tree, epoch)?;
    Ok((tree, epoch))
}

/// What the recipe adds to its packages.
fn overlay(tree: &mut Tree, recipe: &Recipe, epoch: i64) -> Result<(), configure::Error> {
    configure::add_users(tree, recipe, epoch)?;
    configure::add_files(tree, recipe, epoch)?;
    if let Some(hostname) = &recipe.hostname {
        configure::set_hostname(tree, hostname, epoch)?;
    }
    if recipe.init() != "guest-init" {
        configure::add_units(tree, recipe, epoch)?;
    }
    Ok(())
}
