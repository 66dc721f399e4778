//! Files and folders as tar archives, packed on one side of a copy and unpacked on the other.

mod pack;
mod report;
mod sparse;
mod unpack;

use std::io;
use std::path::Path;

use displaydoc::Display;

pub use pack::pack;
pub use report::{PrintablePath, Report, printable};
pub use unpack::{Receiver, unpack};

/// Why a copy has failed.
#[derive(Debug, thiserror::Error, Display)]
#[ignore_extra_doc_attributes]
pub enum Error {
    /// {path}: {source}
    File {
        /// The file, where it is or was to be.
        path: PrintablePath,
        /// The operating system's reason.
        source: io::Error,
    },
    /// {path} {why}
    Refused {
        /// What is refused.
        path: PrintablePath,
        /// What is wrong with it, beginning with a verb.
        why: &'static str,
    },
    /// the archive of the copy is damaged or broke off: {0}
    Archive(io::Error),
    /// the archive of the copy does not hold the one file or folder that is to be named {0}
    NotOne(PrintablePath),
}

impl Error {
    /// The kind of what the operating system said, if it was asked.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Error::File { source, .. } | Error::Archive(source) => source.kind(),
            Error::Refused { .. } => io::ErrorKind::InvalidInput,
            Error::NotOne(_) => io::ErrorKind::InvalidData,
        }
    }
}

/// Names the file that an operating system's error is about.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned().into();
    move |source| Error::File { path, source }
}

#[cfg(test)]
mod tests;
