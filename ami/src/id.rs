//! Identities: the digest of bytes and the id of an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| format!("`{text}` is not a BLAKE3 digest"))?;
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("`{text}` is not in lower case"));
        }
        Ok(Digest(*hash.as_bytes()))
    }
}

/// The identity of an image: `ami-` and the first 17 hexadecimal digits of its manifest's BLAKE3.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AmiId(String);

impl AmiId {
    /// How many hexadecimal digits follow `ami-`; EC2's ids have as many.
    pub const DIGITS: usize = 17;

    /// The id of the image with a manifest of this digest.
    pub fn of(manifest: &Digest) -> Self {
        AmiId(format!("ami-{}", &manifest.to_string()[..Self::DIGITS]))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AmiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AmiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AmiId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("ami-").unwrap_or_default();
        let hex = digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits.len() == Self::DIGITS && hex {
            Ok(AmiId(text.to_owned()))
        } else {
            Err(format!("`{text}` is not an AMI id such as ami-0123456789abcdef0"))
        }
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Digest);
serde_as_text!(AmiId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_ec2s_form_and_other_forms_are_refused() {
        let id = AmiId::of(&Digest::of(b"x"));
        assert_eq!(id.as_str().len(), 21);
        assert_eq!(id.as_str().parse::<AmiId>().unwrap(), id);
        for bad in [
            "",
            "ami-",
            "i-0123456789abcdef0",
            "ami-0123456789ABCDEF0",
            "ami-0123456789abcdef01",
        ] {
            assert!(bad.parse::<AmiId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_round_trip() {
        let digest = Digest::of(b"kiln");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
    }
}
