//! Stages that take time, and their results in the cache: a root configured by dpkg, a root after the recipe's `run`
//! steps, the files of a kernel. Each is an archive named by the digest of everything that it depends on.

use std::fs;
use std::path::PathBuf;

use super::{Error, Options, archive, sources};
use crate::configure::{self, Task};
use crate::fetch::clock::parse_timestamp;
use crate::lock::Package;
use crate::progress::Unit;
use crate::recipe::Recipe;
use crate::store::{self, Sha256, Store};
use crate::tree::{Kind, Tree};
use crate::unpack::{self, Filter, Unpack};

/// Goes into every digest: a change in how stages work makes their old results useless.
const VERSION: u32 = 1;

/// The time that the recipe sets, in seconds since 1970.
pub fn created(recipe: &Recipe) -> Option<i64> {
    let time = parse_timestamp(recipe.created.as_deref()?)?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// A root with the packages installed and configured, and what counts as now in it.
pub fn configured(
    recipe: &Recipe,
    packages: &[Package],
    options: &Options<'_>,
) -> Result<(Tree, i64), Error> {
    let sources = sources::for_apt(recipe);
    let content: Vec<_> = packages.iter().map(|p| (&p.name, &p.version, p.sha256)).collect();
    let key = (
        VERSION,
        "configured",
        options.arch,
        content,
        &recipe.exclude,
        &recipe.include,
        &recipe.created,
        &sources,
    );
    let tree = cached(options, &key, |place| {
        let task = Task::Install {
            packages: packages.to_vec(),
            store: options.store.root().to_owned(),
            exclude: recipe.exclude.clone(),
            include: recipe.include.clone(),
            epoch: created(recipe),
            sources: sources.clone(),
        };
        let Place { work, output } = place;
        Ok(configure::run(
            options.arch,
            task,
            work.path(),
            output,
            options.progress,
        )?)
    })?;
    // The root directory carries the time that counts as now.
    let epoch = tree.node(Tree::ROOT).meta.mtime;
    Ok((tree, epoch))
}

/// A root after the recipe's `run` steps.
pub fn run_steps(recipe: &Recipe, tree: &Tree, epoch: i64, options: &Options<'_>) -> Result<Tree, Error> {
    let key = (VERSION, "run", options.arch, digest(tree)?, &recipe.run, epoch);
    cached(options, &key, |place| {
        let Place { work, output } = place;
        let root = work.path().join("input.tar");
        let scratch = |source| unpack::Error::Scratch {
            path: root.clone(),
            source,
        };
        let file = fs::File::create(&root).map_err(scratch)?;
        archive::write(tree, std::io::BufWriter::new(file)).map_err(scratch)?;
        let task = Task::Run {
            root: root.clone(),
            steps: recipe.run.clone(),
            epoch,
        };
        Ok(configure::run(
            options.arch,
            task,
            work.path(),
            output,
            options.progress,
        )?)
    })
}

/// The files of the kernel packages.
pub fn kernel(packages: &[Package], options: &Options<'_>) -> Result<Tree, Error> {
    let content: Vec<_> = packages.iter().map(|p| (&p.name, &p.version, p.sha256)).collect();
    cached(options, &(VERSION, "kernel", options.arch, content), |place| {
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
    })
}

/// Where a stage works, and where its result goes.
struct Place {
    work: tempfile::TempDir,
    output: PathBuf,
}

/// The result of a stage: from the cache, or made and put there. A cache that cannot be written to costs the time
/// again at the next build.
fn cached(
    options: &Options<'_>,
    key: &impl serde::Serialize,
    make: impl FnOnce(&Place) -> Result<(), Error>,
) -> Result<Tree, Error> {
    // Serializing plain data to memory does not fail.
    let name = Sha256::of(&serde_json::to_vec(key).unwrap_or_default());
    let roots = options.store.root().join("roots");
    let path = roots.join(format!("{name}.tar"));
    // An archive that cannot be read is as good as none: it is made again and replaced.
    if let Ok(tree) = archive::read(&path) {
        return Ok(tree);
    }
    let scratch = scratch(options.store);
    let failed = |source| unpack::Error::Scratch {
        path: scratch.clone(),
        source,
    };
    let work = tempfile::Builder::new()
        .prefix("stage-")
        .tempdir_in(&scratch)
        .map_err(failed)?;
    let output = work.path().join("output.tar");
    let place = Place { work, output };
    make(&place)?;
    let kept = store::make_dir(&roots).is_ok() && fs::rename(&place.output, &path).is_ok();
    let result = if kept { &path } else { &place.output };
    // The tree keeps the file open: it may lose its name.
    archive::read(result).map_err(|damage| {
        Error::Unpack(unpack::Error::Package {
            package: "of the stage's result".into(),
            damage,
        })
    })
}

/// A directory for temporary files: beside the cache, where there is space, or where the system keeps them if the cache
/// is read-only.
pub fn scratch(store: &Store) -> PathBuf {
    let dir = store.root().join("tmp");
    match store::make_dir(&dir).is_ok() && tempfile::tempfile_in(&dir).is_ok() {
        true => dir,
        false => std::env::temp_dir(),
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
