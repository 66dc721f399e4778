//! Errors of AMI files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use displaydoc::Display;

use crate::PartName;

/// A part of the file that can be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// The GPT partition table at the start of the file.
    Table,
    /// The copy of the partition table at the end of the file.
    BackupTable,
    /// The header in front of the manifest.
    Header,
    /// The manifest itself.
    Manifest,
    /// The digests of the root's chunks, behind the manifest.
    Chunks,
    /// The signature slot.
    Signature,
    /// The content of a partition.
    Part(PartName),
    /// Bytes between partitions, which must be zero.
    Padding,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Region::Table => f.write_str("partition table"),
            Region::BackupTable => f.write_str("backup partition table"),
            Region::Header => f.write_str("manifest header"),
            Region::Manifest => f.write_str("manifest"),
            Region::Chunks => f.write_str("chunk table"),
            Region::Signature => f.write_str("signature"),
            Region::Part(name) => write!(f, "{name} part"),
            Region::Padding => f.write_str("padding"),
        }
    }
}

/// Why an AMI cannot be read or written. The message says what and why; [`Error::hint`] says what to try.
#[derive(Debug, thiserror::Error, Display)]
#[ignore_extra_doc_attributes]
pub enum Error {
    /// cannot {action} {path}: {source}
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: SystemError,
    },
    /// {path} is not an AMI: {why}
    NotAnAmi {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// {path} is cut short in the {region}: it has {have} bytes and needs {need}
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part in which it ends.
        region: Region,
        /// Its length in bytes.
        have: u64,
        /// The length it should have.
        need: u64,
    },
    /// the {region} of {path} is damaged: {why}
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part that is damaged.
        region: Region,
        /// How it shows.
        why: String,
    },
    /// {path} has image format {found}; this program reads formats up to {supported}
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The schema version in the file.
        found: u32,
        /// The schema version known here.
        supported: u32,
    },
    /// the manifest is not valid: {0}
    ///
    /// It says something impossible; from a writer's side, a fault of its caller.
    Manifest(String),
    /// {path} has no {part} part
    NoSuchPart {
        /// The file.
        path: PathBuf,
        /// The part asked for.
        part: PartName,
    },
}

/// What is attempted in the directory of a new file.
pub(crate) const CREATE: &str = "create a file in";

/// An error of the operating system, in its words but for what people know by other words.
#[derive(Debug)]
pub struct SystemError(io::Error);

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

/// What is displayed is the system's error, so its source is that error's.
impl std::error::Error for SystemError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl SystemError {
    /// The kind of the operating system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            io::ErrorKind::StorageFull => f.write_str("the disk is full"),
            _ => self.0.fmt(f),
        }
    }
}

impl Error {
    /// The operating system's refusal to do something with a file.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// What to try, as one sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Io { source, action, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if *action == CREATE => {
                    "make that directory, or write to another one"
                }
                io::ErrorKind::IsADirectory => "name a file, not a directory",
                io::ErrorKind::NotFound => "check the path, or build the image with `imgtool build`",
                io::ErrorKind::PermissionDenied => "check the file's owner and mode",
                io::ErrorKind::StorageFull => "free some space, or write to another disk",
                _ => "check the disk that holds the file",
            },
            Error::NotAnAmi { .. } => "give a file that `imgtool build` or `imgtool unpack` wrote",
            Error::Truncated { .. } => "copy or download the file again, or build it again",
            Error::Damaged { .. } => {
                "copy or download the file again, or build it again; `imgtool verify` checks all of it"
            }
            Error::Unsupported { .. } => {
                "use a newer version of Kiln, or build the image again with this one"
            }
            Error::Manifest(_) => "correct the recipe, or build the image again",
            Error::NoSuchPart { .. } => "`imgtool inspect` lists the parts that the image has",
        }
    }

    /// The damaged or missing part of the file, when one is to blame.
    pub fn region(&self) -> Option<Region> {
        match self {
            Error::Truncated { region, .. } | Error::Damaged { region, .. } => Some(*region),
            Error::NotAnAmi { .. } | Error::Unsupported { .. } => Some(Region::Header),
            Error::Manifest(_) => Some(Region::Manifest),
            Error::NoSuchPart { part, .. } => Some(Region::Part(*part)),
            Error::Io { .. } => None,
        }
    }
}
