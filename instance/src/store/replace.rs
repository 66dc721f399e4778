//! Atomic replacement of a small file: a reader sees the whole old or the whole new content.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Whether a change has to outlive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// The call returns when it does.
    Yes,
    /// The kernel writes it when it pleases: what is said will soon be said again.
    No,
}

/// Puts a file with `content` at `path`, by way of a draft next to it. The caller sees to it that nobody else
/// does so at once.
///
/// # Errors
/// As the file system says; the old file is there then, and perhaps the draft, which the next call writes
/// over.
pub fn replace(path: &Path, content: &[u8], durable: Durable) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let mut file = File::create(&draft)?;
    file.write_all(content)?;
    if durable == Durable::Yes {
        file.sync_all()?;
    }
    fs::rename(&draft, path)?;
    match (durable, path.parent()) {
        (Durable::Yes, Some(directory)) => File::open(directory)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names.json");
        // What a killed command has left is longer than what comes.
        fs::write(directory.path().join("names.json.new"), "half of something long").unwrap();
        for (content, durable) in [("first", Durable::Yes), ("second", Durable::No)] {
            replace(&path, content.as_bytes(), durable).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names.json");
        fs::write(&path, "old").unwrap();
        fs::create_dir(directory.path().join("names.json.new")).unwrap();
        replace(&path, b"new", Durable::Yes).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
