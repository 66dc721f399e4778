//! Which packages: the lock file's, or those that the archive offers today.

use super::{Error, Options};
use crate::base::INSTALLED;
use crate::fetch::{self, Client, Index};
use crate::lock::{self, Lock, Package, Section};
use crate::microvm;
use crate::progress::{Step, Unit};
use crate::recipe::{Kernel, Recipe, Variant};
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
    let asks = !recipe.packages_for(options.arch).is_empty()
        || recipe.kernel_package(options.arch).is_some()
        || recipe.kernel.build.is_some();
    if base.is_some() && !asks {
        return Ok(Section {
            inputs: inputs(recipe, options),
            packages: Vec::new(),
        });
    }
    let repositories = fetch::repositories(recipe);
    let mut packages = root_packages(recipe, &repositories, options)?;
    if let Some(kernel) = recipe.kernel_package(options.arch) {
        let arch = recipe.kernel_arch(options.arch);
        packages.extend(kernel_packages(&kernel, arch, &repositories, options)?);
    }
    if recipe.kernel.build.is_some() {
        packages.extend(build_packages(&repositories, options)?);
    }
    Ok(Section {
        inputs: inputs(recipe, options),
        packages,
    })
}

/// The packages of the root.
fn root_packages(
    recipe: &Recipe,
    repositories: &[fetch::Repository],
    options: &Options<'_>,
) -> Result<Vec<Package>, Error> {
    let arch = options.arch.debian();
    let asked = recipe.packages_for(options.arch);
    if options.base.is_some() && asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut foreign = resolve::foreign_architectures(&asked, arch)?;
    let step = options.progress.start("package index", None, Unit::Bytes);
    let mut indexes = Vec::new();
    for arch in std::iter::once(arch).chain(foreign.iter().map(String::as_str)) {
        indexes.extend(self::indexes(repositories, arch, options, &*step)?);
    }
    step.finish(&format!(
        "{} suites of {}",
        repositories.len(),
        repositories[0].url
    ));

    let step = options.progress.start("resolve", None, Unit::Items);
    if let Some(base) = options.base {
        // First, so that of equal versions the installed one counts.
        let installed = base.demand_packages()?;
        foreign.extend(
            installed
                .architectures()
                .filter(|other| *other != arch)
                .map(str::to_owned),
        );
        indexes.insert(0, installed.clone());
    }
    let foreign = || foreign.iter().map(String::as_str);
    let wanted = match options.base {
        None => Wanted {
            variant: recipe.variant,
            packages: asked,
            recommends: recipe.recommends,
        },
        Some(_) => {
            let installed = Universe::new(&indexes[..1], arch, foreign()).map_err(resolve::Error::Index)?;
            Wanted {
                variant: Variant::Extract,
                packages: [resolve::as_wanted(&installed), asked].concat(),
                recommends: recipe.recommends,
            }
        }
    };
    let universe = Universe::new(&indexes, arch, foreign()).map_err(resolve::Error::Index)?;
    let mut found = resolve::resolve(&universe, &wanted)?;
    found.retain(|id| universe.get(*id).url != INSTALLED);
    step.finish(&format!("{} packages", found.len()));
    Ok(found.iter().map(|id| locked(&universe, *id, false)).collect())
}

/// The packages of the kernel `wanted`, which are of the kernel's architecture.
fn kernel_packages(
    wanted: &str,
    arch: &str,
    repositories: &[fetch::Repository],
    options: &Options<'_>,
) -> Result<Vec<Package>, Error> {
    let name = wanted.strip_suffix(Kernel::OF_32_BITS).unwrap_or(wanted);
    let step = options.progress.start("kernel index", None, Unit::Bytes);
    let indexes = indexes(repositories, arch, options, &*step)?;
    let universe = Universe::new(&indexes, arch, []).map_err(resolve::Error::Index)?;
    let found = resolve::resolve_kernel(&universe, name).map_err(|error| match error {
        resolve::Error::Missing { name, .. } if arch != options.arch.debian() => {
            let arch = arch.to_owned();
            resolve::Error::NoKernel64 { name, arch }
        }
        error => error,
    })?;
    step.finish(&format!("{} packages", found.len()));
    Ok(found.iter().map(|id| locked(&universe, *id, true)).collect())
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
    let universe = Universe::new(&indexes, arch, []).map_err(resolve::Error::Index)?;
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
