//! Where everything is in the file: a function of the parts' lengths alone.
//!
//! ```text
//! 0        protective MBR, GPT header and entries (34 sectors)
//! 1 MiB    partition 1: header 4 KiB | manifest 256 KiB | chunk table | signature 4 KiB
//! …        the parts, each at a multiple of 1 MiB, in the order of PartName
//! end-33s  backup GPT, in a last MiB of its own
//! ```

use crate::{ChunkTable, PartName};

/// Every partition starts at a multiple of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// Most bytes in one part: 1 TiB, whose chunk table has 32 MiB.
pub const MAX_PART: u64 = 1 << 40;

/// Where partition 1 starts, in bytes.
pub(crate) const MANIFEST_PARTITION: u64 = ALIGNMENT;
/// One block: the unit of everything in partition 1.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes kept for the manifest. A manifest of every list at its limit is smaller.
pub(crate) const MANIFEST_SPACE: u64 = 256 << 10;

/// Offsets in the file, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Length of the whole file.
    pub file_length: u64,
    /// Number of entries in the root's chunk table.
    pub chunks: u64,
    /// Length of partition 1.
    pub(crate) manifest_partition_length: u64,
    parts: Vec<(PartName, u64, u64)>,
}

impl Layout {
    /// The layout of an image with parts of these lengths, given in the order of [`PartName`].
    pub fn new(lengths: &[(PartName, u64)]) -> Self {
        let root = lengths
            .iter()
            .find(|(name, _)| *name == PartName::Root)
            .map_or(0, |(_, length)| *length);
        let chunks = ChunkTable::count_for(root);
        let inside = BLOCK + MANIFEST_SPACE + (chunks * 32).next_multiple_of(BLOCK) + BLOCK;
        let manifest_partition_length = inside.next_multiple_of(ALIGNMENT);
        let mut at = MANIFEST_PARTITION + manifest_partition_length;
        let mut parts = Vec::with_capacity(lengths.len());
        for (name, length) in lengths {
            parts.push((*name, at, *length));
            at += length.next_multiple_of(ALIGNMENT);
        }
        Self {
            file_length: at + ALIGNMENT,
            chunks,
            manifest_partition_length,
            parts,
        }
    }

    /// First byte of a part.
    pub fn offset(&self, name: PartName) -> Option<u64> {
        self.parts.iter().find(|part| part.0 == name).map(|part| part.1)
    }

    /// Name, offset and length of each part, in order.
    pub fn parts(&self) -> &[(PartName, u64, u64)] {
        &self.parts
    }

    pub(crate) fn manifest_offset(&self) -> u64 {
        MANIFEST_PARTITION + BLOCK
    }

    pub(crate) fn chunks_offset(&self) -> u64 {
        self.manifest_offset() + MANIFEST_SPACE
    }

    pub(crate) fn signature_offset(&self) -> u64 {
        self.chunks_offset() + (self.chunks * 32).next_multiple_of(BLOCK)
    }

    /// The gaps that must hold zeros, `manifest_length` being that of the JSON.
    pub(crate) fn padding(&self, manifest_length: u64) -> Vec<(u64, u64)> {
        let mut gaps = vec![
            (crate::gpt::HEAD as u64, MANIFEST_PARTITION),
            (self.manifest_offset() + manifest_length, self.chunks_offset()),
            (self.chunks_offset() + self.chunks * 32, self.signature_offset()),
            (
                self.signature_offset() + BLOCK,
                MANIFEST_PARTITION + self.manifest_partition_length,
            ),
        ];
        for (_, offset, length) in &self.parts {
            gaps.push((offset + length, offset + length.next_multiple_of(ALIGNMENT)));
        }
        gaps.push((
            self.file_length - ALIGNMENT,
            self.file_length - crate::gpt::TAIL as u64,
        ));
        gaps.retain(|(from, to)| from < to);
        gaps
    }
}
