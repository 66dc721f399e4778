//! Files for targets whose subject reads from files.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder in memory where the host has one, gone when this is dropped.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("the host has room for temporary files")
}

/// A file with this content, called `name`, in a folder of its own.
pub fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join(name);
    write(&path, content);
    (folder, path)
}

/// Writes a file.
pub fn write(path: &Path, content: &[u8]) {
    let written = File::create(path).and_then(|mut file| file.write_all(content));
    written.expect("the host has room for temporary files");
}
