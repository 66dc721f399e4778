//! The signature slot: 4 KiB behind the chunk table, all zero or one Ed25519 signature of the manifest.
//!
//! The signed message is the manifest's bytes, and the signature is minisign's first kind (`Ed`), so that the
//! manifest taken out of the file can be checked with `minisign -V` as well. Signing changes neither manifest
//! nor id.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::Digest;
use crate::layout::BLOCK;

const MAGIC: [u8; 8] = *b"AMISIG\r\n";
/// Magic, algorithm, key id, signature.
const SIGNED: usize = 8 + 2 + 8 + 64;

/// A signature of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Which key made it: minisign's key id.
    pub key_id: [u8; 8],
    /// Ed25519 (RFC 8032) over the manifest's bytes.
    pub bytes: [u8; 64],
}

/// Why a signature is not accepted.
#[derive(Debug, displaydoc::Display, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// the image is not signed
    Unsigned,
    /// the image is signed with key {found}, not with {expected}
    OtherKey {
        /// Key id in the image, in minisign's spelling.
        found: String,
        /// Key id of the key given.
        expected: String,
    },
    /// the signature does not match the manifest
    Mismatch,
}

impl Signature {
    /// Sign a manifest.
    pub fn sign(manifest: &[u8], key: &SigningKey, key_id: [u8; 8]) -> Self {
        Self {
            key_id,
            bytes: key.sign(manifest).to_bytes(),
        }
    }

    /// Check that this key signed this manifest. Weak keys and malleable signatures are refused.
    pub fn verify(&self, manifest: &[u8], key: &VerifyingKey, key_id: [u8; 8]) -> Result<(), SignatureError> {
        if self.key_id != key_id {
            let (found, expected) = (Self::show_key(self.key_id), Self::show_key(key_id));
            return Err(SignatureError::OtherKey { found, expected });
        }
        let signature = ed25519_dalek::Signature::from_bytes(&self.bytes);
        key.verify_strict(manifest, &signature)
            .map_err(|_| SignatureError::Mismatch)
    }

    /// A key id as minisign prints it: the little-endian number in upper-case hexadecimal.
    pub fn show_key(key_id: [u8; 8]) -> String {
        format!("{:016X}", u64::from_le_bytes(key_id))
    }

    pub(crate) fn to_block(&self) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        block[..8].copy_from_slice(&MAGIC);
        block[8..10].copy_from_slice(b"Ed");
        block[10..18].copy_from_slice(&self.key_id);
        block[18..SIGNED].copy_from_slice(&self.bytes);
        let digest = Digest::of(&block[..SIGNED]);
        block[SIGNED..SIGNED + 32].copy_from_slice(&digest.0);
        block
    }

    /// Nothing when the slot is empty; why not, when it holds neither zeros nor a signature.
    pub(crate) fn from_block(block: &[u8; BLOCK as usize]) -> Result<Option<Self>, &'static str> {
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let mut signature = Signature {
            key_id: [0; 8],
            bytes: [0; 64],
        };
        signature.key_id.copy_from_slice(&block[10..18]);
        signature.bytes.copy_from_slice(&block[18..SIGNED]);
        if signature.to_block() == *block {
            Ok(Some(signature))
        } else {
            Err("it does not match its own digest")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_with_its_key_and_manifest_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let signature = Signature::sign(b"manifest", &key, [1; 8]);
        let public = key.verifying_key();
        assert_eq!(signature.verify(b"manifest", &public, [1; 8]), Ok(()));
        assert_eq!(
            signature.verify(b"manifesT", &public, [1; 8]),
            Err(SignatureError::Mismatch)
        );
        assert!(matches!(
            signature.verify(b"manifest", &public, [2; 8]),
            Err(SignatureError::OtherKey { .. })
        ));
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert_eq!(
            signature.verify(b"manifest", &other, [1; 8]),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn a_slot_with_any_changed_byte_is_refused() {
        let signature = Signature::sign(b"m", &SigningKey::from_bytes(&[7; 32]), [1; 8]);
        let block = signature.to_block();
        assert_eq!(Signature::from_block(&block), Ok(Some(signature)));
        assert_eq!(Signature::from_block(&[0; 4096]), Ok(None));
        for at in [0, 9, 12, 40, 90, 200, 4095] {
            let mut flipped = block;
            flipped[at] ^= 4;
            assert!(Signature::from_block(&flipped).is_err(), "byte {at}");
        }
    }
}
