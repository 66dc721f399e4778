//! A tree on disk and back: for the time in which the target's own programs work on it.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use displaydoc::Display;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::tree::{Content, Kind, MAX_XATTRS, Meta, Node, NodeId, Tree, TreeError};

/// Attributes that belong to a file and not to the host that it lay on.
const KEPT_XATTRS: [&str; 3] = ["security.capability", "system.posix_acl_", "user."];

/// Contents are copied in pieces of this size: the 8 KiB of `io::copy` alone are thirty calls where this is
/// one.
const BUFFER: u64 = 1 << 18;

/// Why a tree could not be written or read.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {path}: {source}
    Io {
        /// The file on disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// {0}
    Tree(#[from] TreeError),
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// Writes a tree below the directory `root`, with owners, permissions, times and attributes. Needs to be
/// root, or root of a user namespace.
pub fn write(tree: &Tree, root: &Path) -> Result<(), Error> {
    let mut first: HashMap<NodeId, PathBuf> = HashMap::new();
    let mut dirs = Vec::new();
    for (name, id) in tree.walk() {
        // Every directory of a tree is a real one: no link can lead out of `root`.
        let path = root.join(OsStr::from_bytes(&name));
        let node = tree.node(id);
        if let Some(existing) = first.get(&id) {
            fs::hard_link(existing, &path).map_err(at(&path))?;
            continue;
        }
        create(node, &path, name.is_empty())?;
        set_meta(node, &path)?;
        if node.is_dir() {
            dirs.push((path, node.meta.mtime));
        } else if node.links > 1 {
            first.insert(id, path);
        }
    }
    // Filling a directory changes its time.
    for (path, mtime) in dirs.iter().rev() {
        set_time(path, *mtime)?;
    }
    Ok(())
}

fn create(node: &Node, path: &Path, is_root: bool) -> Result<(), Error> {
    let io = at(path);
    let special = |kind: SFlag, device: u64| {
        mknod(path, kind, Mode::from_bits_truncate(0o600), device).map_err(|e| io(e.into()))
    };
    match &node.kind {
        Kind::Dir if is_root => Ok(()),
        Kind::Dir => fs::create_dir(path).map_err(io),
        Kind::File(content) => {
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(path);
            let room = content.len().min(BUFFER) as usize;
            let mut out = io::BufWriter::with_capacity(room, file.map_err(&io)?);
            io::copy(&mut content.open().map_err(&io)?, &mut out).map_err(&io)?;
            out.flush().map_err(io)
        }
        Kind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path).map_err(io),
        Kind::Char(a, b) => special(SFlag::S_IFCHR, makedev(u64::from(*a), u64::from(*b))),
        Kind::Block(a, b) => special(SFlag::S_IFBLK, makedev(u64::from(*a), u64::from(*b))),
        Kind::Fifo => special(SFlag::S_IFIFO, 0),
        Kind::Socket => special(SFlag::S_IFSOCK, 0),
    }
}

/// Owner first: changing it drops the set-user-ID bit and capabilities.
fn set_meta(node: &Node, path: &Path) -> Result<(), Error> {
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = &node.meta;
    std::os::unix::fs::lchown(path, Some(*uid), Some(*gid)).map_err(at(path))?;
    if !matches!(node.kind, Kind::Symlink(_)) {
        fs::set_permissions(path, fs::Permissions::from_mode(u32::from(*mode))).map_err(at(path))?;
    }
    for (name, value) in xattrs {
        let name = CString::new(&name[..]).map_err(|e| at(path)(e.into()))?;
        rustix::fs::lsetxattr(path, &name, value, rustix::fs::XattrFlags::empty())
            .map_err(|e| at(path)(e.into()))?;
    }
    set_time(path, *mtime)
}

fn set_time(path: &Path, mtime: i64) -> Result<(), Error> {
    let time = TimeSpec::new(mtime, 0);
    let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).map_err(|e| at(path)(e.into()))
}

/// Reads the directory `root` as a tree. File contents stay on disk.
pub fn read(root: &Path) -> Result<Tree, Error> {
    let mut tree = Tree::new();
    let mut inodes: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut queue = vec![Vec::new()];
    // Names of any number of attributes: Linux's XATTR_LIST_MAX.
    let mut names = vec![0; 65_536];
    while let Some(name) = queue.pop() {
        let path = root.join(OsStr::from_bytes(&name));
        let metadata = fs::symlink_metadata(&path).map_err(at(&path))?;
        let inode = (metadata.dev(), metadata.ino());
        if let Some(id) = inodes.get(&inode) {
            tree.link(&name, *id)?;
            continue;
        }
        let kind = kind_of(&path, &metadata)?;
        let is_dir = matches!(kind, Kind::Dir);
        let mut meta = Meta::new(
            (metadata.mode() & 0o7777) as u16,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
        );
        meta.xattrs = xattrs(&path, &mut names).map_err(at(&path))?;
        let id = tree.insert(&name, kind, meta)?;
        if !is_dir && metadata.nlink() > 1 {
            inodes.insert(inode, id);
        }
        if is_dir {
            for entry in fs::read_dir(&path).map_err(at(&path))? {
                let child = entry.map_err(at(&path))?.file_name().into_vec();
                let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
                queue.push([&name, slash, &child].concat());
            }
        }
    }
    Ok(tree)
}

fn kind_of(path: &Path, metadata: &fs::Metadata) -> Result<Kind, Error> {
    let kind = metadata.file_type();
    let device = (major(metadata.rdev()) as u32, minor(metadata.rdev()) as u32);
    Ok(if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path).map_err(at(path))?.into_os_string().into_vec())
    } else if kind.is_char_device() {
        Kind::Char(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::Block(device.0, device.1)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File(Content::path(path, metadata.len()))
    })
}

fn xattrs(path: &Path, names: &mut [u8]) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = std::collections::BTreeMap::new();
    let n = match rustix::fs::llistxattr(path, &mut *names) {
        Ok(n) => n,
        Err(rustix::io::Errno::NOTSUP) => return Ok(found),
        Err(e) => return Err(e.into()),
    };
    for name in names[..n]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if !KEPT_XATTRS.iter().any(|kept| name.starts_with(kept.as_bytes())) {
            continue;
        }
        let mut value = vec![0; MAX_XATTRS];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(n);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
