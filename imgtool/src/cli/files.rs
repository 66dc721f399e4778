//! `ls`, `cat` and `extract`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ami::Ami;

use super::Error;
use crate::imagefs;
use crate::time::timestamp;
use crate::tree::{Content, Kind, Node, NodeId, Tree, TreeError, show};

pub(super) fn ls(
    image: &Path,
    path: &str,
    long: bool,
    recursive: bool,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let tree = imagefs::of_ami(&Ami::open(image)?)?;
    let start = find(&tree, path)?;
    if !tree.node(start).is_dir() {
        return line(&tree, start, path.as_bytes(), long, out);
    }
    let mut stack = vec![(Vec::new(), start)];
    while let Some((prefix, id)) = stack.pop() {
        if id != start {
            line(&tree, id, &prefix, long, out)?;
        }
        if id == start || (recursive && tree.node(id).is_dir()) {
            let children: Vec<_> = tree.children(id).collect();
            for (name, child) in children.into_iter().rev() {
                let separator: &[u8] = if prefix.is_empty() { b"" } else { b"/" };
                stack.push(([&prefix, separator, name].concat(), child));
            }
        }
    }
    Ok(())
}

fn find(tree: &Tree, path: &str) -> Result<NodeId, Error> {
    // As ls does: a link at the end is itself, unless it is asked to be a directory.
    let found = match path.ends_with('/') {
        true => tree.find_followed(path.as_bytes())?,
        false => tree.find(path.as_bytes())?,
    };
    Ok(found.ok_or_else(|| TreeError::NotFound(show(path.as_bytes())))?)
}

fn line(tree: &Tree, id: NodeId, name: &[u8], long: bool, out: &mut dyn Write) -> Result<(), Error> {
    let name = show(name).split_off(1);
    if !long {
        return Ok(writeln!(out, "{name}")?);
    }
    let node = tree.node(id);
    let meta = &node.meta;
    let target = match &node.kind {
        Kind::Symlink(target) => format!(" -> {}", String::from_utf8_lossy(target)),
        _ => String::new(),
    };
    let size = match node.kind {
        Kind::Char(major, minor) | Kind::Block(major, minor) => format!("{major}, {minor}"),
        _ => node.size().to_string(),
    };
    let more = if meta.xattrs.is_empty() { ' ' } else { '+' };
    writeln!(
        out,
        "{}{}{more} {:>3} {:>5} {:>5} {size:>10} {} {name}{target}",
        node.kind.letter(),
        permissions(meta.mode),
        node.links,
        meta.uid,
        meta.gid,
        timestamp(meta.mtime)
    )?;
    Ok(())
}

/// `rwxr-sr-t`, as `ls -l` writes it.
fn permissions(mode: u16) -> String {
    let mut out = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 7;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

pub(super) fn cat(image: &Path, paths: &[String], out: &mut dyn Write) -> Result<(), Error> {
    let tree = imagefs::of_ami(&Ami::open(image)?)?;
    for path in paths {
        let found = tree.find_followed(path.as_bytes())?;
        let id = found.ok_or_else(|| TreeError::NotFound(show(path.as_bytes())))?;
        let Kind::File(content) = &tree.node(id).kind else {
            return Err(Error::NotAFile {
                path: show(path.as_bytes()),
                what: what(tree.node(id)),
            });
        };
        let read = |source| Error::Read {
            what: show(path.as_bytes()),
            source,
        };
        let mut reader = content.open().map_err(read)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer).map_err(read)? {
                0 => break,
                got => out.write_all(&buffer[..got])?,
            }
        }
    }
    Ok(())
}

fn what(node: &Node) -> &'static str {
    match node.kind {
        Kind::File(_) => "a file",
        Kind::Dir => "a directory",
        Kind::Symlink(_) => "a symbolic link",
        Kind::Char(..) | Kind::Block(..) => "a device",
        Kind::Fifo => "a pipe",
        Kind::Socket => "a socket",
    }
}

/// Copy files out with their modes and times. Owners and attributes are set when we may; devices are left
/// out.
pub(super) fn extract(image: &Path, paths: &[String], to: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let tree = imagefs::of_ami(&Ami::open(image)?)?;
    let mut copy = Copy {
        tree: &tree,
        seen: BTreeMap::new(),
        count: 0,
        left_out: 0,
    };
    fs::create_dir_all(to).map_err(|source| Error::Write {
        path: to.into(),
        source,
    })?;
    let all = [String::from("/")];
    for path in if paths.is_empty() { &all } else { paths } {
        let id = find(&tree, path)?;
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        // Names of entries have been checked by the tree; what a person typed has not.
        let target = if matches!(name, "" | "." | "..") {
            to.to_path_buf()
        } else {
            to.join(name)
        };
        copy.all(id, &target)?;
    }
    let Copy { count, left_out, .. } = copy;
    let more = if left_out > 0 {
        format!(", {left_out} devices and sockets left out")
    } else {
        String::new()
    };
    writeln!(out, "{count} files{more}: {}", to.display())?;
    Ok(())
}

struct Copy<'a> {
    tree: &'a Tree,
    /// Where the first name of each inode is, to link the others to it.
    seen: BTreeMap<NodeId, PathBuf>,
    count: u64,
    left_out: u64,
}

impl Copy<'_> {
    fn all(&mut self, id: NodeId, to: &Path) -> Result<(), Error> {
        let mut stack = vec![(id, to.to_path_buf())];
        let mut directories = Vec::new();
        while let Some((id, path)) = stack.pop() {
            let fail = |source| Error::Write {
                path: path.clone(),
                source,
            };
            let node = self.tree.node(id);
            if node.is_dir() {
                match fs::create_dir(&path) {
                    // Never through a link: what it points at is not ours.
                    Err(_) if path.symlink_metadata().is_ok_and(|m| m.is_dir()) => {}
                    made => made.map_err(fail)?,
                }
                stack.extend(
                    self.tree
                        .children(id)
                        .map(|(name, child)| (child, path.join(std::ffi::OsStr::from_bytes(name)))),
                );
                directories.push((id, path));
                continue;
            }
            if let Some(first) = self.seen.get(&id) {
                fs::hard_link(first, &path).map_err(fail)?;
            } else if self.one(node, &path).map_err(fail)? {
                if node.links > 1 {
                    self.seen.insert(id, path);
                }
            } else {
                self.left_out += 1;
                continue;
            }
            self.count += 1;
        }
        // Last, from the deepest: a directory without write permission must be filled before.
        for (id, path) in directories.into_iter().rev() {
            let file = File::open(&path).map_err(|source| Error::Write {
                path: path.clone(),
                source,
            })?;
            finish(self.tree.node(id), &file, &path).map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    }

    fn one(&self, node: &Node, path: &Path) -> io::Result<bool> {
        match &node.kind {
            Kind::File(content) => {
                let file = File::options().write(true).create_new(true).open(path)?;
                write_sparse(content, &file)?;
                finish(node, &file, path)?;
            }
            Kind::Symlink(target) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path)?;
                // Not ours to set unless we are root.
                let _ = std::os::unix::fs::lchown(path, Some(node.meta.uid), Some(node.meta.gid));
            }
            Kind::Fifo => {
                let mode = nix::sys::stat::Mode::from_bits_truncate(u32::from(node.meta.mode & 0o777));
                nix::unistd::mkfifo(path, mode)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn write_sparse(content: &Content, file: &File) -> io::Result<()> {
    file.set_len(content.len())?;
    let mut reader = content.open()?;
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let got = reader.read(&mut buffer)?;
        if got == 0 {
            return Ok(());
        }
        if buffer[..got].iter().any(|byte| *byte != 0) {
            file.write_all_at(&buffer[..got], at)?;
        }
        at += got as u64;
    }
}

/// A file system that has no such attributes is no reason to leave the file out.
fn set_attribute(file: &File, name: &[u8], value: &[u8]) -> io::Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::fsetxattr(file, std::ffi::OsStr::from_bytes(name), value, flags) {
        Err(e) if e != rustix::io::Errno::NOTSUP && e != rustix::io::Errno::PERM => Err(e.into()),
        _ => Ok(()),
    }
}

fn finish(node: &Node, file: &File, path: &Path) -> io::Result<()> {
    // Only root may give files away; for others the modes still hold, without the bits that would lend their
    // identity.
    let owned = std::os::unix::fs::chown(path, Some(node.meta.uid), Some(node.meta.gid)).is_ok();
    let mode = if owned {
        node.meta.mode
    } else {
        node.meta.mode & 0o1777
    };
    file.set_permissions(fs::Permissions::from_mode(u32::from(mode)))?;
    for (name, value) in &node.meta.xattrs {
        // As with the modes: ACLs and capabilities mean the image's users, not those of whoever reads it.
        if owned || name.starts_with(b"user.") {
            set_attribute(file, name, value)?;
        }
    }
    let seconds = Duration::from_secs(node.meta.mtime.unsigned_abs());
    let time = if node.meta.mtime < 0 {
        SystemTime::UNIX_EPOCH - seconds
    } else {
        SystemTime::UNIX_EPOCH + seconds
    };
    file.set_modified(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_attributes_are_extracted_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut meta = crate::tree::Meta::new(0o640, 0, 0, 1_700_000_000);
        meta.xattrs.insert(b"user.note".to_vec(), b"hello".to_vec());
        let mut tree = Tree::new();
        tree.insert(b"noted", Kind::File(Content::bytes("x")), meta)
            .unwrap();
        let mut copy = Copy {
            tree: &tree,
            seen: BTreeMap::new(),
            count: 0,
            left_out: 0,
        };
        copy.all(Tree::ROOT, &dir.path().join("out")).unwrap();
        let path = dir.path().join("out/noted");
        let mut value = [0; 16];
        match rustix::fs::getxattr(&path, "user.note", &mut value) {
            Ok(length) => assert_eq!(&value[..length], b"hello"),
            Err(e) => assert_eq!(e, rustix::io::Errno::NOTSUP),
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn permissions_are_written_as_by_ls() {
        assert_eq!(permissions(0o4755), "rwsr-xr-x");
        assert_eq!(permissions(0o2644), "rw-r-Sr--");
        assert_eq!(permissions(0o1777), "rwxrwxrwt");
        assert_eq!(permissions(0), "---------");
    }
}
