//! Stages that take time, and their results in the cache: a root configured by dpkg, a root after the
//! recipe's `run` steps, the files of a kernel.

use std::fs;

use ami::Architecture;

use super::cached::{Place, cached};
use super::download::renew_damaged;
use super::{Error, Options, sources};
use crate::archive;
use crate::base::Base;
use crate::configure::{self, Input, Task};
use crate::lock::Package;
use crate::microvm;
use crate::progress::Unit;
use crate::recipe::Recipe;
use crate::store::Sha256;
use crate::time::parse_timestamp;
use crate::tree::{Kind, Tree};
use crate::unpack::{self, Filter, Unpack};

/// Goes into every digest: a change in how stages work makes their old results useless.
const VERSION: u32 = 1;

/// Which paths of packages are left out, and which are nevertheless there.
type Filters<'a> = (&'a [String], &'a [String]);

/// The time that the recipe sets, in seconds since 1970.
pub fn created(recipe: &Recipe) -> Option<i64> {
    seconds(recipe.created.as_deref()?)
}

fn seconds(time: &str) -> Option<i64> {
    let time = parse_timestamp(time)?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// A root with the packages installed and configured, and its SOURCE_DATE_EPOCH.
pub fn configured(
    recipe: &Recipe,
    packages: &[Package],
    options: &Options<'_>,
) -> Result<(Tree, i64), Error> {
    let sources = sources::for_apt(recipe);
    let filters = (&recipe.exclude[..], &recipe.include[..]);
    let tree = installed(packages, filters, recipe.created.as_deref(), &sources, options)?;
    // The root directory carries SOURCE_DATE_EPOCH.
    let epoch = tree.node(Tree::ROOT).meta.mtime;
    Ok((tree, epoch))
}

/// A base's root with the packages added, and its SOURCE_DATE_EPOCH.
pub fn layered(
    base: &Base,
    recipe: &Recipe,
    packages: &[Package],
    options: &Options<'_>,
) -> Result<(Tree, i64), Error> {
    let time = |tree: &Tree| created(recipe).unwrap_or(tree.node(Tree::ROOT).meta.mtime);
    if packages.is_empty() {
        let epoch = time(&base.tree);
        return Ok((base.tree.clone(), epoch));
    }
    let id = base.id().as_str();
    let key = (
        VERSION,
        "upon",
        options.arch,
        id,
        content(packages),
        &recipe.exclude,
        &recipe.include,
        &recipe.created,
    );
    let tree = cached(options.store, &key, |place| {
        renew_damaged(packages, options)?;
        let input = input(&base.tree, place)?;
        let filters = (&recipe.exclude[..], &recipe.include[..]);
        let task = install(Some(&input), packages, filters, created(recipe), "", options);
        place.run(options.arch, task, options)
    })?;
    let epoch = time(&tree);
    Ok((tree, epoch))
}

fn installed(
    packages: &[Package],
    filters: Filters<'_>,
    created: Option<&str>,
    sources: &str,
    options: &Options<'_>,
) -> Result<Tree, Error> {
    let key = (
        VERSION,
        "configured",
        options.arch,
        content(packages),
        filters.0,
        filters.1,
        created,
        sources,
    );
    cached(options.store, &key, |place| {
        renew_damaged(packages, options)?;
        let epoch = created.and_then(seconds);
        let task = install(None, packages, filters, epoch, sources, options);
        place.run(options.arch, task, options)
    })
}

/// The task of installing packages: in the root `base`, or in an empty one.
fn install(
    base: Option<&Input>,
    packages: &[Package],
    (exclude, include): Filters<'_>,
    epoch: Option<i64>,
    sources: &str,
    options: &Options<'_>,
) -> Task {
    Task::Install {
        base: base.map(Input::root),
        packages: packages.to_vec(),
        store: options.store.root().to_owned(),
        exclude: exclude.to_vec(),
        include: include.to_vec(),
        epoch,
        sources: sources.to_owned(),
    }
}

/// What of packages goes into a stage's digest.
fn content(packages: &[Package]) -> Vec<(&str, &str, Sha256)> {
    packages
        .iter()
        .map(|package| (&*package.name, &*package.version, package.sha256))
        .collect()
}

/// A root after the recipe's `run` steps.
pub fn run_steps(recipe: &Recipe, tree: &Tree, epoch: i64, options: &Options<'_>) -> Result<Tree, Error> {
    let key = (VERSION, "run", options.arch, digest(tree)?, &recipe.run, epoch);
    cached(options.store, &key, |place| {
        let input = input(tree, place)?;
        let task = Task::Run {
            root: input.root(),
            name: "run".into(),
            steps: recipe.run.clone(),
            keep: None,
            epoch,
        };
        place.run(options.arch, task, options)
    })
}

/// Describes a root for the sandbox.
fn input(tree: &Tree, place: &Place) -> Result<Input, Error> {
    let path = place.work.path().join("input.tar");
    Ok(Input::write(tree, &path).map_err(|source| unpack::Error::Scratch { path, source })?)
}

/// The microvm kernel for `options.arch`, built of and with `packages`, as the files of a kernel package
/// would be.
pub fn microvm(packages: &[Package], options: &Options<'_>) -> Result<Tree, Error> {
    let builder = microvm::builder();
    let steps = microvm::steps(builder, options.arch);
    cached(
        options.store,
        &(VERSION, "microvm", options.arch, content(packages), &steps),
        |place| {
            let builder = Options {
                arch: builder,
                ..*options
            };
            let tree = installed(packages, (&microvm::exclude(), &[]), None, "", &builder)?;
            let epoch = tree.node(Tree::ROOT).meta.mtime;
            let input = input(&tree, place)?;
            let task = Task::Run {
                root: input.root(),
                name: "build the kernel".into(),
                steps: steps.clone(),
                keep: Some(microvm::RESULT.into()),
                epoch,
            };
            place.run(builder.arch, task, options)
        },
    )
}

/// The files of the kernel packages.
pub fn kernel(packages: &[Package], options: &Options<'_>) -> Result<Tree, Error> {
    cached(
        options.store,
        &(VERSION, "kernel", options.arch, content(packages)),
        |place| {
            renew_damaged(packages, options)?;
            let step = options
                .progress
                .start("unpack kernel", Some(packages.len() as u64), Unit::Items);
            let (load, filter) = (unpack::from_store(options.store), Filter::default());
            let scratch = place.work.path();
            let unpack = Unpack {
                load: &load,
                packages,
                filter: &filter,
                scratch,
                step: &*step,
            };
            let mut tree = Tree::new();
            unpack::merge_usr(&mut tree, options.arch.debian(), 0).map_err(unpack::Error::Layout)?;
            unpack.unpack_into(&mut tree)?;
            let failed = |source| unpack::Error::Scratch {
                path: place.output.clone(),
                source,
            };
            let file = fs::File::create(&place.output).map_err(failed)?;
            archive::write(&tree, std::io::BufWriter::with_capacity(1 << 18, file)).map_err(failed)?;
            step.finish(&format!("{} packages", packages.len()));
            Ok(())
        },
    )
}

impl Place {
    /// Lets the sandbox do a task whose result is the stage's.
    fn run(&self, arch: Architecture, task: Task, options: &Options<'_>) -> Result<(), Error> {
        let Self { work, output } = self;
        Ok(configure::run(arch, task, work.path(), output, options.progress)?)
    }
}

/// The digest of everything in a tree.
fn digest(tree: &Tree) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    for (path, id) in tree.walk() {
        let node = tree.node(id);
        hasher.update(format!("{} {} {:?} ", path.len(), node.links, node.meta).as_bytes());
        hasher.update(&path);
        if let Kind::File(content) = &node.kind {
            let read = content
                .open()
                .and_then(|reader| hasher.update_reader(reader).map(drop));
            let path = crate::tree::show(&path).into();
            read.map_err(|source| unpack::Error::Scratch { path, source })?;
        } else {
            hasher.update(format!("{:?}", node.kind).as_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
