//! Files and folders as tar archives, packed on one side of a copy and unpacked on the other.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Packs `path` under its last name; a folder with all that is in it. Symbolic links stay links.
pub fn pack(path: &Path, to: impl Write) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    let name = path.file_name().map_or_else(|| Path::new("."), Path::new);
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    if metadata.is_dir() {
        archive.append_dir_all(name, path)?;
    } else {
        archive.append_path_with_name(path, name)?;
    }
    archive.into_inner()?.flush()
}

/// Unpacks into the folder `to`. Where there is no such folder, the one file or folder that comes is named `to` instead, as
/// cp(1) does; it appears there whole or not at all. Permission bits in `mask` are left out.
///
/// The archive cannot leave the folder: the tar crate refuses paths and links that do.
///
/// # Errors
/// When neither `to` nor its parent is a folder, or the archive is malformed or cannot be written.
pub fn unpack(from: impl Read, to: &Path, mask: u32) -> io::Result<()> {
    if to.is_dir() {
        return extract(from, to, mask);
    }
    let parent = match to.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    if !parent.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is not a folder", parent.display()),
        ));
    }
    let aside = Aside::new(parent)?;
    extract(from, &aside.0, mask)?;
    let mut entries = fs::read_dir(&aside.0)?;
    match (entries.next().transpose()?, entries.next()) {
        (Some(only), None) => fs::rename(only.path(), to),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the archive holds more or less than one file",
        )),
    }
}

fn extract(from: impl Read, folder: &Path, mask: u32) -> io::Result<()> {
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(false);
    archive.set_mask(mask);
    archive.unpack(folder)
}

/// A folder that is gone when this is dropped.
struct Aside(PathBuf);

impl Aside {
    fn new(parent: &Path) -> io::Result<Aside> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".kiln-copy-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Aside(path))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn packed(path: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(path, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_folder_receives_and_another_name_renames() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("from/deep")).unwrap();
        fs::write(at("from/deep/file"), "text").unwrap();
        std::os::unix::fs::symlink("deep/file", at("from/link")).unwrap();
        fs::create_dir(at("to")).unwrap();
        let archive = packed(&at("from"));
        unpack(archive.as_slice(), &at("to"), 0).unwrap();
        assert_eq!(fs::read_to_string(at("to/from/link")).unwrap(), "text");
        unpack(archive.as_slice(), &at("to/named"), 0).unwrap();
        assert_eq!(fs::read_to_string(at("to/named/deep/file")).unwrap(), "text");

        let file = packed(&at("from/deep/file"));
        fs::write(at("to/old"), "before").unwrap();
        unpack(file.as_slice(), &at("to/old"), 0).unwrap();
        assert_eq!(fs::read_to_string(at("to/old")).unwrap(), "text");
        assert!(unpack(file.as_slice(), &at("nowhere/file"), 0).is_err());
        assert!(
            unpack([0; 10].as_slice(), &at("to/half"), 0).is_err(),
            "a damaged archive"
        );
        assert_eq!(fs::read_dir(at("to")).unwrap().count(), 3, "nothing is left over");
    }

    #[test]
    fn an_archive_cannot_leave_its_folder_nor_bring_masked_bits() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o4755);
        header.set_entry_type(tar::EntryType::Regular);
        // set_path would refuse it.
        header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
        header.set_cksum();
        archive.append(&header, b"x".as_slice()).unwrap();
        header.set_path("tool").unwrap();
        header.set_cksum();
        archive.append(&header, b"x".as_slice()).unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        unpack(archive.into_inner().unwrap().as_slice(), &folder, 0o7000).unwrap();
        assert!(!dir.path().join("escape").exists());
        let mode = fs::metadata(folder.join("tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}
