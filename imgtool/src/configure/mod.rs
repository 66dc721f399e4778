//! What turns unpacked packages into a system: the target's own dpkg, the recipe's files, users and services, and the
//! removal of everything that belongs to one machine.

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

use std::path::PathBuf;

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

use crate::tree::TreeError;

/// Why a root could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree refuses a change.
    #[error("cannot write {path} into the image: {source}\n  try: correct the recipe's path")]
    Tree {
        /// The path in the image.
        path: String,
        /// Why not.
        source: TreeError,
    },
    /// A file on this machine cannot be read.
    #[error(
        "cannot read {path} for the image: {source}\n  try: correct `source` in the recipe; it is relative to the recipe's directory"
    )]
    Source {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something is in the way that must stay.
    #[error("cannot write {path} into the image: {by} has that name\n  try: {advice}")]
    Occupied {
        /// The path in the image.
        path: String,
        /// What is there.
        by: &'static str,
        /// What would work.
        advice: &'static str,
    },
    /// A file on this machine cannot be in an image.
    #[error("cannot put {path} into the image: {why}\n  try: rename it, or leave it out of the source")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// A file of the image that is to be edited is not what it should be.
    #[error(
        "{path} in the image cannot be edited: {reason}\n  try: see which package brings it with `imgtool ls`"
    )]
    Edit {
        /// The path in the image.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A user or group does not exist in the image.
    #[error(
        "there is no {kind} `{name}` in the image\n  try: add it to `users`, name the package that makes it, or give a number"
    )]
    NoAccount {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A number is another's.
    #[error(
        "users, {name}: uid {uid} is that of {owner} in the image\n  try: another uid, or none: the next free one from 1000"
    )]
    Taken {
        /// The user.
        name: String,
        /// The number that was asked for.
        uid: u32,
        /// Whose it is, or the number that the user has.
        owner: String,
    },
    /// The image would not do what the recipe says.
    #[error("{key}: {why}\n  try: {advice}")]
    Unusable {
        /// The recipe's key.
        key: String,
        /// What is wrong.
        why: String,
        /// What would be right.
        advice: &'static str,
    },
}

impl Error {
    fn tree(path: impl Into<String>) -> impl FnOnce(TreeError) -> Self {
        let path = path.into();
        move |source| Self::Tree { path, source }
    }
}

#[cfg(test)]
mod tests;
