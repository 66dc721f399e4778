//! Why a command failed.

use std::io;
use std::path::PathBuf;

use crate::{build, imagefs, import, pack, recipe, root, sign, store, tree};

/// What `imgtool: …` says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Building failed.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// Packages could not be had.
    #[error(transparent)]
    Root(#[from] root::Error),
    /// The cache is unusable.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The image is wrong.
    #[error("{0}\n  try: {hint}", hint = .0.hint())]
    Ami(#[from] ami::Error),
    /// The image's file system is wrong.
    #[error(transparent)]
    ImageFs(#[from] imagefs::Error),
    /// The source of an import is wrong.
    #[error(transparent)]
    Import(#[from] import::ImageError),
    /// Packing failed.
    #[error(transparent)]
    Pack(#[from] pack::Error),
    /// A key is wrong.
    #[error(transparent)]
    Key(#[from] sign::Error),
    /// The signature is not the expected one.
    #[error("{}: {source}\n  try: the key of whoever published the image, or another copy of it", path.display())]
    Signature {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: ami::SignatureError,
    },
    /// A file name says nothing.
    #[error("cannot tell a name from {}\n  try: --{option}", path.display())]
    NoName {
        /// The file.
        path: PathBuf,
        /// The option that says it.
        option: &'static str,
    },
    /// A path in the image is wrong.
    #[error("{0}\n  try: `imgtool ls` shows what the image holds")]
    Tree(#[from] tree::TreeError),
    /// A file in the image cannot be printed.
    #[error("{path} is {what}\n  try: `imgtool ls -l` shows what is a file")]
    NotAFile {
        /// The path in the image.
        path: String,
        /// What it is instead.
        what: &'static str,
    },
    /// A file on the host cannot be written.
    #[error("cannot write {}: {source}\n  try: another place, or more space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Bytes of the image cannot be read.
    #[error("cannot read {what}: {source}\n  try: `imgtool verify` on the image")]
    Read {
        /// What.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Standard output is closed or full.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}
