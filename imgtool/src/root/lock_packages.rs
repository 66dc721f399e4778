//! Which packages: the lock file's, or those that the archive offers today.

use super::{Error, Options};
use crate::base::INSTALLED;
use crate::fetch::{self, Client, Index};
use crate::lock::{self, Lock, Package, Section};
use crate::microvm;
use crate::progress::{Step, Unit};
use crate::recipe::{Recipe, Variant};
use crate::resolve::{self, Id, Universe, Wanted};
use crate::store::Sha256;

/// The packages of a recipe: from the lock file if that answers the recipe's question, else resolved and
/// written there.
pub fn lock_packages(recipe: &Recipe, options: &Options<'_>) -> Result<Section, Error> {
    let inputs = inputs(recipe, options);
    let Some(path) = options.lock else {
        return resolve_packages(recipe, options);
    };
    let mut lock = Lock::load(path)?;
    if options.locked {
        return Ok(lock.demand(path, options.arch, &inputs)?.clone());
    }
    if let Some(section) = lock.current(options.arch, &inputs) {
        return Ok(section.clone());
    }
    let section = resolve_packages(recipe, options)?;
    lock.set(options.arch, section.clone());
    lock.save(path)?;
    Ok(section)
}

fn inputs(recipe: &Recipe, options: &Options<'_>) -> Sha256 {
    lock::inputs(recipe, options.arch, options.base.map(|base| base.id().as_str()))
}

/// Asks the archive.
fn resolve_packages(recipe: &Recipe, options: &Options<'_>) -> Result<Section, Error> {
    let base = options.base;
    let asks = !recipe.packages_for(options.arch.debian()).is_empty()
        || recipe.kernel_package(options.arch).is_some()
        || recipe.kernel.build.is_some();
    if base.is_some() && !asks {
        return Ok(Section {
            inputs: inputs(recipe, options),
            packages: Vec::new(),
        });
    }
    let arch = options.arch.debian();
    let repositories = fetch::repositories(recipe);
    let step = options.progress.start("package index", None, Unit::Bytes);
    let mut indexes = indexes(&repositories, arch, options, &*step)?;
    step.finish(&format!(
        "{} suites of {}",
        repositories.len(),
        repositories[0].url
    ));

    let step = options.progress.start("resolve", None, Unit::Items);
    let wanted = match base {
        None => Wanted {
            variant: recipe.variant,
            packages: recipe.packages_for(arch),
            recommends: recipe.recommends,
        },
        // Only the kernel comes from the archive.
        Some(_) if recipe.packages_for(arch).is_empty() => Wanted {
            variant: Variant::Extract,
            packages: Vec::new(),
            recommends: false,
        },
        Some(base) => {
            // First, so that of equal versions the installed one counts.
            indexes.insert(0, base.demand_packages()?.clone());
            let installed = resolve::as_wanted(&indexes[..1], arch)?;
            Wanted {
                variant: Variant::Extract,
                packages: [installed, recipe.packages_for(arch)].concat(),
                recommends: recipe.recommends,
            }
        }
    };
    let universe = Universe::new(&indexes, arch).map_err(resolve::Error::Index)?;
    let mut found = resolve::resolve(&universe, &wanted)?;
    found.retain(|id| universe.get(*id).url != INSTALLED);
    let mut packages: Vec<_> = found.iter().map(|id| locked(&universe, *id, false)).collect();
    if let Some(kernel) = recipe.kernel_package(options.arch) {
        let found = resolve::resolve_kernel(&universe, &kernel)?;
        packages.extend(found.iter().map(|id| locked(&universe, *id, true)));
    }
    if recipe.kernel.build.is_some() {
        packages.extend(build_packages(&repositories, options)?);
    }
    step.finish(&format!("{} packages", packages.len()));
    Ok(Section {
        inputs: inputs(recipe, options),
        packages,
    })
}

/// The package indexes: the servers' or, offline, the cache's.
fn indexes(
    repositories: &[fetch::Repository],
    arch: &str,
    options: &Options<'_>,
    step: &dyn Step,
) -> Result<Vec<Index>, fetch::Error> {
    match options.offline {
        true => fetch::cached_indexes(options.store, repositories, arch),
        false => {
            let advance = |n| step.advance(n);
            fetch::fetch_indexes(
                &Client::new(options.access)?,
                options.store,
                repositories,
                arch,
                &advance,
            )
        }
    }
}

/// The packages that a kernel is built of and with.
fn build_packages(repositories: &[fetch::Repository], options: &Options<'_>) -> Result<Vec<Package>, Error> {
    let builder = microvm::builder();
    let arch = builder.debian();
    let step = options.progress.start("compiler", None, Unit::Bytes);
    let indexes = indexes(repositories, arch, options, &*step)?;
    let universe = Universe::new(&indexes, arch).map_err(resolve::Error::Index)?;
    let wanted = Wanted {
        variant: Variant::Essential,
        packages: microvm::packages(builder, options.arch),
        recommends: false,
    };
    let found = resolve::resolve(&universe, &wanted)?;
    step.finish(&format!("{} packages", found.len()));
    Ok(found.iter().map(|id| locked(&universe, *id, true)).collect())
}

fn locked(universe: &Universe<'_>, id: Id, kernel: bool) -> Package {
    let package = universe.get(id);
    Package {
        name: package.name.to_owned(),
        version: package.version.to_owned(),
        architecture: package.arch.to_owned(),
        sha256: package.sha256,
        size: package.size,
        url: format!("{}/{}", package.url, package.filename),
        kernel,
    }
}
