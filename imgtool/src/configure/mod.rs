//! What turns unpacked packages into a system: the target's own dpkg, the recipe's files, users and services,
//! and the removal of everything that belongs to one machine.

mod accounts;
mod batches;
mod chroot;
mod cleanup;
mod disk;
mod edit;
mod execute;
mod failure;
mod files;
mod helper;
mod input;
mod inside;
mod install;
mod job;
mod keystore;
mod mounts;
mod private_keys;
mod repack;
mod sandbox;
mod secrets;
mod services;
mod usable;
mod worker;

use std::borrow::Cow;
use std::path::PathBuf;

use displaydoc::Display;

pub use accounts::{add_users, basic_accounts};
pub use cleanup::clean;
pub use files::add_files;
pub use helper::run_if_asked;
pub use input::Input;
pub use job::Task;
pub use private_keys::{private_keys, warning as private_key_warning};
pub use sandbox::{Error as SandboxError, run};
pub use secrets::{first_boot_room, made_by_packages, remove as remove_secrets};
pub use services::{add_units, set_hostname};
pub use usable::check_root;

use crate::advice::Advice;
use crate::tree::TreeError;

/// Why a root could not be completed.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// cannot write {path} into the image: {source}
    Tree {
        /// The path in the image.
        path: String,
        /// Why not.
        source: TreeError,
    },
    /// cannot read {path} for the image: {source}
    Source {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// cannot write {path} into the image: {by} has that name
    Occupied {
        /// The path in the image.
        path: String,
        /// What is there.
        by: &'static str,
        /// What would work.
        advice: &'static str,
    },
    /// cannot put {path} into the image: {why}
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// {path} in the image cannot be edited: {reason}
    Edit {
        /// The path in the image.
        path: String,
        /// Why not.
        reason: String,
    },
    /// there is no {kind} `{name}` in the image
    NoAccount {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// users, {name}: uid {uid} is that of {owner} in the image
    Taken {
        /// The user.
        name: String,
        /// The number that was asked for.
        uid: u32,
        /// Whose it is, or the number that the user has.
        owner: String,
    },
    /// {key}: {why}
    Unusable {
        /// The recipe's key.
        key: String,
        /// What is wrong.
        why: String,
        /// What would be right.
        advice: &'static str,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Tree { .. } => "correct the recipe's path".into(),
            Self::Source { .. } => {
                "correct `source` in the recipe; it is relative to the recipe's directory".into()
            }
            Self::Occupied { advice, .. } => (*advice).into(),
            Self::Unfit { .. } => "rename it, or leave it out of the source".into(),
            Self::Edit { .. } => "see which package brings it with `imgtool ls`".into(),
            Self::NoAccount { .. } => {
                "add it to `users`, name the package that makes it, or give a number".into()
            }
            Self::Taken { .. } => "another uid, or none: the next free one from 1000".into(),
            Self::Unusable { advice, .. } => (*advice).into(),
        })
    }
}

impl Error {
    fn tree(path: impl Into<String>) -> impl FnOnce(TreeError) -> Self {
        let path = path.into();
        move |source| Self::Tree { path, source }
    }
}

#[cfg(test)]
mod tests;
