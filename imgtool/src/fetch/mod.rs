//! From a mirror to verified bytes: InRelease, its OpenPGP signature, Packages by SHA-256, `.deb` by SHA-256.
//!
//! Trust runs in one direction: keyring → signed text of InRelease → digest of Packages → digest of each package.
//! Nothing that stands outside of this chain is used.

mod blob;
mod connect;
mod debs;
mod http;
mod index;
mod offline;
pub mod openpgp;
mod proxy;
pub mod release;
mod sources;

use std::path::PathBuf;
use std::time::SystemTime;

pub use debs::{Download, fetch_debs};
pub use http::{Client, Error as HttpError};
pub use index::{Index, fetch_indexes};
pub use offline::cached_indexes;
pub use sources::repositories;

use crate::store;

/// What goes wrong while fetching.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A transfer failed.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A keyring file cannot be read.
    #[error("cannot read keyring {path}: {source}\n  try: correct `keyring` in the recipe")]
    KeyringFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A keyring is malformed.
    #[error("cannot use keyring {path}: {source}\n  try: export it with `gpg --export KEY`")]
    Keyring {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: openpgp::Error,
    },
    /// The signature does not hold.
    #[error(
        "refused {url}: {source}\n  try: another mirror; for an archive that is not Debian's, name its keyring in the recipe"
    )]
    Signature {
        /// The InRelease file.
        url: String,
        /// Why not.
        source: openpgp::Error,
    },
    /// The Release file is not acceptable.
    #[error(
        "refused {url}: {source}\n  try: a mirror that is up to date; to build from old packages on purpose, set `snapshot` in the recipe"
    )]
    Release {
        /// The InRelease file.
        url: String,
        /// Why not.
        source: release::Error,
    },
    /// An index cannot be used.
    #[error("cannot use {url}: {reason}\n  try: another mirror")]
    Index {
        /// The index file.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The cache holds damage and cannot be written to.
    #[error(
        "{what} is damaged in the cache, and the cache cannot be written to\n  try: set XDG_CACHE_HOME to a writable directory"
    )]
    Damaged {
        /// What is damaged.
        what: String,
    },
    /// No network is allowed and the cache lacks something.
    #[error("{what} is not in the cache, and this run is offline\n  try: run once without --offline")]
    Offline {
        /// What is missing.
        what: String,
    },
}

/// One suite of an archive: what a line of sources.list says.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The archive's base address, without a final slash.
    pub url: String,
    /// The suite, such as `trixie` or `trixie-security`.
    pub suite: String,
    /// The components, such as `main`.
    pub components: Vec<String>,
    /// Who may sign it; `None` for Debian's own keys.
    pub keyring: Option<PathBuf>,
    /// The moment that the recipe pins, at which keys and Release files must be valid.
    pub pinned: Option<SystemTime>,
}

#[cfg(test)]
mod tests;
