//! Packages: downloaded in parallel, each checked against its SHA-256.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::blob::fetch_blob;
use super::{Client, Error};
use crate::store::{Sha256, Store};

/// Connections at a time: enough to hide latency, few enough for a mirror to tolerate.
const CONNECTIONS: usize = 8;

/// A file to have in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// What to call it in an error.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// What it must hash to.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
}

/// Brings each of `wanted` into the store. `on_bytes` is called for each piece, from any thread. On the first
/// error no new transfer begins; what is complete stays in the store.
pub fn fetch_debs(
    client: &Client,
    store: &Store,
    wanted: &[Download],
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let missing: Vec<_> = wanted.iter().filter(|d| !store.has(&d.sha256, d.size)).collect();
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS.min(missing.len()) {
            scope.spawn(|| {
                while let Some(download) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = fetch_deb(client, store, download, on_bytes) {
                        next.store(missing.len(), Ordering::Relaxed);
                        // The first failure is the cause; the others tend to follow from it.
                        if let Ok(mut first) = failure.lock() {
                            first.get_or_insert(error);
                        }
                        return;
                    }
                }
            });
        }
    });
    match failure.into_inner().ok().flatten() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn fetch_deb(
    client: &Client,
    store: &Store,
    download: &Download,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let what = format!("{} ({})", download.name, download.url);
    fetch_blob(store, &download.sha256, download.size, &what, |partial| {
        client.get_into(&download.url, download.size, partial, on_bytes)
    })
}
