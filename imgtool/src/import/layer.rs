//! One archive laid over a tree: a root's own, or the layers of a container image one after the other.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use super::Error;
use crate::archive::{self, Damage, Entry, EntryKind};
use crate::tree::{Kind, Meta, Spool, Tree, TreeError, TreePath, show};

/// The prefix of entries that remove what lower layers have (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The entry that removes all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A tree that archives are unpacked over.
pub(super) struct Layer {
    pub tree: Tree,
    spool: Spool,
    /// Whether there are lower layers, and entries that remove what these have.
    whiteouts: bool,
    /// What this archive has brought, and the directories above: real paths. A whiteout is about lower
    /// layers, wherever it is in its own.
    upper: HashSet<Vec<u8>>,
}

impl Layer {
    pub fn new(scratch: &Path, whiteouts: bool) -> Result<Self, Error> {
        let spool = Spool::new_in(scratch).map_err(|source| Error::Io {
            path: scratch.into(),
            source,
        })?;
        Ok(Self {
            tree: Tree::new(),
            spool,
            whiteouts,
            upper: HashSet::new(),
        })
    }

    /// Lays an archive over what is there.
    pub fn apply(&mut self, what: &str, stream: impl Read) -> Result<(), Error> {
        self.upper.clear();
        let mut failed = None;
        let read = archive::visit(stream, |entry, reader| {
            if failed.is_none()
                && let Err(why) = self.entry(entry, reader)
            {
                failed = Some(why);
            }
            Ok::<_, Damage>(())
        });
        let why = match (read, failed) {
            (Ok(()), None) => return Ok(()),
            (_, Some(why)) => why,
            (Err(damage), None) => damage.to_string(),
        };
        Err(Error::Archive {
            what: what.to_owned(),
            why,
        })
    }

    fn entry(&mut self, entry: &Entry, reader: &mut dyn Read) -> Result<(), String> {
        let said = |e: TreeError| e.to_string();
        if self.whiteouts {
            let path = TreePath::parse(&entry.path).map_err(said)?;
            if let Some((parent, name)) = path.split_last()
                && let Some(hidden) = name.strip_prefix(WHITEOUT)
            {
                return self.whiteout(parent.as_bytes(), name, hidden);
            }
        }
        let meta = Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        };
        let kind = match &entry.kind {
            EntryKind::Dir => Some(Kind::Dir),
            EntryKind::Symlink(target) => Some(Kind::Symlink(target.clone())),
            EntryKind::Char(major, minor) => Some(Kind::Char(*major, *minor)),
            EntryKind::Block(major, minor) => Some(Kind::Block(*major, *minor)),
            EntryKind::Fifo => Some(Kind::Fifo),
            EntryKind::File(length) => {
                let mut reader = reader;
                let content = match &entry.pieces {
                    Some(pieces) => self.spool.add_pieces(&mut reader, pieces),
                    None => self.spool.add(&mut reader, *length),
                };
                Some(Kind::File(content.map_err(|e| e.to_string())?))
            }
            EntryKind::Hardlink(_) => None,
        };
        self.make_way(&entry.path, entry.mtime, kind.as_ref())
            .map_err(said)?;
        match (kind, &entry.kind) {
            (None, EntryKind::Hardlink(target)) => self.link(&entry.path, target),
            (kind, _) => {
                let kind = kind.unwrap_or(Kind::Dir);
                self.tree.insert(&entry.path, kind, meta).map(drop)
            }
        }
        .map_err(said)?;
        self.remember(&entry.path).map_err(said)
    }

    /// Makes missing parents, and removes a directory that something else takes the place of.
    fn make_way(&mut self, path: &[u8], mtime: i64, kind: Option<&Kind>) -> Result<(), TreeError> {
        let parsed = TreePath::parse(path)?;
        let Some((parent, _)) = parsed.split_last() else {
            return Ok(());
        };
        self.tree
            .create_dirs(parent.as_bytes(), &Meta::new(0o755, 0, 0, mtime))?;
        let old = self.tree.find(path)?;
        if !matches!(kind, Some(Kind::Dir)) && old.is_some_and(|id| self.tree.node(id).is_dir()) {
            self.tree.remove(path)?;
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let found = self.tree.find(target)?;
        let id = found.ok_or_else(|| TreeError::NotFound(show(target)))?;
        self.tree.link(path, id)
    }

    fn remember(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if !self.whiteouts {
            return Ok(());
        }
        let real = self.tree.real_path(path)?;
        let mut end = real.len();
        // Once a directory is known, those above are.
        while end > 0 && self.upper.insert(real[..end].to_vec()) {
            end = real[..end].iter().rposition(|b| *b == b'/').unwrap_or(0);
        }
        Ok(())
    }

    /// Removes what lower layers have at a path, or below it. `name` is the whole name of the entry, `hidden`
    /// what it hides.
    fn whiteout(&mut self, parent: &[u8], name: &[u8], hidden: &[u8]) -> Result<(), String> {
        if matches!(hidden, b"" | b"." | b"..") {
            let path = show(&[parent, b"/", name].concat());
            return Err(format!("{path} is a whiteout of no name"));
        }
        let said = |e: TreeError| e.to_string();
        // The last name stands for the directory that `parent` leads to.
        let mut top = match self.tree.real_path(&[parent, b"/x"].concat()) {
            Err(TreeError::NotADirectory(_)) => return Ok(()),
            top => top.map_err(said)?,
        };
        top.truncate(top.len() - 1);
        let mut stack = Vec::new();
        match name == OPAQUE {
            true => self.push_children(&top, &mut stack),
            false => stack.push([&top, hidden].concat()),
        }
        while let Some(path) = stack.pop() {
            if self.upper.contains(&path) {
                self.push_children(&path, &mut stack);
            } else {
                self.tree.remove(&path).map_err(said)?;
            }
        }
        Ok(())
    }

    fn push_children(&self, directory: &[u8], stack: &mut Vec<Vec<u8>>) {
        let Ok(Some(id)) = self.tree.find(directory) else {
            return;
        };
        let slash: &[u8] = if directory.is_empty() || directory.ends_with(b"/") {
            b""
        } else {
            b"/"
        };
        let children = self.tree.children(id);
        stack.extend(children.map(|(name, _)| [directory, slash, name].concat()));
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
