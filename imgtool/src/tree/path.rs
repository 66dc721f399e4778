//! Paths inside an image: bytes, relative to its root, that cannot leave it.

use super::TreeError;

/// Longest name of a directory entry, in bytes: ext4's and Linux's limit.
pub const MAX_NAME: usize = 255;
/// Longest path, in bytes: Linux's `PATH_MAX` without its NUL.
pub const MAX_PATH: usize = 4095;

/// A path split into its components; no `..`, no `.`, nothing empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePath {
    bytes: Vec<u8>,
}

impl TreePath {
    /// Parse `a/b`, `/a/b` or `./a/b/`. The root is the empty path, `/` or `.`.
    ///
    /// # Errors
    /// `..` as a component, a NUL byte, a name above [`MAX_NAME`] or a path above [`MAX_PATH`].
    pub fn parse(path: &[u8]) -> Result<Self, TreeError> {
        let bad = |why| TreeError::BadPath {
            path: show(path),
            why,
        };
        if path.len() > MAX_PATH {
            return Err(bad("the path is longer than 4095 bytes"));
        }
        let mut bytes = Vec::with_capacity(path.len());
        for name in path.split(|b| *b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(TreeError::Traversal(show(path))),
                _ => {}
            }
            if name.len() > MAX_NAME {
                return Err(bad("a name in the path is longer than 255 bytes"));
            }
            if name.contains(&0) {
                return Err(bad("a name in the path contains a NUL byte"));
            }
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name);
        }
        Ok(Self { bytes })
    }

    /// The path in its plain form: `a/b`, without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The names from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }

    /// The parent and the last name; nothing for the root.
    pub fn split_last(&self) -> Option<(TreePath, &[u8])> {
        if self.bytes.is_empty() {
            return None;
        }
        match self.bytes.iter().rposition(|b| *b == b'/') {
            Some(at) => Some((
                TreePath {
                    bytes: self.bytes[..at].to_vec(),
                },
                &self.bytes[at + 1..],
            )),
            None => Some((TreePath { bytes: Vec::new() }, &self.bytes)),
        }
    }
}

/// A path for a person to read: control characters and invalid UTF-8 escaped, over-long paths cut, `/` in
/// front.
pub fn show(path: &[u8]) -> String {
    let cut = &path[..path.len().min(MAX_PATH)];
    let cut = cut
        .strip_prefix(b"./")
        .or_else(|| cut.strip_prefix(b"/"))
        .unwrap_or(cut);
    let mut out = String::with_capacity(cut.len() + 1);
    out.push('/');
    for chunk in cut.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                out.extend(c.escape_default())
            } else {
                out.push(c)
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}
