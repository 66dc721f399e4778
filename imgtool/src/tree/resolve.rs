//! From a path to an inode: symbolic links are followed inside the tree, as a process chrooted in it would
//! follow them.

use super::{Kind, Meta, NodeId, Tree, TreeError, TreePath, show};

/// Most symbolic links followed on the way to one path: the limit of Linux itself (`MAXSYMLINKS`).
pub(super) const MAX_FOLLOWED: usize = 40;

/// What a name on the way that does not exist means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The path leads nowhere.
    Refused,
    /// The path is where the name would be made.
    AsWritten,
}

/// A name on the way to a path.
struct Step {
    name: Vec<u8>,
    /// What has the name, if it exists.
    id: Option<NodeId>,
}

impl Tree {
    /// The inode with this path; a final symbolic link is itself the answer (as `lstat`).
    pub fn find(&self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let path = TreePath::parse(path)?;
        let Some((parent, name)) = path.split_last() else {
            return Ok(Some(Self::ROOT));
        };
        match self.resolve(&parent, path.as_bytes()) {
            Ok(dir) => Ok(self.child(dir, name)),
            Err(TreeError::NotFound(_) | TreeError::NotADirectory(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The inode with this path, a final symbolic link followed inside the tree (as `stat`).
    pub fn find_followed(&self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let parsed = TreePath::parse(path)?;
        match self.follow(&parsed, path) {
            Ok(id) => Ok(Some(id)),
            Err(TreeError::NotFound(_) | TreeError::NotADirectory(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The path of an entry without symbolic links: those on the way to it are followed, the last name is
    /// not. What does not exist yet is as written.
    pub fn real_path(&self, path: &[u8]) -> Result<Vec<u8>, TreeError> {
        let parsed = TreePath::parse(path)?;
        let Some((parent, name)) = parsed.split_last() else {
            return Ok(Vec::new());
        };
        let mut steps = self.trace(&parent, path, Missing::AsWritten)?;
        steps.push(Step {
            name: name.to_vec(),
            id: None,
        });
        Ok(join(&steps))
    }

    /// Make every missing directory of `path` with this metadata; those that exist are left alone. A symbolic
    /// link to a directory counts as that directory, and where it leads to nothing, that is made.
    pub fn create_dirs(&mut self, path: &[u8], meta: &Meta) -> Result<NodeId, TreeError> {
        let steps = self.trace(&TreePath::parse(path)?, path, Missing::AsWritten)?;
        let real = join(&steps);
        // What a link says has not been checked as a path.
        TreePath::parse(&real)?;
        let mut at = Self::ROOT;
        for Step { name, id } in steps {
            at = match id {
                Some(id) if self.node(id).is_dir() => id,
                Some(_) => return Err(TreeError::NotADirectory(show(&real))),
                None => self.insert_child(at, name, Kind::Dir, meta.clone())?,
            };
        }
        Ok(at)
    }

    /// The directory that a parsed path names.
    pub(super) fn resolve(&self, path: &TreePath, shown: &[u8]) -> Result<NodeId, TreeError> {
        let id = self.follow(path, shown)?;
        if self.node(id).is_dir() {
            Ok(id)
        } else {
            Err(TreeError::NotADirectory(show(shown)))
        }
    }

    /// The inode that a parsed path names.
    fn follow(&self, path: &TreePath, shown: &[u8]) -> Result<NodeId, TreeError> {
        let steps = self.trace(path, shown, Missing::Refused)?;
        Ok(steps.last().and_then(|step| step.id).unwrap_or(Self::ROOT))
    }

    /// The names from the root down to what a path means, none of them a symbolic link: an absolute target
    /// starts at the tree's root and `..` at the root stays there, so nothing outside can be reached.
    fn trace(&self, path: &TreePath, shown: &[u8], missing: Missing) -> Result<Vec<Step>, TreeError> {
        let mut todo: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        todo.reverse();
        let mut found: Vec<Step> = Vec::new();
        let mut followed = 0;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    found.pop();
                    continue;
                }
                _ => {}
            }
            let dir = found.last().map_or(Some(Self::ROOT), |step| step.id);
            if dir.is_some_and(|dir| !self.node(dir).is_dir()) {
                return Err(TreeError::NotADirectory(show(&join(&found))));
            }
            let id = dir.and_then(|dir| self.child(dir, &name));
            if id.is_none() && missing == Missing::Refused {
                return Err(TreeError::NotFound(show(shown)));
            }
            let Some(Kind::Symlink(target)) = id.map(|id| &self.node(id).kind) else {
                found.push(Step { name, id });
                continue;
            };
            followed += 1;
            if followed > MAX_FOLLOWED {
                return Err(TreeError::TooManyLinks(show(shown)));
            }
            if target.first() == Some(&b'/') {
                found.clear();
            }
            todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(found)
    }
}

fn join(steps: &[Step]) -> Vec<u8> {
    let names: Vec<&[u8]> = steps.iter().map(|step| &*step.name).collect();
    names.join(&b'/')
}
