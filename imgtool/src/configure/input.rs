//! The root that a job starts from, on its way into the sandbox: its names and small files in an archive, the
//! contents of its larger files as places in files that are open already.
//!
//! A root is some hundred megabytes, and the process outside has all of them in a few open files: an archive
//! in the cache, or the base image. The process inside inherits these files, so that a content is copied
//! once, to where programs work on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::archive;
use crate::tree::{Content, Kind, Piece, Tree};

/// Smaller files go into the archive: describing one takes as much.
const SMALL: u64 = 4096;
/// What a file takes in an archive or in memory besides its content.
const OVERHEAD: u64 = 1024;

/// A root for the sandbox, as the process outside has it. The sandbox must start while this is there.
#[derive(Debug)]
pub struct Input {
    root: InputRoot,
    /// Descriptors that the sandbox inherits.
    open: Vec<OwnedFd>,
}

/// The root as the job describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InputRoot {
    /// The archive.
    archive: PathBuf,
    /// The size of all files.
    bytes: u64,
    /// The inherited descriptors.
    files: Vec<RawFd>,
    /// The contents that the archive lacks.
    contents: Vec<Reference>,
}

/// The content of one file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Reference {
    /// Which of the tree's names it is of, in the order of [`Tree::walk`].
    name: usize,
    /// Which of [`InputRoot::files`] holds it.
    file: usize,
    pieces: Vec<Piece>,
}

impl Input {
    /// Describes a tree; what cannot be described by reference goes to a new archive.
    pub fn write(tree: &Tree, archive: &Path) -> io::Result<Self> {
        let mut rest = tree.clone();
        let (mut open, mut contents) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<RawFd, usize> = BTreeMap::new();
        let mut bytes = 0;
        for (name, (_, id)) in tree.walk().enumerate() {
            bytes += OVERHEAD;
            let Kind::File(content) = &tree.node(id).kind else {
                continue;
            };
            bytes += content.len();
            let Some((file, pieces)) = place(content).filter(|_| content.len() > SMALL) else {
                continue;
            };
            let file = match known.get(&file.as_raw_fd()) {
                Some(index) => *index,
                None => {
                    // Unlike the original, it stays open in a program that this process becomes.
                    open.push(nix::unistd::dup(file.as_fd())?);
                    known.insert(file.as_raw_fd(), open.len() - 1);
                    open.len() - 1
                }
            };
            rest.node_mut(id).kind = Kind::File(Content::bytes(Vec::new()));
            contents.push(Reference { name, file, pieces });
        }
        archive::write(&rest, BufWriter::with_capacity(1 << 18, File::create(archive)?))?;
        let root = InputRoot {
            archive: archive.to_owned(),
            bytes,
            files: Vec::new(),
            contents,
        };
        Ok(Self { root, open })
    }

    /// What the job says of it.
    pub fn root(&self) -> InputRoot {
        InputRoot {
            files: self.open.iter().map(AsRawFd::as_raw_fd).collect(),
            ..self.root.clone()
        }
    }

    /// The descriptors as the process inside has them: nobody else closes them.
    #[cfg(test)]
    fn inherit(self) -> InputRoot {
        use std::os::fd::IntoRawFd;
        let root = self.root();
        self.open.into_iter().for_each(|fd| _ = fd.into_raw_fd());
        root
    }
}

/// Where a content is in an open file.
fn place(content: &Content) -> Option<(&Arc<File>, Vec<Piece>)> {
    match content {
        Content::Range { file, offset, len } => {
            let (offset, length) = (*offset, *len);
            Some((file, vec![Piece::Data { offset, length }]))
        }
        Content::Pieces { file, pieces, .. } => Some((file, pieces.to_vec())),
        Content::Bytes(_) | Content::Path { .. } => None,
    }
}

impl InputRoot {
    /// About as many bytes as the root takes where programs work on it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The tree. In the process inside, once.
    pub fn read(&self) -> Result<Tree, archive::Damage> {
        let files: Vec<_> = self.files.iter().map(|fd| Arc::new(inherited(*fd))).collect();
        for file in &files {
            // Programs in the root do not inherit it.
            rustix::io::fcntl_setfd(&**file, rustix::io::FdFlags::CLOEXEC)
                .map_err(|e| archive::Damage::Read(e.into()))?;
        }
        let mut tree = archive::read(&self.archive)?;
        let ids: Vec<_> = tree.walk().map(|(_, id)| id).collect();
        for Reference { name, file, pieces } in &self.contents {
            let (Some(id), Some(file)) = (ids.get(*name), files.get(*file)) else {
                let why = "the archive of the root is not the one that was written";
                return Err(archive::Damage::Read(io::Error::other(why)));
            };
            tree.node_mut(*id).kind = Kind::File(Content::pieces(Arc::clone(file), pieces.clone()));
        }
        Ok(tree)
    }
}

/// An inherited descriptor as a file.
#[allow(unsafe_code)]
fn inherited(fd: RawFd) -> File {
    // SAFETY: The process outside duplicated the descriptor for the process that it starts and names it in
    // the job. Nothing else here knows the number, and `InputRoot::read` takes each once, so that this is its
    // only owner.
    unsafe { File::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::tree::{Meta, show};

    const LARGE: usize = 8 << 20;

    /// A tree whose large files are in an open file, as those of a configured root are.
    fn tree() -> Tree {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..LARGE).map(|i| (i / 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let file = Arc::new(file);
        let mut tree = Tree::new();
        let meta = |mode| Meta::new(mode, 1, 2, 3);
        tree.insert(b"usr", Kind::Dir, meta(0o755)).unwrap();
        let range = |offset, len| Content::Range {
            file: Arc::clone(&file),
            offset,
            len,
        };
        let library = tree
            .insert(
                b"usr/library",
                Kind::File(range(100, LARGE as u64 - 100)),
                meta(0o4755),
            )
            .unwrap();
        tree.link(b"usr/another", library).unwrap();
        let pieces = [(0, 5000), (7000, 6000)].map(|(offset, length)| Piece::Data { offset, length });
        let sparse = [&pieces[..1], &[Piece::Hole(70_000)], &pieces[1..]].concat();
        let sparse = Kind::File(Content::pieces(Arc::clone(&file), sparse));
        tree.insert(b"sparse", sparse, meta(0o600)).unwrap();
        tree.insert(b"small", Kind::File(range(5, 4000)), meta(0o644))
            .unwrap();
        let text = Kind::File(Content::bytes(vec![7; 9000]));
        tree.insert(b"text", text, meta(0o644)).unwrap();
        let link = Kind::Symlink(b"usr/library".to_vec());
        tree.insert(b"a-link", link, meta(0o777)).unwrap();
        tree
    }

    fn all(tree: &Tree) -> Vec<(String, Meta, u32, Vec<u8>)> {
        let line = |path: &[u8], id| {
            let node = tree.node(id);
            let content = match &node.kind {
                Kind::File(content) => content.read(LARGE as u64).unwrap(),
                other => format!("{other:?}").into_bytes(),
            };
            (show(path), node.meta.clone(), node.links, content)
        };
        tree.walk().map(|(path, id)| line(&path, id)).collect()
    }

    /// A job once wrote the whole root to an archive and read it back before its first program ran.
    #[test]
    fn a_root_goes_into_the_sandbox_without_its_contents_being_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input.tar");
        let tree = tree();
        let input = Input::write(&tree, &path).unwrap();
        let written = std::fs::metadata(&path).unwrap().len();
        assert!(written < 40_000, "{written} bytes for a root of {LARGE}");
        assert_eq!(input.open.len(), 1, "one file holds all contents");
        // It crosses to the other process as text.
        let root = serde_json::to_string(&input.inherit()).unwrap();
        let root: InputRoot = serde_json::from_str(&root).unwrap();
        assert!(root.bytes() > LARGE as u64);
        assert_eq!(all(&root.read().unwrap()), all(&tree));
    }

    #[test]
    fn an_archive_that_lacks_names_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input.tar");
        let root = Input::write(&tree(), &path).unwrap().inherit();
        archive::write(&Tree::new(), File::create(&path).unwrap()).unwrap();
        assert!(root.read().is_err());
    }
}
