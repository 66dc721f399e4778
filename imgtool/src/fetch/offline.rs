//! The package indexes as the cache has them, for a run that may not use the network.

use std::time::SystemTime;

use super::index::{CachedRelease, Index, decompress, keyring, release_name};
use super::release::Release;
use super::{Error, Repository};
use crate::store::Store;

/// The indexes of every repository for Debian architecture `arch`, as they were when they were last fetched.
/// They are verified as if they came from a server, but for their age: newer ones cannot be had.
pub fn cached_indexes(store: &Store, repositories: &[Repository], arch: &str) -> Result<Vec<Index>, Error> {
    let mut indexes = Vec::new();
    for repository in repositories {
        let base = format!("{}/dists/{}", repository.url, repository.suite);
        let release = cached_release(store, repository, &base)?;
        for component in &repository.components {
            let refused = |source| Error::Release {
                url: format!("{base}/InRelease"),
                source,
            };
            for file in release.indexes(component, arch).map_err(refused)? {
                let url = format!("{base}/{}", file.path);
                if file.size == 0 {
                    continue;
                }
                let data = store.get(&file.sha256, file.size)?;
                let data = data.ok_or_else(|| missing(&url))?;
                let text = decompress(&file.path, &data).map_err(|e| Error::Index {
                    url,
                    reason: e.into(),
                })?;
                indexes.push(Index {
                    url: repository.url.clone(),
                    suite: repository.suite.clone(),
                    text,
                });
            }
        }
    }
    Ok(indexes)
}

fn missing(url: &str) -> Error {
    Error::Offline {
        what: format!("the package index {url}"),
    }
}

fn cached_release(store: &Store, repository: &Repository, base: &str) -> Result<Release, Error> {
    let url = format!("{base}/InRelease");
    let cached = store.read_named(&release_name(&url))?;
    let cached = cached.and_then(|data| serde_json::from_slice::<CachedRelease>(&data).ok());
    let message = cached.ok_or_else(|| missing(&url))?.text;
    let at = repository.pinned.unwrap_or_else(SystemTime::now);
    let text = keyring(repository)?
        .verify(message.as_bytes(), at)
        .map_err(|source| Error::Signature {
            url: url.clone(),
            source,
        })?;
    Release::parse(&text, &repository.suite, at, true).map_err(|source| Error::Release { url, source })
}
