//! The pair of keys that requests are signed with, in the form of AWS's credentials file, so that clients can
//! read the same file.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machine::entropy;

/// Bytes at most of a credentials file.
const MAX_FILE: u64 = 64 << 10;

/// A key pair. The secret is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AKIA` and 16 characters.
    pub access_key: String,
    /// 40 characters.
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.access_key)
    }
}

impl Credentials {
    /// A new pair that nobody has.
    pub fn random() -> Credentials {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let bytes: [u8; 16] = entropy::bytes();
        let id: String = bytes
            .iter()
            .map(|b| char::from(LETTERS[usize::from(b % 32)]))
            .collect();
        let (first, second): ([u8; 16], [u8; 16]) = (entropy::bytes(), entropy::bytes());
        let mut secret = [0; 30];
        secret[..16].copy_from_slice(&first);
        secret[16..].copy_from_slice(&second[..14]);
        Credentials {
            access_key: format!("AKIA{id}"),
            secret_key: STANDARD.encode(secret),
        }
    }

    /// The pair in the file's section `default`.
    ///
    /// # Errors
    /// When the file cannot be read or has none.
    pub fn read(path: &Path) -> io::Result<Credentials> {
        if fs::metadata(path)?.len() > MAX_FILE {
            return Err(io::Error::other("it is too large for a credentials file"));
        }
        Credentials::parse(&fs::read_to_string(path)?).ok_or_else(|| {
            io::Error::other("it has no section [default] with aws_access_key_id and aws_secret_access_key")
        })
    }

    /// The pair in the file at `path`, which is made with a new one if it does not exist; whether it was.
    ///
    /// # Errors
    /// When the file can be neither read nor made.
    pub fn read_or_make(path: &Path) -> io::Result<(Credentials, bool)> {
        match Credentials::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return Ok((read?, false)),
        }
        let made = Credentials::random();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Whole before it has its name, so that two that begin at once agree on one of them.
        let draft = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        let written = file
            .write_all(made.to_file().as_bytes())
            .and_then(|()| file.sync_all());
        let linked = written.and_then(|()| fs::hard_link(&draft, path));
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => Ok((made, true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok((Credentials::read(path)?, false))
            }
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Credentials> {
        let (mut access_key, mut secret_key, mut in_default) = (None, None, false);
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                in_default = line == "[default]";
            } else if let Some((name, value)) = line.split_once('=').filter(|_| in_default) {
                match name.trim() {
                    "aws_access_key_id" => access_key = Some(value.trim().to_owned()),
                    "aws_secret_access_key" => secret_key = Some(value.trim().to_owned()),
                    _ => {}
                }
            }
        }
        let full = |text: Option<String>| text.filter(|text| !text.is_empty());
        Some(Credentials {
            access_key: full(access_key)?,
            secret_key: full(secret_key)?,
        })
    }

    fn to_file(&self) -> String {
        format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.access_key, self.secret_key
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pair_is_made_once_and_is_the_users_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ec2/credentials");
        let (made, is_new) = Credentials::read_or_make(&path).unwrap();
        assert!(is_new && made.access_key.len() == 20 && made.secret_key.len() == 40);
        assert_eq!(Credentials::read_or_make(&path).unwrap(), (made.clone(), false));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(&made.secret_key));
        assert_eq!(fs::read_dir(dir.path().join("ec2")).unwrap().count(), 1);
    }

    #[test]
    fn the_default_section_is_read_and_no_other() {
        let text = "# mine\n[other]\naws_access_key_id=x\naws_secret_access_key=y\n[default]\n aws_access_key_id = A \naws_secret_access_key=b=c\n";
        let read = Credentials::parse(text).unwrap();
        assert_eq!((read.access_key.as_str(), read.secret_key.as_str()), ("A", "b=c"));
        for text in [
            "",
            "[default]\naws_access_key_id = A",
            "aws_access_key_id=x\naws_secret_access_key=y",
            "[default]\naws_access_key_id=\naws_secret_access_key=x",
        ] {
            assert!(Credentials::parse(text).is_none(), "{text}");
        }
    }
}
