//! Why a command failed.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use displaydoc::Display;

use crate::advice::Advice;
use crate::{build, imagefs, import, pack, recipe, root, sign, store, tree};

/// What `imgtool: …` says.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Build(#[from] build::Error),
    /// {0}
    Recipe(#[from] recipe::Error),
    /// {0}
    Root(#[from] root::Error),
    /// {0}
    Store(#[from] store::Error),
    /// {0}
    Ami(#[from] ami::Error),
    /// {0}
    ImageFs(#[from] imagefs::Error),
    /// {0}
    Import(#[from] import::ImageError),
    /// {0}
    Pack(#[from] pack::Error),
    /// {0}
    Key(#[from] sign::Error),
    /// {path}: {source}
    Signature {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: ami::SignatureError,
    },
    /// cannot derive a name from {path}
    NoName {
        /// The file.
        path: PathBuf,
        /// The option that says it.
        option: &'static str,
    },
    /// {0}
    Tree(#[from] tree::TreeError),
    /// {path} is {what}
    NotAFile {
        /// The path in the image.
        path: String,
        /// What it is instead.
        what: &'static str,
    },
    /// cannot write {path}: {source}
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// cannot read {what}: {source}
    Read {
        /// What.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// cannot write to standard output: {0}
    Output(#[from] io::Error),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Build(error) => error.advice(),
            Self::Recipe(error) => error.advice(),
            Self::Root(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::Ami(error) => error.advice(),
            Self::ImageFs(error) => error.advice(),
            Self::Import(error) => error.advice(),
            Self::Pack(error) => error.advice(),
            Self::Key(error) => error.advice(),
            Self::Signature { .. } => {
                Some("the key of whoever published the image, or another copy of it".into())
            }
            Self::NoName { option, .. } => Some(format!("--{option}").into()),
            Self::Tree(..) => Some("`imgtool ls` shows what the image holds".into()),
            Self::NotAFile { .. } => Some("`imgtool ls -l` shows what is a file".into()),
            Self::Write { .. } => Some("another place, or more space".into()),
            Self::Read { .. } => Some("`imgtool verify` on the image".into()),
            Self::Output(..) => None,
        }
    }
}
