//! The AMI file: manifest, GPT layout, reader, writer, digests, signature.
//!
//! An AMI is a raw, sparse GPT disk image. Partition 1 starts at 1 MiB and holds the [`Manifest`]; the others
//! hold the kernel, the initramfs, the root file system and the SBOM ([`PartName`]), and in a warm image the
//! memory and the state of a guest that runs ([`Warm`]). The manifest names each
//! part's offset, length and BLAKE3, and its own BLAKE3 is the image's identity ([`AmiId`]). Everything else
//! in the file — the partition tables, the chunk table, the padding — follows from the manifest, so a reader
//! *computes* its expected bytes and compares: there is no second source of information, and no unchecked
//! byte.
//!
//! ```no_run
//! # fn main() -> Result<(), ami::Error> {
//! let ami = ami::Ami::open("hello.ami")?;
//! println!("{} {}", ami.id(), ami.manifest().name);
//! ami.verify_part(ami::PartName::Kernel)?;
//! let chunks = ami.root_chunks()?; // to verify the root's content lazily, 1 MiB at a time
//! # Ok(()) }
//! ```

mod architecture;
pub mod boot;
mod chunk;
pub mod command_line;
mod error;
mod gpt;
mod header;
mod id;
pub mod json;
mod layout;
mod manifest;
mod newfile;
mod part;
mod reader;
mod signature;
mod writer;

pub use architecture::Architecture;
pub use chunk::{CHUNK_SIZE, ChunkTable, digest_file};
pub use error::{Error, Region, SystemError};
pub use id::{AmiId, Digest};
pub use layout::{ALIGNMENT, Layout, MAX_PART};
pub use manifest::{
    BlockDeviceMapping, BootMode, ExposedPort, INIT_GUEST, Manifest, Protocol, SCHEMA, SCHEMA_WARM, Warm,
};
pub use newfile::NewFile;
pub use part::{Part, PartName};
pub use reader::{Ami, PartReader};
pub use signature::{Signature, SignatureError};
pub use writer::{Source, Writer, copy_sparse};
