//! Keys and signatures in minisign's formats (minisign(1), "Signature format"): one line of comment, one of
//! base64.

use crate::advice::Advice;
use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ami::Signature;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use displaydoc::Display;
use ed25519_dalek::{SigningKey, VerifyingKey};

/// A key file is two short lines; one that is longer than this is something else.
const MAX_KEY_FILE: u64 = 4096;
/// The signature algorithm: Ed25519 over the message itself.
const ED25519: &[u8; 2] = b"Ed";
/// The checksum algorithm: BLAKE2b-256.
const BLAKE2: &[u8; 2] = b"B2";
/// No key derivation: the secret key is stored plainly.
const PLAIN: &[u8; 2] = &[0, 0];
/// Bytes of a secret key's file: algorithms 6, salt 32, limits 16, then id 8, key 64 and checksum 32.
const SECRET_LENGTH: usize = 6 + 32 + 16 + 8 + 64 + 32;

/// Why a key cannot be used.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// cannot {action} the key {path}: {source}
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// {path} exists and is not overwritten by a new key
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// {path} is not a minisign {what} key: {why}
    Malformed {
        /// The file.
        path: PathBuf,
        /// `public` or `secret`.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
        /// What would be right.
        advice: &'static str,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Io { .. } => "check the path".into(),
            Self::Exists { .. } => "another name".into(),
            Self::Malformed { advice, .. } => (*advice).into(),
        })
    }
}

/// What signs.
pub struct SecretKey {
    /// Which key it is.
    pub id: [u8; 8],
    key: SigningKey,
}

/// What verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Which key it is.
    pub id: [u8; 8],
    /// The key.
    pub key: VerifyingKey,
}

impl SecretKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut random = [0; 40];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let (id, seed) = random.split_at(8);
        Ok(Self::new(
            id.try_into().unwrap_or_default(),
            seed.try_into().unwrap_or_default(),
        ))
    }

    fn new(id: [u8; 8], seed: [u8; 32]) -> Self {
        Self {
            id,
            key: SigningKey::from_bytes(&seed),
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey {
            id: self.id,
            key: self.key.verifying_key(),
        }
    }

    /// Sign the bytes of a manifest.
    pub fn sign(&self, manifest: &[u8]) -> Signature {
        Signature::sign(manifest, &self.key, self.id)
    }

    /// Write the key, readable by its owner only. An existing file is never overwritten: it may be the only
    /// copy.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let pair = self.key.to_keypair_bytes();
        let mut bytes = [&ED25519[..], PLAIN, BLAKE2].concat();
        bytes.extend([0; 48]);
        bytes.extend(self.id);
        bytes.extend(pair);
        bytes.extend(checksum(&self.id, &pair));
        let text = format!(
            "untrusted comment: kiln secret key\n{}\n",
            STANDARD.encode(&bytes)
        );
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: path.into() },
            _ => Error::Io {
                action: "write",
                path: path.into(),
                source,
            },
        })
    }

    /// Read a key that `imgtool keygen` or `minisign -G -W` wrote.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let wrong = |why, advice| Error::Malformed {
            path: path.into(),
            what: "secret",
            why,
            advice,
        };
        let bytes = read(path, "secret")?;
        let bytes: &[u8; SECRET_LENGTH] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| wrong("its length is wrong", "`imgtool keygen` makes one"))?;
        if bytes[..2] != *ED25519 || bytes[4..6] != *BLAKE2 {
            return Err(wrong("its algorithm is not known", "`imgtool keygen` makes one"));
        }
        if bytes[2..4] != *PLAIN {
            return Err(wrong(
                "it is protected by a password",
                "remove the password with `minisign -C -W`",
            ));
        }
        let body = &bytes[54..];
        let (id, pair) = (body[..8].try_into().unwrap_or_default(), &body[8..72]);
        let key: [u8; 64] = pair
            .try_into()
            .map_err(|_| wrong("its length is wrong", "use another copy"))?;
        // minisign computes no checksum where it sets no password: `-W` leaves zeros there.
        if checksum(&id, &key) != body[72..] && body[72..] != [0; 32] {
            return Err(wrong("it does not match its checksum", "use another copy"));
        }
        let key = SigningKey::from_keypair_bytes(&key);
        let key = key.map_err(|_| wrong("its halves do not belong together", "use another copy"))?;
        Ok(Self { id, key })
    }
}

impl PublicKey {
    /// Write the key.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let bytes = [&ED25519[..], &self.id, self.key.as_bytes()].concat();
        let id = Signature::show_key(self.id);
        let text = format!(
            "untrusted comment: minisign public key {id}\n{}\n",
            STANDARD.encode(bytes)
        );
        fs::write(path, text).map_err(|source| Error::Io {
            action: "write",
            path: path.into(),
            source,
        })
    }

    /// Read a public key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let wrong = |why| Error::Malformed {
            path: path.into(),
            what: "public",
            why,
            advice: "give the file that `imgtool keygen` or `minisign -G` wrote for the public",
        };
        let bytes = read(path, "public")?;
        let bytes: &[u8; 42] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| wrong("its length is wrong"))?;
        if bytes[..2] != *ED25519 {
            return Err(wrong("its algorithm is not known"));
        }
        let id = bytes[2..10].try_into().unwrap_or_default();
        let key = VerifyingKey::from_bytes(&bytes[10..].try_into().unwrap_or_default());
        Ok(Self {
            id,
            key: key.map_err(|_| wrong("it is not a point on the curve"))?,
        })
    }
}

/// The base64 on the second line of a key file.
fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io {
        action: "read",
        path: path.into(),
        source,
    };
    let mut text = String::new();
    File::open(path)
        .map_err(io)?
        .take(MAX_KEY_FILE)
        .read_to_string(&mut text)
        .map_err(io)?;
    let line = text.lines().nth(1).unwrap_or_default().trim();
    STANDARD.decode(line).map_err(|_| Error::Malformed {
        path: path.into(),
        what,
        why: "its second line is not base64",
        advice: "`imgtool keygen` makes a pair",
    })
}

fn checksum(id: &[u8; 8], pair: &[u8; 64]) -> [u8; 32] {
    Blake2b::<U32>::new()
        .chain_update(ED25519)
        .chain_update(id)
        .chain_update(pair)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_through_files() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("k.key"), dir.path().join("k.pub"));
        let key = SecretKey::generate().unwrap();
        key.save(&secret).unwrap();
        key.public().save(&public).unwrap();
        let signature = SecretKey::load(&secret).unwrap().sign(b"manifest");
        let read = PublicKey::load(&public).unwrap();
        assert_eq!(read, key.public());
        assert_eq!(signature.verify(b"manifest", &read.key, read.id), Ok(()));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(key.save(&secret).is_err(), "a key is never overwritten");
    }

    #[test]
    fn a_key_of_minisign_is_read() {
        // The public key of minisign's own page, whose id it gives as shown.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("minisign.pub");
        let text = "untrusted comment: minisign public key E7620F1842B4E81F\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
        fs::write(&path, text).unwrap();
        let key = PublicKey::load(&path).unwrap();
        assert_eq!(Signature::show_key(key.id), "E7620F1842B4E81F");
    }

    #[test]
    fn a_secret_key_without_checksum_is_one_of_minisigns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.key");
        let key = SecretKey::new([1; 8], [2; 32]);
        key.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let mut bytes = STANDARD.decode(text.lines().nth(1).unwrap()).unwrap();
        bytes[126..].fill(0);
        let write = |bytes: &[u8]| fs::write(&path, format!("c\n{}\n", STANDARD.encode(bytes))).unwrap();
        write(&bytes);
        assert_eq!(SecretKey::load(&path).unwrap().public(), key.public());
        // Without a checksum, damage still shows in the halves of the key.
        bytes[70] ^= 1;
        write(&bytes);
        let error = SecretKey::load(&path).err().unwrap().report();
        assert!(error.contains("halves") && error.contains("try:"), "{error}");
    }

    #[test]
    fn damage_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.key");
        SecretKey::new([1; 8], [2; 32]).save(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let mut bytes = STANDARD.decode(good.lines().nth(1).unwrap()).unwrap();
        for (at, word) in [(0, "algorithm"), (2, "password"), (100, "checksum")] {
            bytes[at] ^= 1;
            fs::write(&path, format!("c\n{}\n", STANDARD.encode(&bytes))).unwrap();
            let error = SecretKey::load(&path).err().unwrap().report();
            assert!(error.contains(word) && error.contains("try:"), "{error}");
            bytes[at] ^= 1;
        }
        fs::write(&path, "hello").unwrap();
        assert!(SecretKey::load(&path).is_err());
    }
}
