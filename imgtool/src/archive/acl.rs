//! Access control lists as tar archives write them, in the form that `getxattr` gives (version 2,
//! linux/posix_acl_xattr.h).

use super::Damage;

/// The attribute of a file's list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of the list that files of a directory begin with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
/// The number of an entry that is of nobody in particular.
const NO_ID: u32 = u32::MAX;

/// Reads entries such as `user:1000:rw-`, parted by commas or lines, as setfacl takes them. star adds a
/// number behind the name of a user.
pub fn parse(text: &[u8]) -> Result<Vec<u8>, Damage> {
    let wrong = || Damage::Acl(String::from_utf8_lossy(text).into_owned());
    let plain = str::from_utf8(text).map_err(|_| wrong())?;
    let mut entries = Vec::new();
    for entry in plain.split([',', '\n']) {
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if !entry.is_empty() {
            entries.push(parse_entry(entry).ok_or_else(wrong)?);
        }
    }
    // In the order that the kernel demands.
    entries.sort_unstable();
    let mut out = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Ok(out)
}

/// Tag, number and permissions.
fn parse_entry(entry: &str) -> Option<(u16, u32, u16)> {
    let fields: Vec<&str> = entry.split(':').collect();
    let (kind, name, permissions) = match fields[..] {
        // `mask` and `other` need no name.
        [kind @ ("mask" | "m" | "other" | "o"), permissions] => (kind, "", permissions),
        [kind, name, permissions] => (kind, name, permissions),
        [kind, _, permissions, id] => (kind, id, permissions),
        _ => return None,
    };
    let id = match name {
        "" => NO_ID,
        "root" => 0,
        number => number.parse().ok()?,
    };
    let tag = match (kind, id) {
        ("user" | "u", NO_ID) => 0x01,
        ("user" | "u", _) => 0x02,
        ("group" | "g", NO_ID) => 0x04,
        ("group" | "g", _) => 0x08,
        ("mask" | "m", NO_ID) => 0x10,
        ("other" | "o", NO_ID) => 0x20,
        _ => return None,
    };
    let permissions = permissions.bytes().try_fold(0, |all, letter| {
        Some(
            all | match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return None,
            },
        )
    })?;
    Some((tag, id, permissions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_tar_and_star_write_them() {
        let tar =
            parse(b"other::r--\nuser::rw-\nuser:1000:rw-\t#effective:r--\ngroup::r--\nmask::rw-\n").unwrap();
        let star = parse(b"user::rw-,user:joe:rw-:1000,group::r--,mask:rw-,other:r--").unwrap();
        assert_eq!(tar, star);
        let expected = [
            (0x01, 6, NO_ID),
            (0x02, 6, 1000),
            (0x04, 4, NO_ID),
            (0x10, 6, NO_ID),
            (0x20, 4, NO_ID),
        ];
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in expected {
            bytes.extend([tag, 0, permissions, 0]);
            bytes.extend(id.to_le_bytes());
        }
        assert_eq!(tar, bytes);
    }

    #[test]
    fn invalid_entries_are_refused() {
        for text in [
            "user:joe:rw-",
            "user::rwz",
            "mask:7:r",
            "what::r--",
            "user",
            "user:4294967296:r",
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("--numeric-owner"), "{text}: {error}");
        }
    }
}
