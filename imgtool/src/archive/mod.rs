//! Tar archives: those of others, which are never trusted, and the form in which Kiln keeps a root.

mod acl;
mod entries;
mod error;
mod pax;
mod root;
mod sparse;

pub use entries::{Entry, EntryKind, visit};
pub use error::Damage;
pub use root::{read, read_with_digest, write};
