//! What can be wrong with an archive.

use std::io;

use crate::tree::TreeError;

/// What is wrong with a tar archive.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A path that leaves the root, or is malformed.
    #[error("the path {0} is not allowed")]
    Path(String),
    /// An unknown kind of entry.
    #[error("{0} is of the unknown kind `{1}`")]
    Kind(String, char),
    /// An unknown pax extension.
    #[error("the extended header {0} is not understood")]
    Pax(String),
    /// A malformed pax header.
    #[error("an extended header is malformed")]
    MalformedPax,
    /// A header that was changed.
    #[error("the checksum of a header is wrong")]
    Checksum,
    /// A list that cannot be read.
    #[error(
        "the access control list `{0}` is not understood: names in it need --numeric-owner when the archive is written"
    )]
    Acl(String),
    /// A map that does not fit the file.
    #[error("the map of the holes of {0} is malformed")]
    Sparse(String),
    /// A number above 32 bits.
    #[error("the owner or group of {0} is {1}, and numbers have 32 bits")]
    Owner(String, u64),
    /// A file longer than an image can hold.
    #[error("{0} is longer than {1} bytes")]
    TooLong(String, u64),
    /// A header of a kind that is never long.
    #[error("a header is longer than {0} bytes")]
    LongHeader(u64),
    /// Too many files.
    #[error("it has more than {0} entries")]
    TooMany(usize),
    /// A hard link whose target was not unpacked.
    #[error("{0} is a hard link to {1}, which is not there")]
    Hardlink(String, String),
    /// The tree refuses an entry.
    #[error("{0}")]
    Tree(#[from] TreeError),
    /// The stream cannot be read.
    #[error("it cannot be unpacked: {0}")]
    Read(io::Error),
}
