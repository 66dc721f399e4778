//! Packages from the archive into the cache.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Error, Options};
use crate::fetch::{self, Client, Download};
use crate::lock::Package;
use crate::progress::Unit;
use crate::store::{self, Store};

/// Makes sure that packages are whole in the cache just before they are unpacked, and fetches those that are
/// not again.
pub fn renew_damaged(packages: &[Package], options: &Options<'_>) -> Result<(), Error> {
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

/// Fetches the packages that are not in the cache.
pub fn fetch_packages(packages: &[Package], options: &Options<'_>) -> Result<(), Error> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| !options.store.has(&package.sha256, package.size))
        .map(download)
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
        &Client::new(options.access).map_err(fetch::Error::from)?,
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

/// What to fetch.
fn download(package: &Package) -> Download {
    Download {
        name: package.to_string(),
        url: package.url.clone(),
        sha256: package.sha256,
        size: package.size,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use super::*;
    use crate::advice::Advice as _;
    use crate::fetch::Access;
    use crate::progress::Quiet;
    use crate::store::Sha256;
    use ami::Architecture;

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
        static ACCESS: LazyLock<Access> = LazyLock::new(Access::default);
        Options {
            arch: Architecture::X86_64,
            base: None,
            store,
            access: &ACCESS,
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
            .report();
        assert!(
            error.contains("package a.deb") && error.contains("try:"),
            "{error}"
        );
    }
}
