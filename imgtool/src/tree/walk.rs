//! The order in which a tree is written: parents first, names sorted. Every output of a build follows it.

use super::{NodeId, Tree};

/// Every name of a tree, the root first (with an empty path), depth first, sorted by bytes within a
/// directory. An inode with several names comes once for each. Iterative: depth is the input's choice.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    stack: Vec<(Vec<u8>, NodeId)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self {
            tree,
            stack: vec![(Vec::new(), Tree::ROOT)],
        }
    }
}

impl Iterator for Walk<'_> {
    /// The path without a leading slash, and the inode.
    type Item = (Vec<u8>, NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        let (path, id) = self.stack.pop()?;
        let children: Vec<_> = self.tree.children(id).collect();
        for (name, child) in children.into_iter().rev() {
            let mut below = Vec::with_capacity(path.len() + 1 + name.len());
            below.extend_from_slice(&path);
            if !path.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name);
            self.stack.push((below, child));
        }
        Some((path, id))
    }
}
