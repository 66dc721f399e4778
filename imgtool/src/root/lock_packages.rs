//! Which packages: the lock file's, or those that the archive offers today.

use super::{Error, Options};
use crate::fetch::{self, Client};
use crate::lock::{self, Lock, Package, Section};
use crate::progress::Unit;
use crate::recipe::Recipe;
use crate::resolve::{self, Id, Universe, Wanted};

/// The packages of a recipe: from the lock file if that answers the recipe's question, else resolved and written there.
pub fn lock_packages(recipe: &Recipe, options: &Options<'_>) -> Result<Section, Error> {
    let inputs = lock::inputs(recipe, options.arch);
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

/// Asks the archive.
pub fn resolve_packages(recipe: &Recipe, options: &Options<'_>) -> Result<Section, Error> {
    if options.offline {
        return Err(fetch::Error::Offline {
            what: "the package index".into(),
        }
        .into());
    }
    let arch = options.arch.debian();
    let repositories = fetch::repositories(recipe);
    let step = options.progress.start("package index", None, Unit::Bytes);
    let advance = |n| step.advance(n);
    let indexes = fetch::fetch_indexes(&Client::new(), options.store, &repositories, arch, &advance)?;
    step.finish(&format!(
        "{} suites of {}",
        repositories.len(),
        repositories[0].url
    ));

    let step = options.progress.start("resolve", None, Unit::Items);
    let universe = Universe::new(&indexes, arch).map_err(resolve::Error::Index)?;
    let wanted = Wanted {
        variant: recipe.variant,
        packages: &recipe.packages,
        recommends: recipe.recommends,
    };
    let found = resolve::resolve(&universe, &wanted)?;
    let mut packages: Vec<_> = found.iter().map(|id| locked(&universe, *id, false)).collect();
    if let Some(kernel) = recipe.kernel_package(options.arch) {
        let found = resolve::resolve_kernel(&universe, &kernel)?;
        packages.extend(found.iter().map(|id| locked(&universe, *id, true)));
    }
    step.finish(&format!("{} packages", packages.len()));
    Ok(Section {
        inputs: lock::inputs(recipe, options.arch),
        packages,
    })
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
