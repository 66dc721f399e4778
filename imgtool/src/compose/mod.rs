//! From a root tree and a kernel to an AMI: extract the kernel, choose modules, pack the initramfs, lay out
//! the ext4, write the file.

mod assemble;
pub mod cpio;
mod error;
pub mod ext4;
pub mod initramfs;
pub mod kernel;
mod modinfo;
mod modsig;
pub mod modules;
pub mod sbom;

pub use assemble::{Image, Written, write};
pub use error::Error;
