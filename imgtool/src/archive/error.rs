//! What can be wrong with an archive.

use std::io;

use displaydoc::Display;

use crate::tree::TreeError;

/// What is wrong with a tar archive.
#[derive(Debug, Display, thiserror::Error)]
pub enum Damage {
    /// the path {0} is not allowed
    Path(String),
    /// {0} is of the unknown kind `{1}`
    Kind(String, char),
    /// the extended header {0} is not understood
    Pax(String),
    /// an extended header is malformed
    MalformedPax,
    /// the checksum of a header is wrong
    Checksum,
    /// the access control list `{0}` is not understood: names in it need --numeric-owner when the archive is
    /// written
    Acl(String),
    /// the map of the holes of {0} is malformed
    Sparse(String),
    /// the owner or group of {0} is {1}, and numbers have 32 bits
    Owner(String, u64),
    /// {0} is longer than {1} bytes
    TooLong(String, u64),
    /// a header is longer than {0} bytes
    LongHeader(u64),
    /// it has more than {0} entries
    TooMany(usize),
    /// {0} is a hard link to {1}, which is not there
    Hardlink(String, String),
    /// {0}
    Tree(#[from] TreeError),
    /// it cannot be unpacked: {0}
    Read(#[source] io::Error),
}
