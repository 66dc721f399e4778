//! `build` and `lock`.

use std::io::Write;

use super::{Build, Error, Lock};
use crate::build::{self, Options};
use crate::progress;
use crate::recipe::Recipe;
use crate::root;
use crate::store::Store;

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
    let recipe = Recipe::load(path)?;
    let lock = crate::lock::path_for(path);
    let section = root::lock_packages(
        &recipe,
        &root::Options {
            arch: build::choose_arch(&recipe, packages.arch)?,
            store: &Store::of_user()?,
            lock: Some(&lock),
            locked: packages.locked,
            offline: packages.offline,
            progress: &*progress::choose(packages.json, packages.quiet),
        },
    )?;
    writeln!(out, "{} packages in {}", section.packages.len(), lock.display())?;
    Ok(())
}
