//! From a mirror to verified bytes: InRelease, its OpenPGP signature, Packages by SHA-256, `.deb` by SHA-256.
//!
//! Trust runs in one direction: keyring → signed text of InRelease → digest of Packages → digest of each
//! package. Nothing outside of this chain is used.

mod access;
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

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::SystemTime;

use displaydoc::Display;

pub use access::Access;
pub use debs::{Download, fetch_debs};
pub use http::{Client, Error as HttpError};
pub use index::{Index, fetch_indexes};
pub use offline::cached_indexes;
pub use sources::repositories;

use crate::advice::{Advice, Reason};
use crate::store;

/// What goes wrong while fetching.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Http(#[from] http::Error),
    /// {0}
    Store(#[from] store::Error),
    /// cannot read keyring {path}: {source}
    KeyringFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// cannot use keyring {path}: {source}
    Keyring {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: openpgp::Error,
    },
    /// refused {url}: {source}
    Signature {
        /// The InRelease file.
        url: String,
        /// Why not.
        source: openpgp::Error,
    },
    /// refused {url}: {source}
    Release {
        /// The InRelease file.
        url: String,
        /// Why not.
        source: release::Error,
    },
    /// cannot use {url}: {reason}
    Index {
        /// The index file.
        url: String,
        /// Why not.
        #[source]
        reason: Reason,
    },
    /// {what} is damaged in the cache, and the cache cannot be written to
    Damaged {
        /// What is damaged.
        what: String,
    },
    /// {what} is not in the cache, and this run is offline
    Offline {
        /// What is missing.
        what: String,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Http(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::KeyringFile { .. } => Some("correct `keyring` in the recipe".into()),
            Self::Keyring { .. } => Some("export it with `gpg --export KEY`".into()),
            Self::Signature { .. } => Some(
                "another mirror; for an archive that is not Debian's, name its keyring in the recipe".into(),
            ),
            Self::Release { .. } => Some(
                "a mirror that is up to date; to build from old packages on purpose, set `snapshot` \
                 in the recipe"
                    .into(),
            ),
            Self::Index { .. } => Some("another mirror".into()),
            Self::Damaged { .. } => Some("set XDG_CACHE_HOME to a writable directory".into()),
            Self::Offline { .. } => Some("run once without --offline".into()),
        }
    }
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
