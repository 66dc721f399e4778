//! Reading an ext4 file system, in an AMI or in a file of its own, as a [`Tree`]. File contents are
//! references into that file.
//!
//! Every command that inspects an image works on that tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use ami::{Ami, PartName};
use displaydoc::Display;
use mkext4::reader::{Fs, ReadAt};
use mkext4::spec::inode::{FileType, Inode};

use crate::advice::Advice;
use crate::compose::ext4::acl_from_disk;
use crate::tree::{Content, Kind, Meta, NodeId, Piece, Tree, TreeError};

mod checks;

/// Deepest directory nesting read: a path of 4095 bytes has no more.
const MAX_DEPTH: usize = 2048;
/// The root directory's inode.
const ROOT_INODE: u32 = 2;

/// Why a file system cannot be read.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Ami(#[from] ami::Error),
    /// cannot read the file system of {path}: {why}
    Ext4 {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        why: mkext4::Error,
    },
    /// the file system of {path} is not sound: {source}
    Tree {
        /// The file.
        path: PathBuf,
        /// What was refused.
        source: TreeError,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ami(error) => error.advice(),
            Self::Ext4 { .. } => Some("`imgtool verify`; `e2fsck -f` on an extracted root".into()),
            Self::Tree { .. } => Some("`e2fsck -f` on an extracted root".into()),
        }
    }
}

/// The root file system of an image.
pub fn of_ami(ami: &Ami) -> Result<Tree, Error> {
    let part = ami.part(PartName::Root)?;
    let file = ami
        .file()
        .try_clone()
        .map_err(|error| ami::Error::io("read", ami.path(), error))?;
    of_file(Arc::new(file), part.offset, part.length, ami.path())
}

/// The file system in a range of a file. `path` is for messages.
pub fn of_file(file: Arc<File>, offset: u64, length: u64, path: &std::path::Path) -> Result<Tree, Error> {
    let ext4 = |e: mkext4::Error| Error::Ext4 {
        path: path.into(),
        why: e,
    };
    let window = Window {
        file: Arc::clone(&file),
        offset,
        length,
    };
    checks::superblock(&window, length).map_err(ext4)?;
    let fs = Fs::open(window).map_err(ext4)?;
    checks::groups(&fs, length).map_err(ext4)?;
    let mut load = Load {
        fs: &fs,
        file,
        base: offset,
        length,
        tree: Tree::new(),
        seen: BTreeMap::new(),
        extents: 0,
    };
    load.run().map_err(|error| match error {
        LoadError::Ext4(e) => ext4(e),
        LoadError::Tree(source) => Error::Tree {
            path: path.into(),
            source,
        },
    })?;
    Ok(load.tree)
}

enum LoadError {
    Ext4(mkext4::Error),
    Tree(TreeError),
}

impl From<mkext4::Error> for LoadError {
    fn from(e: mkext4::Error) -> Self {
        Self::Ext4(e)
    }
}

impl From<TreeError> for LoadError {
    fn from(e: TreeError) -> Self {
        Self::Tree(e)
    }
}

/// A range of a file as a whole device.
struct Window {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl ReadAt for Window {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        std::os::unix::fs::FileExt::read_exact_at(&*self.file, buffer, self.offset + offset)
    }
}

struct Load<'a> {
    fs: &'a Fs<Window>,
    file: Arc<File>,
    base: u64,
    length: u64,
    tree: Tree,
    seen: BTreeMap<u32, NodeId>,
    /// Extents of all inodes so far.
    extents: u64,
}

impl Load<'_> {
    fn run(&mut self) -> Result<(), LoadError> {
        let root = self.inode(ROOT_INODE)?;
        let meta = self.meta(ROOT_INODE, &root)?;
        self.tree.insert(b"", Kind::Dir, meta)?;
        let mut stack = vec![(Vec::new(), ROOT_INODE, 0)];
        while let Some((path, directory, depth)) = stack.pop() {
            for entry in self.fs.read_dir(directory)? {
                let name = entry.name.as_slice();
                // An empty lost+found is the file system's, not the image's.
                if matches!(name, b"." | b"..") || (path.is_empty() && name == b"lost+found") {
                    continue;
                }
                let mut below: Vec<u8> = path.clone();
                below.push(b'/');
                below.extend_from_slice(name);
                if self.add(&below, entry.inode)? {
                    if depth >= MAX_DEPTH {
                        return Err(corrupt("directories are nested too deep").into());
                    }
                    stack.push((below, entry.inode, depth + 1));
                }
            }
        }
        Ok(())
    }

    /// Add a name. True for a directory, whose entries are still to be read.
    fn add(&mut self, path: &[u8], number: u32) -> Result<bool, LoadError> {
        if let Some(id) = self.seen.get(&number) {
            self.tree.link(path, *id)?;
            return Ok(false);
        }
        let inode = self.inode(number)?;
        let kind = self.kind(number, &inode)?;
        let directory = matches!(kind, Kind::Dir);
        let meta = self.meta(number, &inode)?;
        // A name is reached by its real directories only: links on the way were never followed.
        let id = self.tree.insert(path, kind, meta)?;
        // A directory with two names would be read without end; linking to it again is refused by the tree.
        self.seen.insert(number, id);
        Ok(directory)
    }

    /// An inode whose blocks can be listed in reasonable time and memory.
    fn inode(&mut self, number: u32) -> Result<Inode, LoadError> {
        let inode = self.fs.inode(number)?;
        self.extents += checks::inode(self.fs, number, &inode, self.length)?;
        // Each has a block of its own at least.
        if self.extents > self.length / checks::BLOCK {
            return Err(corrupt("files share their blocks").into());
        }
        Ok(inode)
    }

    fn kind(&self, number: u32, inode: &Inode) -> Result<Kind, LoadError> {
        Ok(match inode.file_type() {
            FileType::Dir => Kind::Dir,
            FileType::Regular => Kind::File(self.content(number, inode)?),
            FileType::Symlink => Kind::Symlink(self.fs.symlink_target(number)?),
            FileType::CharDev => {
                let (major, minor) = device(inode);
                Kind::Char(major, minor)
            }
            FileType::BlockDev => {
                let (major, minor) = device(inode);
                Kind::Block(major, minor)
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            other => return Err(corrupt(&format!("inode {number} is of kind {other:?}")).into()),
        })
    }

    fn content(&self, number: u32, inode: &Inode) -> Result<Content, LoadError> {
        let outside = || {
            LoadError::from(corrupt(&format!(
                "inode {number} has blocks outside of the file system"
            )))
        };
        let block = self.fs.superblock().block_size();
        let mut pieces = Vec::new();
        let mut at = 0;
        // In order and without overlap: `checks::inode` was here.
        for extent in self.fs.extents(number, inode)? {
            let start = u64::from(extent.logical) * block;
            let physical = extent.physical.checked_mul(block).ok_or_else(outside)?;
            let length = u64::from(extent.len) * block;
            if physical.checked_add(length).is_none_or(|end| end > self.length) {
                return Err(outside());
            }
            let length = length.min(inode.size.saturating_sub(start));
            if extent.unwritten || length == 0 {
                continue;
            }
            if start > at {
                pieces.push(Piece::Hole(start - at));
            }
            pieces.push(Piece::Data {
                offset: self.base + physical,
                length,
            });
            at = start + length;
        }
        if inode.size > at {
            pieces.push(Piece::Hole(inode.size - at));
        }
        Ok(Content::pieces(Arc::clone(&self.file), pieces))
    }

    fn meta(&self, number: u32, inode: &Inode) -> Result<Meta, LoadError> {
        // The two low bits of the extra field extend the 32-bit seconds (ext4 disk layout, "Inode
        // Timestamps").
        let mtime = i64::from(inode.mtime as i32) + (i64::from(inode.mtime_extra & 3) << 32);
        let mut meta = Meta::new(inode.mode & 0o7777, inode.uid, inode.gid, mtime);
        for attribute in self.fs.xattrs(number)? {
            let Some(name) = attribute.full_name() else {
                continue;
            };
            let value = match name.starts_with(b"system.posix_acl_") {
                true => acl_from_disk(&attribute.value).ok_or_else(|| corrupt("an ACL is malformed"))?,
                false => attribute.value,
            };
            meta.xattrs.insert(name, value);
        }
        Ok(meta)
    }
}

fn corrupt(why: &str) -> mkext4::Error {
    mkext4::Error::Invalid(why.to_owned())
}

/// The old 16-bit encoding in the first word, or the 32-bit one in the second (fs/ext4/inode.c).
fn device(inode: &Inode) -> (u32, u32) {
    let word = |at: usize| {
        u32::from_le_bytes([
            inode.block[at],
            inode.block[at + 1],
            inode.block[at + 2],
            inode.block[at + 3],
        ])
    };
    let old = word(0);
    if old != 0 {
        return (old >> 8 & 0xff, old & 0xff);
    }
    let new = word(4);
    (new >> 8 & 0xfff, (new & 0xff) | (new >> 12 & 0xfff00))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::ext4::{FileSystem, Settings, plan};
    use crate::progress::Quiet;

    fn meta(mode: u16) -> Meta {
        Meta::new(mode, 10, 70_000, 1_700_000_000)
    }

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.create_dirs(b"a/b", &meta(0o750)).unwrap();
        let mut sparse = vec![0; 2 << 20];
        sparse[1 << 20] = 5;
        let id = tree
            .insert(b"a/sparse", Kind::File(Content::bytes(sparse)), meta(0o600))
            .unwrap();
        tree.link(b"a/b/again", id).unwrap();
        tree.insert(b"empty", Kind::File(Content::bytes("")), meta(0o4755))
            .unwrap();
        tree.insert(b"text", Kind::File(Content::bytes("hello")), meta(0o644))
            .unwrap();
        tree.insert(b"link", Kind::Symlink(b"a/b".to_vec()), meta(0o777))
            .unwrap();
        tree.insert(b"tty", Kind::Char(4, 64), meta(0o620)).unwrap();
        tree.insert(b"disk", Kind::Block(259, 70_000), meta(0o660))
            .unwrap();
        let mut rich = meta(0o644);
        rich.xattrs.insert(b"user.k".to_vec(), b"v".to_vec());
        rich.xattrs.insert(b"security.capability".to_vec(), vec![1; 20]);
        tree.insert(b"rich", Kind::Fifo, rich).unwrap();
        tree
    }

    fn written(tree: &Tree) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        let plan = plan(
            tree,
            Settings {
                size: Some(32 << 20),
                epoch: 0,
            },
        )
        .unwrap();
        file.set_len(plan.length() + 8192).unwrap();
        plan.write(&file, 8192, &Quiet).unwrap();
        Arc::new(file)
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let tree = sample();
        let read = of_file(written(&tree), 8192, 32 << 20, "x".as_ref()).unwrap();
        let names = |tree: &Tree| tree.walk().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(names(&read), names(&tree));
        for (path, id) in tree.walk() {
            let (was, is) = (tree.node(id), read.node(read.find(&path).unwrap().unwrap()));
            assert_eq!((&is.meta, is.links), (&was.meta, was.links), "{path:?}");
            match (&was.kind, &is.kind) {
                (Kind::File(was), Kind::File(is)) => {
                    assert!(was.read(9 << 20).unwrap() == is.read(9 << 20).unwrap())
                }
                (was, is) => assert_eq!(format!("{was:?}"), format!("{is:?}")),
            }
        }
    }

    /// The sample with bytes put over what is `at` a place of its file system.
    fn damaged(at: u64, change: impl FnOnce([u8; 4]) -> [u8; 4]) -> Result<Tree, Error> {
        use std::os::unix::fs::FileExt;
        let file = written(&sample());
        let mut bytes = [0; 4];
        FileExt::read_exact_at(&*file, &mut bytes, 8192 + at).unwrap();
        file.write_all_at(&change(bytes), 8192 + at).unwrap();
        of_file(file, 8192, 32 << 20, "x".as_ref())
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        // The first blocks hold the superblock, the group descriptors and the inode table.
        for at in (1024..400_000u64).step_by(509) {
            let _ = damaged(at, |[first, rest @ ..]| [!first, rest[0], rest[1], rest[2]]);
        }
        assert!(of_file(written(&sample()), 0, 4096, "x".as_ref()).is_err());
    }

    #[test]
    fn numbers_beyond_the_file_system_are_refused_by_name() {
        let refused = |at, value: u32| damaged(at, |_| value.to_le_bytes()).unwrap_err().to_string();
        assert!(refused(0x418, 64).contains("2^(10 + 64) bytes"));
        assert!(refused(0x404, 8193).contains("not within its 33554432 bytes"));
        assert!(refused(0x550, 1).contains("not within"));
        assert!(refused(0x414, 8192).contains("not within"));
    }
}
