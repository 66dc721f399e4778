//! Images: opening AMI files for a launch, the image store, and removing an instance's identity from a copy.

pub mod image;
mod registry;
pub(crate) mod scrub;
pub mod sparse_copy;

pub use registry::{Images, Removed, Stored};
