//! Packages as the target's dpkg gets them: uncompressed, by number.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::batches::Needs;
use super::failure::Failure;
use super::job::Message;
use crate::archive;
use crate::lock::Package;
use crate::store::Store;
use crate::unpack::{self, Deb};

/// The bytes of the files in a directory.
pub fn size_of(dir: &Path) -> Result<u64, Failure> {
    let failed = |e: io::Error| Failure::io(dir, &e);
    let mut total = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        total += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(total)
}

/// The name of the package of this number.
pub fn file_name(index: usize) -> String {
    format!("{index}.deb")
}

/// Writes every package uncompressed, on all processors: dpkg would decompress one after the other. Returns
/// what decides their order, and the newest time in them.
pub fn prepare(packages: &[Package], store: &Store, debs: &Path) -> Result<(Vec<Needs>, i64), Failure> {
    let next = AtomicUsize::new(0);
    let newest = AtomicI64::new(0);
    let needs = Mutex::new(vec![Needs::default(); packages.len()]);
    let failure = Mutex::new(None);
    let work = || {
        while let Some((i, package)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            packages.get(i).map(|package| (i, package))
        } {
            match prepare_one(package, store, &debs.join(file_name(i))) {
                Ok((need, time)) => {
                    newest.fetch_max(time, Ordering::Relaxed);
                    if let Ok(mut needs) = needs.lock() {
                        needs[i] = need;
                    }
                    Message::Tick.say();
                }
                Err(error) => {
                    next.store(packages.len(), Ordering::Relaxed);
                    if let Ok(mut first) = failure.lock() {
                        first.get_or_insert(error);
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some(error) = failure.into_inner().ok().flatten() {
        return Err(error);
    }
    let needs = needs.into_inner().map_err(Failure::other)?;
    Ok((needs, newest.into_inner()))
}

fn prepare_one(package: &Package, store: &Store, path: &Path) -> Result<(Needs, i64), Failure> {
    let bytes = unpack::from_store(store)(package).map_err(|e| Failure::of(&e))?;
    let refused = |damage: unpack::Damage| match damage {
        unpack::Damage::Archive(archive::Damage::Read(e)) if e.kind() == io::ErrorKind::StorageFull => {
            Failure::io(path, &e)
        }
        damage => Failure::of(&unpack::Error::Package {
            package: package.to_string(),
            damage,
        }),
    };
    let deb = Deb::parse(&bytes).map_err(refused)?;
    let control = deb.control().map_err(refused)?;
    let file = File::create(path).map_err(|e| Failure::io(path, &e))?;
    let mut out = io::BufWriter::with_capacity(1 << 18, file);
    let newest = unpack::repack(&deb, &mut out).map_err(refused)?;
    Ok((Needs::parse(&control.paragraph), newest))
}
