//! The package indexes of all repositories of a recipe.

use std::io::Read;
use std::time::SystemTime;

use super::blob::fetch_blob;
use super::http::{Answer, Client, Validators};
use super::openpgp::Keyring;
use super::release::{IndexFile, Release};
use super::{Error, HttpError, Repository};
use crate::advice::Reason;
use crate::decompress;
use crate::store::{Sha256, Store};

/// An InRelease file is about 140 kB.
const MAX_RELEASE: u64 = 16 << 20;
/// Compressed, main of sid is 10 MB.
const MAX_INDEX: u64 = 256 << 20;
/// Uncompressed, main of sid is 60 MB; a decompression bomb ends here.
const MAX_INDEX_TEXT: u64 = 1 << 30;

/// One `Packages` file, verified and decompressed.
#[derive(Debug, Clone)]
pub struct Index {
    /// The base address of its archive: a package's `Filename` is relative to it.
    pub url: String,
    /// The suite that it describes.
    pub suite: String,
    /// The text, in deb822 form.
    pub text: String,
}

impl Index {
    /// The architectures of its packages, but for `all`; each as often as a package has it.
    pub fn architectures(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines();
        let fields = lines.filter_map(|line| line.strip_prefix("Architecture:"));
        fields.map(str::trim).filter(|arch| *arch != "all")
    }
}

/// Our last InRelease of a suite, so that the server can say "unchanged", and for runs without a network.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct CachedRelease {
    validators: Validators,
    pub(super) text: String,
}

/// Where the store keeps the [`CachedRelease`] of an address.
pub(super) fn release_name(url: &str) -> String {
    format!("releases/{}.json", Sha256::of(url.as_bytes()))
}

/// Fetches the indexes of every repository for Debian architecture `arch`, in the order of `repositories`.
/// Current files in the store are used again.
pub fn fetch_indexes(
    client: &Client,
    store: &Store,
    repositories: &[Repository],
    arch: &str,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Index>, Error> {
    let mut indexes = Vec::new();
    for repository in repositories {
        let base = format!("{}/dists/{}", repository.url, repository.suite);
        let (release, fresh) = fetch_release(client, store, repository, &base)?;
        for component in &repository.components {
            let files = release
                .indexes(component, arch)
                .map_err(|source| Error::Release {
                    url: format!("{base}/InRelease"),
                    source,
                })?;
            for file in files {
                let text = fetch_index(client, store, &base, &release, file, on_bytes)?;
                let (url, suite) = (repository.url.clone(), repository.suite.clone());
                indexes.push(Index { url, suite, text });
            }
        }
        // Once its indexes are there: what the cache has of a suite is usable without a network.
        if let Some(json) = fresh.and_then(|fresh| serde_json::to_vec(&fresh).ok()) {
            // Losing it costs one transfer: a read-only cache is no error here.
            let _ = store.write_named(&release_name(&format!("{base}/InRelease")), &json);
        }
    }
    Ok(indexes)
}

/// The Release file of a suite, and what is to be kept of it if it was transferred.
fn fetch_release(
    client: &Client,
    store: &Store,
    repository: &Repository,
    base: &str,
) -> Result<(Release, Option<CachedRelease>), Error> {
    let url = format!("{base}/InRelease");
    let name = release_name(&url);
    let keyring = keyring(repository)?;
    let at = repository.pinned.unwrap_or_else(SystemTime::now);
    // One that was damaged is as good as none: the server would say that it is unchanged.
    let cached = store
        .read_named(&name)?
        .and_then(|data| serde_json::from_slice::<CachedRelease>(&data).ok())
        .filter(|cached| keyring.verify(cached.text.as_bytes(), at).is_ok());
    let known = cached.as_ref().map(|c| c.validators.clone()).unwrap_or_default();
    let (message, fresh) = match (client.get(&url, MAX_RELEASE, &known)?, cached) {
        (Answer::Unchanged, Some(cached)) => (cached.text.into_bytes(), None),
        (Answer::Unchanged, None) => unreachable!("a conditional request needs a cached file"),
        (Answer::Body(body, validators), _) => (body, Some(validators)),
    };
    // What came from the cache is verified like what came from the network.
    let text = keyring.verify(&message, at).map_err(|source| Error::Signature {
        url: url.clone(),
        source,
    })?;
    let release = Release::parse(&text, &repository.suite, at, repository.pinned.is_some())
        .map_err(|source| Error::Release { url, source })?;
    let text = String::from_utf8(message).ok();
    let fresh = fresh
        .zip(text)
        .map(|(validators, text)| CachedRelease { validators, text });
    Ok((release, fresh))
}

pub(super) fn keyring(repository: &Repository) -> Result<Keyring, Error> {
    let Some(path) = &repository.keyring else {
        let built_in = || "(built in)".into();
        return Keyring::debian().map_err(|source| Error::Keyring {
            path: built_in(),
            source,
        });
    };
    let data = std::fs::read(path).map_err(|source| Error::KeyringFile {
        path: path.clone(),
        source,
    })?;
    Keyring::parse(&data).map_err(|source| Error::Keyring {
        path: path.clone(),
        source,
    })
}

fn fetch_index(
    client: &Client,
    store: &Store,
    base: &str,
    release: &Release,
    file: &IndexFile,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<String, Error> {
    let plain_url = format!("{base}/{}", file.path);
    let wrong = |reason: Reason| Error::Index {
        url: plain_url.clone(),
        reason,
    };
    if file.size > MAX_INDEX {
        return Err(wrong(format!("it is longer than {MAX_INDEX} bytes").into()));
    }
    if file.size == 0 {
        return Ok(String::new());
    }
    let data = match store.get(&file.sha256, file.size)? {
        Some(data) => data,
        None => {
            let mut urls = vec![plain_url.clone()];
            if release.by_hash
                && let Some((dir, _)) = file.path.rsplit_once('/')
            {
                urls.insert(0, format!("{base}/{dir}/by-hash/SHA256/{}", file.sha256));
            }
            download(client, store, &urls, file, on_bytes)?;
            let got = store.get(&file.sha256, file.size)?;
            got.ok_or_else(|| wrong("it changed on disk while in use".into()))?
        }
    };
    decompress(&file.path, &data).map_err(|e| wrong(e.into()))
}

fn download(
    client: &Client,
    store: &Store,
    urls: &[String],
    file: &IndexFile,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let what = urls.last().map_or(&*file.path, String::as_str);
    fetch_blob(store, &file.sha256, file.size, what, |partial| {
        for (i, url) in urls.iter().enumerate() {
            match client.get_into(url, file.size, partial, on_bytes) {
                // Not every mirror keeps the by-hash files that its Release file promises.
                Err(HttpError::NotFound { .. } | HttpError::NoFile { .. }) if i + 1 < urls.len() => continue,
                result => return result,
            }
        }
        Ok(())
    })
}

pub(super) fn decompress(path: &str, data: &[u8]) -> std::io::Result<String> {
    let mut text = String::new();
    let reader: Box<dyn Read + '_> = match path.rsplit_once('.').map(|(_, form)| form) {
        Some("xz") => Box::new(decompress::xz(data)?),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(data)),
        Some("zst") => Box::new(zstd::Decoder::new(data)?),
        _ => Box::new(data),
    };
    let n = reader.take(MAX_INDEX_TEXT + 1).read_to_string(&mut text)?;
    match n as u64 > MAX_INDEX_TEXT {
        true => Err(std::io::Error::other(format!(
            "it unpacks to over {MAX_INDEX_TEXT} bytes"
        ))),
        false => Ok(text),
    }
}
