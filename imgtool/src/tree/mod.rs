//! A root file system in memory: what packages, files and images are merged into before any byte of ext4 is
//! written.
//!
//! A [`Tree`] is a table of inodes and directories of names, as in a Unix file system; hard links are several
//! names for one inode. Owners, modes, device nodes and extended attributes are data here, so that no
//! privilege is needed to hold them. File contents stay where they are (a range of a file, mostly) until they
//! are written out.
//!
//! Paths are bytes relative to the root, with or without a leading `/` or `./`. A path never leaves the tree:
//! `..` is refused, and symbolic links met on the way to a parent directory are resolved *inside* the tree.

mod content;
mod holes;
mod path;
mod resolve;
mod walk;

pub use content::{Content, Piece, Spool};
pub use holes::{DataReader, Run, runs};
pub use path::{MAX_NAME, MAX_PATH, TreePath, show};
pub use walk::Walk;

use crate::advice::Advice;
use std::borrow::Cow;
use std::collections::BTreeMap;

use displaydoc::Display;
use resolve::MAX_FOLLOWED;

/// Most inodes that one tree may hold: far above any real system, and at about 200 bytes an inode still below
/// 1 GiB.
const MAX_NODES: usize = 4 << 20;
/// Most bytes in the target of a symbolic link: Linux's `PATH_MAX` without its NUL.
pub const MAX_SYMLINK: usize = 4095;
/// Most bytes of extended attributes (names and values) of one inode: what ext4 can hold in one block.
pub const MAX_XATTRS: usize = 4096 - 64;

/// An inode of one tree. Stays valid until its last name is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// Owner, permissions, time and extended attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, `0o7777` at most; the file type is in [`Kind`].
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970. Builds keep no finer time, so that trees from archives (which
    /// have none) and from directories compare equal.
    pub mtime: i64,
    /// Extended attributes by full name (`security.capability`, `user.…`). ACLs stand in the form that
    /// `getxattr` gives (POSIX ACL version 2).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Metadata without extended attributes.
    pub fn new(mode: u16, uid: u32, gid: u32, mtime: i64) -> Self {
        Self {
            mode,
            uid,
            gid,
            mtime,
            xattrs: BTreeMap::new(),
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory; its entries are the tree's business.
    Dir,
    /// A symbolic link to this target, kept as written.
    Symlink(Vec<u8>),
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl Kind {
    /// The letter `ls -l` shows for the kind.
    pub fn letter(&self) -> char {
        match self {
            Kind::File(_) => '-',
            Kind::Dir => 'd',
            Kind::Symlink(_) => 'l',
            Kind::Char(..) => 'c',
            Kind::Block(..) => 'b',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
        }
    }
}

/// One inode.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Who owns it, and the rest.
    pub meta: Meta,
    /// How many names it has. Directories have one.
    pub links: u32,
    children: BTreeMap<Vec<u8>, NodeId>,
}

impl Node {
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }

    /// The size in bytes that `stat` would show for a file or symbolic link, else 0.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(content) => content.len(),
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }
}

/// Why a tree refuses a change.
#[derive(Debug, Display, thiserror::Error)]
pub enum TreeError {
    /// {0}: a path in an image may not contain `..`
    Traversal(String),
    /// {path}: {why}
    BadPath {
        /// The path as far as it can be shown.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// {0}: not a directory
    NotADirectory(String),
    /// {0}: no such file or directory in the image
    NotFound(String),
    /// {0}: more than {MAX_FOLLOWED:} symbolic links on the way
    TooManyLinks(String),
    /// {0}: a hard link to a directory
    LinkToDirectory(String),
    /// {0}: a directory with entries cannot be replaced by a file
    DirectoryInTheWay(String),
    /// {0}: the target of a symbolic link must have 1 to {MAX_SYMLINK:} bytes and no NUL
    BadTarget(String),
    /// {0}: more than {MAX_XATTRS:} bytes of extended attributes
    TooManyXattrs(String),
    /// more than {MAX_NODES:} files in one image
    TooManyNodes,
}

impl Advice for TreeError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        None
    }
}

/// A root file system. See the module's page.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    live: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// An empty tree: a root directory owned by root, mode 0755, time 0.
    pub fn new() -> Self {
        let root = Node {
            kind: Kind::Dir,
            meta: Meta::new(0o755, 0, 0, 0),
            links: 1,
            children: BTreeMap::new(),
        };
        Self {
            nodes: vec![Some(root)],
            live: 1,
        }
    }

    /// How many inodes the tree holds, the root included.
    pub fn len(&self) -> usize {
        self.live
    }

    /// True when there is nothing below the root.
    pub fn is_empty(&self) -> bool {
        self.live == 1
    }

    /// The inode behind an id that this tree gave.
    ///
    /// # Panics
    /// When the id's last name was removed, which is a fault of the program, never of its input.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("an id of a live inode")
    }

    /// As [`Tree::node`], to change it. Changing `kind` between directory and other kinds is not allowed; use
    /// [`Tree::insert`].
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("an id of a live inode")
    }

    /// The entries of a directory, sorted by name; nothing for other kinds.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.node(id)
            .children
            .iter()
            .map(|(name, id)| (name.as_slice(), *id))
    }

    /// The entry of one name in a directory.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(dir).children.get(name).copied()
    }

    /// Every name in the tree, parents before children, sorted by name within a directory.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    /// Put an inode at a path whose parent directory exists (symbolic links to it are followed inside the
    /// tree).
    ///
    /// What was there is replaced: a directory over a directory keeps the entries and takes the new metadata;
    /// a non-directory takes the place of a non-directory or of an empty directory.
    pub fn insert(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<NodeId, TreeError> {
        self.check(path, &kind, &meta)?;
        let parsed = TreePath::parse(path)?;
        let Some((parent, name)) = parsed.split_last() else {
            if !matches!(kind, Kind::Dir) {
                return Err(TreeError::DirectoryInTheWay("/".into()));
            }
            self.node_mut(Self::ROOT).meta = meta;
            return Ok(Self::ROOT);
        };
        let dir = self.resolve(&parent, path)?;
        if let Some(old) = self.child(dir, name) {
            let node = self.node_mut(old);
            if node.is_dir() && matches!(kind, Kind::Dir) {
                node.meta = meta;
                return Ok(old);
            }
            if node.is_dir() && !node.children.is_empty() {
                return Err(TreeError::DirectoryInTheWay(show(path)));
            }
            self.unlink(dir, name);
        }
        self.insert_child(dir, name.to_vec(), kind, meta)
    }

    /// Gives a new inode a name that a directory does not have yet.
    fn insert_child(
        &mut self,
        dir: NodeId,
        name: Vec<u8>,
        kind: Kind,
        meta: Meta,
    ) -> Result<NodeId, TreeError> {
        let id = self.allocate(kind, meta)?;
        self.node_mut(dir).children.insert(name, id);
        Ok(id)
    }

    /// Give an inode that is not a directory one more name, as `link(2)`; a non-directory that had the name
    /// is replaced.
    pub fn link(&mut self, path: &[u8], target: NodeId) -> Result<(), TreeError> {
        if self.node(target).is_dir() {
            return Err(TreeError::LinkToDirectory(show(path)));
        }
        let parsed = TreePath::parse(path)?;
        let (parent, name) = parsed
            .split_last()
            .ok_or_else(|| TreeError::LinkToDirectory(show(path)))?;
        let dir = self.resolve(&parent, path)?;
        match self.child(dir, name) {
            Some(old) if old == target => return Ok(()),
            Some(old) if self.node(old).is_dir() => {
                return Err(TreeError::DirectoryInTheWay(show(path)));
            }
            _ => {}
        }
        // Count the new name first: unlinking the old one must not free the target.
        self.node_mut(target).links += 1;
        if self.child(dir, name).is_some() {
            self.unlink(dir, name);
        }
        self.node_mut(dir).children.insert(name.to_vec(), target);
        Ok(())
    }

    /// Remove a name and, for a directory, everything below it. True when there was something to remove.
    pub fn remove(&mut self, path: &[u8]) -> Result<bool, TreeError> {
        let parsed = TreePath::parse(path)?;
        let Some((parent, name)) = parsed.split_last() else {
            return Ok(false);
        };
        let dir = match self.resolve(&parent, path) {
            Ok(dir) => dir,
            Err(TreeError::NotFound(_) | TreeError::NotADirectory(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let found = self.child(dir, name).is_some();
        if found {
            self.unlink(dir, name);
        }
        Ok(found)
    }

    /// Move a name (with all below it) to another path whose parent exists and which has no entry yet.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), TreeError> {
        let id = self.find(from)?.ok_or_else(|| TreeError::NotFound(show(from)))?;
        let source = TreePath::parse(from)?;
        let target = TreePath::parse(to)?;
        let (Some((from_dir, from_name)), Some((to_dir, to_name))) =
            (source.split_last(), target.split_last())
        else {
            return Err(TreeError::DirectoryInTheWay("/".into()));
        };
        let (from_dir, to_dir) = (self.resolve(&from_dir, from)?, self.resolve(&to_dir, to)?);
        if self.child(to_dir, to_name).is_some() {
            return Err(TreeError::DirectoryInTheWay(show(to)));
        }
        if self.node(id).is_dir() && self.is_below(to_dir, id) {
            return Err(TreeError::NotADirectory(show(to)));
        }
        self.node_mut(from_dir).children.remove(from_name);
        self.node_mut(to_dir).children.insert(to_name.to_vec(), id);
        Ok(())
    }

    fn is_below(&self, id: NodeId, top: NodeId) -> bool {
        let mut stack = vec![top];
        while let Some(at) = stack.pop() {
            if at == id {
                return true;
            }
            stack.extend(
                self.node(at)
                    .children
                    .values()
                    .filter(|c| self.node(**c).is_dir()),
            );
        }
        false
    }

    fn check(&self, path: &[u8], kind: &Kind, meta: &Meta) -> Result<(), TreeError> {
        if let Kind::Symlink(target) = kind
            && (target.is_empty() || target.len() > MAX_SYMLINK || target.contains(&0))
        {
            return Err(TreeError::BadTarget(show(path)));
        }
        let bytes: usize = meta
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > MAX_XATTRS {
            return Err(TreeError::TooManyXattrs(show(path)));
        }
        Ok(())
    }

    fn allocate(&mut self, kind: Kind, meta: Meta) -> Result<NodeId, TreeError> {
        if self.live >= MAX_NODES || self.nodes.len() >= 2 * MAX_NODES {
            return Err(TreeError::TooManyNodes);
        }
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Some(Node {
            kind,
            meta,
            links: 1,
            children: BTreeMap::new(),
        }));
        self.live += 1;
        Ok(id)
    }

    /// Take a name out of a directory and free whatever has no name left. Iterative: depth is the input's
    /// choice.
    fn unlink(&mut self, dir: NodeId, name: &[u8]) {
        let mut orphans: Vec<NodeId> = self.node_mut(dir).children.remove(name).into_iter().collect();
        while let Some(id) = orphans.pop() {
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links == 0 {
                orphans.extend(std::mem::take(&mut node.children).into_values());
                self.nodes[id.0 as usize] = None;
                self.live -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
