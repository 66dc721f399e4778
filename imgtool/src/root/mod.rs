//! From a recipe to a root file system: lock, fetch, unpack, configure, overlay.
//!
//! ```text
//! recipe ─ lock ─ fetch ─ unpack ─ configure ─ overlay ─▶ Root { tree, kernel, packages, … }
//!            └── resolve: only when the lock file does not answer
//! ```

mod lock_packages;

use std::path::{Path, PathBuf};

pub use lock_packages::lock_packages;

use crate::configure;
use crate::fetch::{self, Client};
use crate::lock::{self, Package};
use crate::progress::{Progress, Unit};
use crate::recipe::{Arch, Recipe, Variant};
use crate::resolve;
use crate::store::{self, Store};
use crate::tree::Tree;
use crate::unpack::{self, Filter, Unpack};

/// Why a root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fetching failed.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// No set of packages was found.
    #[error(transparent)]
    Resolve(#[from] resolve::Error),
    /// The lock file does not serve.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A package cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// The root cannot be completed.
    #[error(transparent)]
    Configure(#[from] configure::Error),
}

/// How to make a root.
pub struct Options<'a> {
    /// For which architecture.
    pub arch: Arch,
    /// The cache.
    pub store: &'a Store,
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
    /// The files of the kernel packages, which are not in the root; `None` if the recipe's kernel is no package.
    pub kernel: Option<Tree>,
    /// Its packages, and those of the kernel at the end.
    pub packages: Vec<Package>,
    /// The packages as text, one a line: what a lock digest is taken of.
    pub lock_text: String,
    /// What counts as now for this build, in seconds since 1970: no file is newer.
    pub epoch: i64,
}

/// Makes the root of a recipe.
pub fn build(recipe: &Recipe, options: &Options<'_>) -> Result<Root, Error> {
    let section = lock_packages(recipe, options)?;
    fetch_packages(&section.packages, options)?;
    let (root, kernel): (Vec<Package>, Vec<Package>) = section
        .packages
        .iter()
        .cloned()
        .partition(|package| !package.kernel);
    let scratch = scratch(options.store);
    let filter = Filter::new(&recipe.exclude, &recipe.include);
    let unpack = |what: &str, packages: &[Package], filter: &Filter, tree: &mut Tree, database: bool| {
        let step = options
            .progress
            .start(what, Some(packages.len() as u64), Unit::Items);
        let unpack = Unpack {
            store: options.store,
            packages,
            filter,
            scratch: &scratch,
            step: &*step,
        };
        let newest = if database {
            unpack.with_database(tree)
        } else {
            unpack.unpack_into(tree)
        }?;
        step.finish(&format!("{} packages", packages.len()));
        Ok::<_, Error>(newest.0)
    };
    let mut tree = Tree::new();
    unpack::merge_usr(&mut tree, options.arch.debian(), 0).map_err(unpack::Error::Layout)?;
    let epoch = unpack(
        "unpack",
        &root,
        &filter,
        &mut tree,
        recipe.variant == Variant::Extract,
    )?;
    unpack::complete(&mut tree, epoch).map_err(unpack::Error::Layout)?;
    configure::basic_accounts(&mut tree, epoch)?;
    overlay(&mut tree, recipe, epoch)?;
    let kernel = match kernel.is_empty() {
        true => None,
        false => {
            let mut tree = Tree::new();
            unpack::merge_usr(&mut tree, options.arch.debian(), 0).map_err(unpack::Error::Layout)?;
            unpack("unpack kernel", &kernel, &Filter::default(), &mut tree, false)?;
            Some(tree)
        }
    };
    Ok(Root {
        tree,
        kernel,
        lock_text: section.text(),
        packages: section.packages,
        epoch,
    })
}

/// What the recipe adds to its packages.
fn overlay(tree: &mut Tree, recipe: &Recipe, epoch: i64) -> Result<(), configure::Error> {
    configure::add_users(tree, recipe, epoch)?;
    configure::add_files(tree, recipe, epoch)?;
    if let Some(hostname) = &recipe.hostname {
        configure::set_hostname(tree, hostname, epoch)?;
    }
    if recipe.init != "guest-init" {
        configure::add_units(tree, recipe, epoch)?;
    }
    Ok(())
}

fn fetch_packages(packages: &[Package], options: &Options<'_>) -> Result<(), Error> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| !options.store.has(&package.sha256, package.size))
        .map(Package::download)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if options.offline {
        return Err(fetch::Error::Offline {
            what: missing[0].name.clone(),
        }
        .into());
    }
    let total = missing.iter().map(|download| download.size).sum();
    let step = options
        .progress
        .start("download packages", Some(total), Unit::Bytes);
    fetch::fetch_debs(&Client::new(), options.store, &missing, &|n| step.advance(n))?;
    step.finish(&format!(
        "{} packages, {:.1} MB",
        missing.len(),
        total as f64 / 1e6
    ));
    Ok(())
}

/// A directory for temporary files: beside the cache, where there is space, or where the system keeps them if the cache
/// is read-only.
fn scratch(store: &Store) -> PathBuf {
    let dir = store.root().join("tmp");
    match store::make_dir(&dir).is_ok() && tempfile::tempfile_in(&dir).is_ok() {
        true => dir,
        false => std::env::temp_dir(),
    }
}
