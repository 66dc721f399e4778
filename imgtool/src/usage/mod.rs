//! What takes the space in an image: by part, by package, by directory; as a table or as a page with a
//! treemap.

mod page;

use std::collections::BTreeMap;

use serde::Serialize;

pub use page::page;

use crate::tree::{Kind, NodeId, Tree, show};

/// Largest list of files that a package may have: the largest of Debian's is below 8 MB.
const MAX_LIST: u64 = 64 << 20;
/// A file system allocates in blocks of this size.
const BLOCK: u64 = 4096;

/// A directory, with what is below it, or a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name in its directory; `/` for the root.
    #[serde(rename = "n")]
    pub name: String,
    /// Bytes of all files below, in whole blocks; an inode counts once, under its first name.
    #[serde(rename = "s")]
    pub size: u64,
    /// How many files.
    #[serde(rename = "f")]
    pub files: u64,
    /// What is in it, the largest first.
    #[serde(rename = "c", skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Item>,
}

/// The space of a tree, nested as its directories are. Items below `threshold` bytes are left out of their
/// parents' lists and counted in one last item, so that a page stays small.
pub fn measure(tree: &Tree, threshold: u64) -> Item {
    let mut seen = std::collections::BTreeSet::new();
    // Children are finished before their parent: the walk is depth first, so a stack of open directories will
    // do.
    let mut open: Vec<(Vec<u8>, Item)> = Vec::new();
    for (path, id) in tree.walk() {
        while let Some((at, _)) = open.last() {
            if is_below(&path, at) {
                break;
            }
            close(&mut open, threshold);
        }
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let name = if path.is_empty() {
            "/".to_owned()
        } else {
            show(name).split_off(1)
        };
        let first = seen.insert(id);
        let size = if first { allocated(tree, id) } else { 0 };
        let files = u64::from(!tree.node(id).is_dir());
        open.push((
            path,
            Item {
                name,
                size,
                files,
                children: Vec::new(),
            },
        ));
    }
    while open.len() > 1 {
        close(&mut open, threshold);
    }
    let mut root = open.pop().map(|(_, item)| item).unwrap_or_else(|| Item {
        name: "/".into(),
        size: 0,
        files: 0,
        children: Vec::new(),
    });
    settle(&mut root, threshold);
    root
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn close(open: &mut Vec<(Vec<u8>, Item)>, threshold: u64) {
    let Some((_, mut item)) = open.pop() else { return };
    settle(&mut item, threshold);
    if let Some((_, parent)) = open.last_mut() {
        parent.size += item.size;
        parent.files += item.files;
        parent.children.push(item);
    }
}

/// Sort the children, the largest first, and join the small ones.
fn settle(item: &mut Item, threshold: u64) {
    let (mut large, small): (Vec<Item>, Vec<Item>) = std::mem::take(&mut item.children)
        .into_iter()
        .partition(|child| child.size >= threshold.max(1));
    large.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
    let size: u64 = small.iter().map(|child| child.size).sum();
    if size > 0 {
        let files = small.iter().map(|child| child.files).sum();
        large.push(Item {
            name: format!("{} small", small.len()),
            size,
            files,
            children: Vec::new(),
        });
    }
    item.children = large;
}

fn allocated(tree: &Tree, id: NodeId) -> u64 {
    match &tree.node(id).kind {
        Kind::File(content) => content.len().next_multiple_of(BLOCK),
        Kind::Dir => BLOCK,
        // Longer targets do not fit into the inode.
        Kind::Symlink(target) if target.len() >= 60 => BLOCK,
        _ => 0,
    }
}

/// Bytes by package, the largest first, from the lists that dpkg keeps. What no package owns is `(no
/// package)`.
pub fn packages(tree: &Tree) -> std::io::Result<Vec<(String, u64)>> {
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    let mut owned = std::collections::BTreeSet::new();
    let info = tree.find_followed(b"var/lib/dpkg/info").ok().flatten();
    for (name, id) in info.into_iter().flat_map(|info| tree.children(info)) {
        let Some(package) = name.strip_suffix(b".list") else {
            continue;
        };
        let Kind::File(content) = &tree.node(id).kind else {
            continue;
        };
        let package = String::from_utf8_lossy(package).into_owned();
        let package = package.split(':').next().unwrap_or_default().to_owned();
        for path in content
            .read(MAX_LIST)?
            .split(|b| *b == b'\n')
            .filter(|path| !path.is_empty())
        {
            // Directories belong to many packages, and so to none.
            if let Ok(Some(id)) = tree.find(path)
                && !tree.node(id).is_dir()
                && owned.insert(id)
            {
                *sizes.entry(package.clone()).or_default() += allocated(tree, id);
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    let rest = tree
        .walk()
        .filter(|(_, id)| !owned.contains(id) && seen.insert(*id));
    let rest: u64 = rest.map(|(_, id)| allocated(tree, id)).sum();
    sizes.insert("(no package)".into(), rest);
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Meta};

    fn sample() -> Tree {
        let mut tree = Tree::new();
        let meta = Meta::new(0o755, 0, 0, 0);
        for dir in ["usr/bin", "usr/lib", "var/lib/dpkg/info"] {
            tree.create_dirs(dir.as_bytes(), &meta).unwrap();
        }
        let put = |tree: &mut Tree, path: &str, bytes: usize| {
            tree.insert(
                path.as_bytes(),
                Kind::File(Content::bytes(vec![b'x'; bytes])),
                meta.clone(),
            )
            .unwrap()
        };
        let big = put(&mut tree, "usr/bin/big", 100_000);
        put(&mut tree, "usr/bin/tiny", 1);
        put(&mut tree, "usr/lib/mid", 50_000);
        tree.link(b"usr/lib/big", big).unwrap();
        let list = Kind::File(Content::bytes("/.\n/usr\n/usr/bin/big\n/usr/lib/gone\n"));
        tree.insert(b"var/lib/dpkg/info/tool:amd64.list", list, meta)
            .unwrap();
        tree
    }

    #[test]
    fn sizes_add_up_and_hard_links_count_once() {
        let all = measure(&sample(), 0);
        let usr = &all.children[0];
        assert_eq!((usr.name.as_str(), usr.files), ("usr", 4));
        let children: u64 = usr.children.iter().map(|child| child.size).sum();
        assert_eq!(usr.size, children + BLOCK, "a directory has a block of its own");
        let names: Vec<_> = usr.children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["bin", "lib"]);
        let blocks = [100_000u64, 1, 50_000]
            .map(|n| n.next_multiple_of(BLOCK))
            .iter()
            .sum::<u64>();
        assert_eq!(usr.size, blocks + 3 * BLOCK);
    }

    #[test]
    fn small_items_are_joined() {
        let all = measure(&sample(), 20_000);
        let bin = &all.children[0].children[0];
        let names: Vec<_> = bin.children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["big", "1 small"]);
        assert_eq!(all.size, measure(&sample(), 0).size);
    }

    #[test]
    fn packages_own_what_their_lists_name() {
        let sizes = packages(&sample()).unwrap();
        assert_eq!(sizes[0], ("tool".into(), 102_400));
        assert_eq!(sizes[1].0, "(no package)");
        let total: u64 = sizes.iter().map(|(_, size)| size).sum();
        assert_eq!(total, measure(&sample(), 0).size);
    }
}
