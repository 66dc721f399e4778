//! The 4 KiB block in front of the manifest: how long it is and what digest it has.
//!
//! ```text
//! 0     magic "KILN-AMI\r\n\x1a\n\0\0\0\0" (a text-mode copy or a 7-bit channel breaks it, as PNG's)
//! 16    u32 format version, little-endian: the manifest's schema
//! 20    u32 bytes of manifest
//! 24    u64 entries in the chunk table
//! 32    BLAKE3 of the manifest
//! 64    zeros
//! 4064  BLAKE3 of bytes 0 to 4063
//! ```

use crate::layout::{BLOCK, MANIFEST_SPACE};
use crate::{Digest, SCHEMA, SCHEMA_WARM};

pub(crate) const MAGIC: [u8; 16] = *b"KILN-AMI\r\n\x1a\n\0\0\0\0";
const DIGEST_AT: usize = BLOCK as usize - 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub schema: u32,
    pub manifest_length: u32,
    pub chunks: u64,
    pub manifest: Digest,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Magic,
    Version(u32),
    Damaged(String),
}

impl Header {
    pub fn to_block(self) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        block[..16].copy_from_slice(&MAGIC);
        block[16..20].copy_from_slice(&self.schema.to_le_bytes());
        block[20..24].copy_from_slice(&self.manifest_length.to_le_bytes());
        block[24..32].copy_from_slice(&self.chunks.to_le_bytes());
        block[32..64].copy_from_slice(&self.manifest.0);
        let digest = Digest::of(&block[..DIGEST_AT]);
        block[DIGEST_AT..].copy_from_slice(&digest.0);
        block
    }

    pub fn from_block(block: &[u8; BLOCK as usize]) -> Result<Self, HeaderError> {
        if block[..16] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if Digest::of(&block[..DIGEST_AT]).0 != block[DIGEST_AT..] {
            return Err(HeaderError::Damaged("it does not match its own digest".into()));
        }
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        if !(SCHEMA..=SCHEMA_WARM).contains(&word(16)) {
            return Err(HeaderError::Version(word(16)));
        }
        let mut manifest = [0; 32];
        manifest.copy_from_slice(&block[32..64]);
        let header = Header {
            schema: word(16),
            manifest_length: word(20),
            chunks: u64::from(word(24)) | u64::from(word(28)) << 32,
            manifest: Digest(manifest),
        };
        if header.manifest_length == 0 || u64::from(header.manifest_length) > MANIFEST_SPACE {
            let why = format!("it names a manifest of {} bytes", header.manifest_length);
            return Err(HeaderError::Damaged(why));
        }
        Ok(header)
    }
}
