//! Java keystores (`JKS`, as `sun.security.provider.JavaKeyStore` writes them): which keys they hold, and the
//! same bytes for the same certificates.

use sha1::{Digest, Sha1};

/// The first bytes of a keystore.
pub const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
/// The version that has been written since 1998.
const VERSION: u32 = 2;
/// The password of every list of authorities; it protects nothing, and changes are detected by it.
const PASSWORD: &str = "changeit";
/// Follows the password in what the digest is taken of.
const WHITENER: &[u8] = b"Mighty Aphrodite";
/// Entries of a keystore at most: more are no list of authorities.
const MAX_ENTRIES: u32 = 100_000;

const CERTIFICATE: u32 = 2;

/// A certificate that is trusted: its name, its form and itself, with their lengths as they are stored.
struct Certificate<'a> {
    alias: &'a [u8],
    rest: &'a [u8],
}

/// A keystore with every entry's time replaced and the entries in order. `None` when it is not a list of
/// certificates that is whole.
pub fn with_time(keystore: &[u8], milliseconds: i64) -> Option<Vec<u8>> {
    let (data, digest) = keystore.split_last_chunk::<20>()?;
    if digest_of(data) != *digest {
        return None;
    }
    let mut reader = Reader(data);
    let mut certificates = entries(&mut reader)?;
    certificates.sort_by_key(|certificate| certificate.alias);
    let mut out = data[..12].to_vec();
    for Certificate { alias, rest } in certificates {
        out.extend(CERTIFICATE.to_be_bytes());
        out.extend(alias);
        out.extend(milliseconds.to_be_bytes());
        out.extend(rest);
    }
    out.extend(digest_of(&out));
    Some(out)
}

/// Whether a keystore holds a private key, as far as it can be read.
pub fn has_private_key(keystore: &[u8]) -> bool {
    let mut reader = Reader(keystore);
    entries(&mut reader).is_none()
}

/// The entries; `None` when one of them is not a certificate, or cannot be read.
fn entries<'a>(reader: &mut Reader<'a>) -> Option<Vec<Certificate<'a>>> {
    if reader.take(4)? != MAGIC || reader.number()? != VERSION {
        return None;
    }
    let count = reader.number().filter(|count| *count <= MAX_ENTRIES)?;
    let mut found = Vec::new();
    for _ in 0..count {
        if reader.number()? != CERTIFICATE {
            return None;
        }
        let alias = reader.text()?;
        reader.take(8)?;
        let start = reader.0;
        reader.text()?;
        let length = reader.number()?;
        reader.take(length as usize)?;
        let rest = &start[..start.len() - reader.0.len()];
        found.push(Certificate { alias, rest });
    }
    Some(found)
}

fn digest_of(data: &[u8]) -> [u8; 20] {
    let mut hasher = Sha1::new();
    PASSWORD
        .encode_utf16()
        .for_each(|unit| hasher.update(unit.to_be_bytes()));
    hasher.update(WHITENER);
    hasher.update(data);
    hasher.finalize().into()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    /// A text with the two bytes of its length.
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(*self.0.first_chunk()?);
        self.take(2 + usize::from(length))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const KEY: u32 = 1;

    /// A keystore of entries: kind, alias, time.
    pub fn keystore(entries: &[(u32, &str, i64)]) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat();
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_be_bytes());
        out.extend((entries.len() as u32).to_be_bytes());
        for (kind, alias, time) in entries {
            out.extend(kind.to_be_bytes());
            out.extend(text(alias));
            out.extend(time.to_be_bytes());
            if *kind == CERTIFICATE {
                out.extend(text("X.509"));
            }
            out.extend(3u32.to_be_bytes());
            out.extend(alias.bytes().chain([0; 3]).take(3));
        }
        out.extend(digest_of(&out));
        out
    }

    #[test]
    fn the_same_certificates_are_the_same_bytes() {
        let first = keystore(&[(CERTIFICATE, "b", 1), (CERTIFICATE, "a", 2)]);
        let second = keystore(&[(CERTIFICATE, "a", 3), (CERTIFICATE, "b", 4)]);
        let settled = with_time(&first, 9).unwrap();
        assert_eq!(settled, with_time(&second, 9).unwrap());
        assert_eq!(settled, keystore(&[(CERTIFICATE, "a", 9), (CERTIFICATE, "b", 9)]));
        assert!(!has_private_key(&first));
    }

    #[test]
    fn another_kind_of_keystore_is_left_alone() {
        let with_key = keystore(&[(CERTIFICATE, "a", 1), (KEY, "k", 1)]);
        assert!(has_private_key(&with_key));
        let mut damaged = keystore(&[(CERTIFICATE, "a", 1)]);
        damaged[20] ^= 1;
        let whole = keystore(&[(CERTIFICATE, "a", 1)]);
        for other in [&with_key, &damaged, &whole[..30], &b"PK"[..], b""] {
            assert_eq!(with_time(other, 9), None);
        }
    }
}
