//! From a recipe to a root file system: lock, fetch, unpack, configure, overlay.
//!
//! ```text
//! recipe ─ lock ─ fetch ─ unpack ─ configure ─ overlay ─▶ Root { tree, kernel, packages, … }
//!            └── resolve: only when the lock file does not answer
//! ```

pub mod archive;
mod cached;
mod lock_packages;
mod sources;
mod stage_dir;
mod stages;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use lock_packages::lock_packages;

use crate::base::{self, Base};
use crate::configure;
use crate::fetch::{self, Client};
use crate::lock::{self, Package};
use crate::microvm;
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
    /// The image cannot be built upon.
    #[error(transparent)]
    Base(#[from] base::Error),
    /// The root cannot be configured.
    #[error(transparent)]
    Sandbox(#[from] configure::SandboxError),
}

/// How to make a root.
pub struct Options<'a> {
    /// For which architecture.
    pub arch: Arch,
    /// The image to build upon.
    pub base: Option<&'a Base>,
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
    /// Room that its first boot needs besides the files, in bytes.
    pub room: u64,
}

/// Makes the root of a recipe.
pub fn build(recipe: &Recipe, options: &Options<'_>) -> Result<Root, Error> {
    let section = lock_packages(recipe, options)?;
    fetch_packages(&section.packages, options)?;
    let (packages, kernel): (Vec<Package>, Vec<Package>) = section
        .packages
        .iter()
        .cloned()
        .partition(|package| !package.kernel);
    let (mut tree, epoch) = match (options.base, recipe.variant) {
        (Some(base), _) => stages::upon(base, recipe, &packages, options)?,
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
    renew_damaged(packages, options)?;
    let mut tree = Tree::new();
    let created = stages::created(recipe);
    unpack::merge_usr(&mut tree, options.arch.debian(), 0).map_err(unpack::Error::Layout)?;
    let newest = unpack.with_database(&mut tree)?.0;
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

/// Makes sure that packages are whole in the cache just before they are unpacked, and fetches those that are not again.
fn renew_damaged(packages: &[Package], options: &Options<'_>) -> Result<(), Error> {
    let damaged = damaged(packages, options.store)?;
    if damaged.is_empty() {
        return Ok(());
    }
    for package in &damaged {
        let text = format!("package {package} is damaged in the cache");
        options.progress.note(&text);
        // A damaged file that could be removed is.
        if options.store.has(&package.sha256, package.size) {
            let what = format!("package {package}");
            return Err(fetch::Error::Damaged { what }.into());
        }
    }
    fetch_packages(packages, options)
}

/// The packages whose files do not have their digest, found on all processors.
fn damaged<'a>(packages: &'a [Package], store: &Store) -> Result<Vec<&'a Package>, store::Error> {
    let next = AtomicUsize::new(0);
    let check = || {
        let mut found = Vec::new();
        while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
            if store.get(&package.sha256, package.size)?.is_none() {
                found.push(package);
            }
        }
        Ok(found)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(packages.len()))
            .map(|_| scope.spawn(check))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let lists = results.into_iter().collect::<Result<Vec<_>, store::Error>>()?;
    Ok(lists.into_iter().flatten().collect())
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
            what: format!("package {}", missing[0].name),
        }
        .into());
    }
    let total = missing.iter().map(|download| download.size).sum();
    let step = options
        .progress
        .start("download packages", Some(total), Unit::Bytes);
    fetch::fetch_debs(
        &Client::new().map_err(fetch::Error::from)?,
        options.store,
        &missing,
        &|n| step.advance(n),
    )?;
    step.finish(&format!(
        "{} packages, {:.1} MB",
        missing.len(),
        total as f64 / 1e6
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;
    use crate::store::Sha256;

    /// Packages on a local mirror, and a cache that has all of them damaged.
    fn damaged_cache(dir: &Path) -> (Store, Vec<Package>) {
        let store = Store::at(dir.join("cache"));
        let package = |name: &str| {
            std::fs::write(dir.join(name), name).unwrap();
            let sha256 = store.put(name.as_bytes()).unwrap();
            let hex = sha256.to_string();
            std::fs::write(
                dir.join("cache/blobs").join(&hex[..2]).join(&hex),
                "?".repeat(name.len()),
            )
            .unwrap();
            Package {
                name: name.into(),
                version: "1".into(),
                architecture: "all".into(),
                sha256,
                size: name.len() as u64,
                url: format!("file://{}/{name}", dir.display()),
                kernel: false,
            }
        };
        let packages = ["a.deb", "bb.deb", "ccc.deb"].map(package).to_vec();
        (store, packages)
    }

    fn options(store: &Store, offline: bool) -> Options<'_> {
        Options {
            arch: Arch::X86_64,
            base: None,
            store,
            lock: None,
            locked: false,
            offline,
            progress: &Quiet,
        }
    }

    #[test]
    fn every_damaged_package_is_fetched_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (store, packages) = damaged_cache(dir.path());
        renew_damaged(&packages, &options(&store, false)).unwrap();
        for package in &packages {
            let bytes = store.get(&package.sha256, package.size).unwrap().unwrap();
            assert_eq!(Sha256::of(&bytes), package.sha256);
        }
    }

    #[test]
    fn a_damaged_package_is_named_where_it_cannot_be_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let (store, packages) = damaged_cache(dir.path());
        let error = renew_damaged(&packages[..1], &options(&store, true))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("package a.deb") && error.contains("try:"),
            "{error}"
        );
    }
}
