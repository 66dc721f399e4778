//! `build`, `lock` and `import`.

use std::io::Write;

use super::{Build, Error, Import, Lock};
use crate::build::{self, Options};
use crate::fetch::Access;
use crate::import::{self, KernelSource};
use crate::progress;
use crate::recipe::Recipe;
use crate::root;
use crate::store::{self, Store};

/// The user's cache.
fn store() -> Result<Store, store::Error> {
    Store::of_user(|name| std::env::var_os(name))
}

/// How servers are reached, as the environment says.
fn access() -> Access {
    Access::of(|name| std::env::var_os(name))
}

pub(super) fn build(arguments: &Build, out: &mut dyn Write) -> Result<(), Error> {
    let Build {
        recipe,
        output,
        packages,
        guest_init,
    } = arguments;
    let built = build::build(&Options {
        recipe,
        output: output.as_deref(),
        arch: packages.arch,
        locked: packages.locked,
        offline: packages.offline,
        guest_init: guest_init.as_deref(),
        store: &store()?,
        access: &access(),
        progress: &*progress::choose(packages.json, packages.quiet),
    })?;
    writeln!(out, "{} {}", built.image.id, built.path.display())?;
    Ok(())
}

pub(super) fn lock(arguments: &Lock, out: &mut dyn Write) -> Result<(), Error> {
    let Lock {
        recipe: path,
        packages,
    } = arguments;
    let mut recipe = Recipe::load(path)?;
    let arch = build::choose_arch(&recipe, packages.arch)?;
    let base = build::open_base(&mut recipe, arch)?;
    let lock = crate::lock::path_for(path);
    let section = root::lock_packages(
        &recipe,
        &root::Options {
            arch,
            base: base.as_ref(),
            store: &store()?,
            access: &access(),
            lock: Some(&lock),
            locked: packages.locked,
            offline: packages.offline,
            progress: &*progress::choose(packages.json, packages.quiet),
        },
    )?;
    writeln!(out, "{} packages in {}", section.packages.len(), lock.display())?;
    Ok(())
}

pub(super) fn import(arguments: &Import, out: &mut dyn Write) -> Result<(), Error> {
    let Import {
        source,
        output,
        name,
        arch,
        kernel,
        root_size,
        guest_init,
    } = arguments;
    let stem = source
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split('.').next());
    let name = name.as_deref().or(stem.filter(|stem| !stem.is_empty()));
    let name = name.ok_or_else(|| Error::NoName {
        path: source.clone(),
        option: "name",
    })?;
    let debian;
    let source_of_kernel = match kernel {
        Some(path) => KernelSource::File(path),
        None => {
            debian = (store()?, access());
            KernelSource::Debian {
                store: &debian.0,
                access: &debian.1,
            }
        }
    };
    let image = import::image(&import::Options {
        source,
        output,
        name,
        architecture: *arch,
        kernel: source_of_kernel,
        guest_init: guest_init.as_deref(),
        root_size: root_size.and_then(|size| size.0),
        progress: &*progress::choose(false, false),
    })?;
    writeln!(out, "{} {}", image.id, output.display())?;
    Ok(())
}
