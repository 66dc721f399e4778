//! The parts of an image: what its partitions are called and where they lie.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// A partition behind the manifest's, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartName {
    /// The kernel: an uncompressed ELF `vmlinux` (x86_64) or an `Image` (arm64).
    Kernel,
    /// The initial RAM file system: an uncompressed newc cpio.
    Initramfs,
    /// The root file system: a bare ext4.
    Root,
    /// The bill of materials: SPDX 2.3 JSON, zstd.
    Sbom,
    /// The memory of a guest that runs, to be mapped: RAM region after region, zero pages as holes.
    Memory,
    /// The state of that guest's processors and devices, in the machine's own encoding.
    State,
}

impl PartName {
    /// Every name, in the order of the file.
    pub const ALL: [PartName; 6] = [
        PartName::Kernel,
        PartName::Initramfs,
        PartName::Root,
        PartName::Sbom,
        PartName::Memory,
        PartName::State,
    ];

    /// The name of the GPT partition.
    pub fn label(self) -> &'static str {
        match self {
            PartName::Kernel => "ami-kernel",
            PartName::Initramfs => "ami-initramfs",
            PartName::Root => "root",
            PartName::Sbom => "ami-sbom",
            PartName::Memory => "ami-memory",
            PartName::State => "ami-state",
        }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PartName::Kernel => "kernel",
            PartName::Initramfs => "initramfs",
            PartName::Root => "root",
            PartName::Sbom => "sbom",
            PartName::Memory => "memory",
            PartName::State => "state",
        })
    }
}

impl FromStr for PartName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|name| name.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not a part: kernel, initramfs, root, sbom, memory or state"))
    }
}

/// Where a part is and what it must contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which one.
    pub name: PartName,
    /// First byte, from the start of the file; a multiple of 1 MiB.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Digest of exactly these bytes.
    pub blake3: Digest,
}
