//! Identifiers in EC2's form: a prefix and 17 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;
use machine::entropy;

/// Digits after the prefix.
const DIGITS: usize = 17;

/// UUIDv5 namespace of everything that is derived from an instance id.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b69_6c6e_0000_5000_8000_696e_7374_616e);

/// 17 hexadecimal digits from the system's random source.
fn random_digits() -> String {
    let value = u128::from_le_bytes(entropy::bytes()) >> (128 - 4 * DIGITS);
    format!("{value:0DIGITS$x}")
}

fn valid(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|d| d.len() == DIGITS && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new unused id.
            pub fn random() -> Self {
                Self(format!("{}{}", $prefix, random_digits()))
            }

            /// The id that stands for all where the guest must not see a difference. No instance has it.
            pub fn nobody() -> Self {
                Self(format!("{}{:0DIGITS$}", $prefix, 0))
            }

            /// The whole id with its prefix.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                if valid(&text, $prefix) { Ok(Self(text)) } else { Err(Error::Malformed(text, $what)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

id!(
    /// An instance: `i-` and 17 hexadecimal digits.
    InstanceId,
    "i-",
    "instance id"
);
id!(
    /// A volume: `vol-` and 17 hexadecimal digits.
    VolumeId,
    "vol-",
    "volume id"
);
id!(
    /// One launch of one or more instances: `r-` and 17 hexadecimal digits.
    ReservationId,
    "r-",
    "reservation id"
);

impl InstanceId {
    /// The SMBIOS product uuid and serial number. It starts with `ec2`, by which cloud-init recognises the
    /// platform, and follows from the id, so that it survives stop and start.
    pub fn platform_uuid(&self) -> Uuid {
        let derived = Uuid::new_v5(&NAMESPACE, self.0.as_bytes()).as_u128();
        Uuid::from_u128(0xec2 << 116 | (derived & (u128::MAX >> 12)))
    }

    /// The host name that the guest gets unless it is given another: the id, as EC2's resource-based names.
    pub fn hostname(&self) -> &str {
        &self.0
    }
}

/// Whether `name` may name an instance or an image tag: 1 to 63 letters, digits, `.`, `_` and `-`, not first
/// a `.` or `-`, and not in the form of an id.
pub fn valid_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
        && !valid(name, InstanceId::PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_ec2s_form_and_differ() {
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| InstanceId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for id in &ids {
            assert_eq!(id.as_str().parse::<InstanceId>().unwrap(), *id);
        }
        // No digit is constant: the fixed bits of a UUID do not show.
        for place in 2..2 + DIGITS {
            let seen: std::collections::BTreeSet<_> =
                ids.iter().map(|i| i.as_str().as_bytes()[place]).collect();
            assert!(seen.len() >= 12, "digit {place} takes only {} values", seen.len());
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "",
            "i-",
            "i-0123456789abcdef",
            "i-0123456789abcdef012",
            "i-0123456789ABCDEF0",
            "vol-0123456789abcdef0",
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
        assert!("../../etc/passwd".parse::<InstanceId>().is_err());
    }

    #[test]
    fn the_platform_uuid_is_recognised_as_ec2_and_stays() {
        let id = InstanceId::random();
        assert!(id.platform_uuid().to_string().starts_with("ec2"));
        assert_eq!(id.platform_uuid(), id.clone().platform_uuid());
        assert_ne!(id.platform_uuid(), InstanceId::random().platform_uuid());
    }

    #[test]
    fn names_cannot_be_mistaken_for_paths_options_or_ids() {
        for good in ["web", "web-1", "a.b_c", "9lives", &"x".repeat(63)] {
            assert!(valid_name(good), "{good}");
        }
        for bad in [
            "",
            "-x",
            ".x",
            "a/b",
            "a b",
            "a\nb",
            "i-0123456789abcdef0",
            &"x".repeat(64),
        ] {
            assert!(!valid_name(bad), "{bad}");
        }
    }
}
