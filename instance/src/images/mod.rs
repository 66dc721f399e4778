//! Images: AMI files as a launch sees them, the store of them, and making them fit for others.

pub mod image;
mod registry;
pub(crate) mod scrub;
pub mod sparse_copy;

pub use registry::{Images, Removed, Stored};
