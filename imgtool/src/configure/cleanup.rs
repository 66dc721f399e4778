//! What must not be in an image: the identity of the machine that it was configured on, logs, caches,
//! leftovers.
//!
//! Instances get a machine-id, host keys and seeds of their own on first boot; an image that carried them
//! would give every instance the same.

use crate::tree::{Content, Kind, NodeId, Tree, TreeError};

/// Files that are removed, by absolute path; `*` matches any part of a name.
const REMOVED: &[&str] = &[
    // Identity.
    "etc/ssh/ssh_host_*",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/urandom/random-seed",
    // Logs of the build itself.
    "var/log/alternatives.log",
    "var/log/apt/*",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    // Caches with times or inode numbers in them.
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*_*",
    // Backups and locks of the tools that configured it.
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "usr/sbin/policy-rc.d",
    "root/.bash_history",
];

/// Directories whose content goes.
const EMPTIED: &[&str] = &["run", "tmp", "var/tmp"];

/// Removes what belongs to one machine, empties logs, and moves times after `epoch` back to it.
pub fn clean(tree: &mut Tree, epoch: i64) -> Result<(), TreeError> {
    for pattern in REMOVED {
        remove(tree, pattern)?;
    }
    for dir in EMPTIED {
        let Some(id) = tree.find_followed(dir.as_bytes())? else {
            continue;
        };
        for name in names(tree, id) {
            tree.remove(&[dir.as_bytes(), b"/", &name].concat())?;
        }
    }
    // systemd fills an empty machine-id at boot; without the file it would need a writable /etc that early.
    if let Some(id) = tree.find(b"etc/machine-id")?
        && !tree.node(id).is_dir()
    {
        tree.node_mut(id).kind = Kind::File(Content::bytes(Vec::new()));
    }
    empty_logs(tree)?;
    let ids: Vec<NodeId> = tree.walk().map(|(_, id)| id).collect();
    for id in ids {
        let meta = &mut tree.node_mut(id).meta;
        meta.mtime = meta.mtime.min(epoch);
    }
    // The directory itself was made by the build.
    tree.node_mut(Tree::ROOT).meta.mtime = epoch;
    Ok(())
}

fn remove(tree: &mut Tree, pattern: &str) -> Result<(), TreeError> {
    let Some((head, tail)) = pattern.split_once('*') else {
        tree.remove(pattern.as_bytes())?;
        return Ok(());
    };
    let (dir, prefix) = head.rsplit_once('/').unwrap_or(("", head));
    let Some(id) = tree.find_followed(dir.as_bytes())? else {
        return Ok(());
    };
    let matches = |name: &[u8]| {
        name.len() >= prefix.len() + tail.trim_start_matches('*').len()
            && name.starts_with(prefix.as_bytes())
            && tail.split('*').all(|part| {
                part.is_empty() || name.windows(part.len()).any(|window| window == part.as_bytes())
            })
    };
    for name in names(tree, id).into_iter().filter(|name| matches(name)) {
        let path = [dir.as_bytes(), b"/", &name].concat();
        if tree.find(&path)?.is_some_and(|id| !tree.node(id).is_dir()) {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

/// Log files that packages made keep their owner and permissions and lose their content.
fn empty_logs(tree: &mut Tree) -> Result<(), TreeError> {
    if tree.find_followed(b"var/log")?.is_none() {
        return Ok(());
    }
    let logs: Vec<NodeId> = tree
        .walk()
        .filter(|(path, _)| path.starts_with(b"var/log/"))
        .map(|(_, id)| id)
        .collect();
    for id in logs {
        let node = tree.node_mut(id);
        if let Kind::File(content) = &mut node.kind {
            *content = Content::bytes(Vec::new());
        }
    }
    Ok(())
}

fn names(tree: &Tree, dir: NodeId) -> Vec<Vec<u8>> {
    tree.children(dir).map(|(name, _)| name.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Meta;

    #[test]
    fn the_identity_is_removed_and_the_rest_stays() {
        let mut tree = Tree::new();
        let dir = Meta::new(0o755, 0, 0, 50);
        let gone = [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "var/lib/dpkg/status-old",
            "var/cache/debconf/config.dat-old",
            "tmp/x/y",
            "var/log/dpkg.log",
        ];
        let stays = [
            "etc/ssh/sshd_config",
            "var/lib/dpkg/status",
            "var/log/wtmp",
            "etc/machine-id",
        ];
        for path in gone.iter().chain(&stays) {
            let parent = path.rsplit_once('/').unwrap().0;
            tree.create_dirs(parent.as_bytes(), &dir).unwrap();
            let file = Kind::File(Content::bytes(b"text".to_vec()));
            tree.insert(path.as_bytes(), file, Meta::new(0o600, 0, 0, 200))
                .unwrap();
        }
        clean(&mut tree, 100).unwrap();
        for path in gone {
            assert_eq!(tree.find(path.as_bytes()).unwrap(), None, "{path}");
        }
        for path in stays {
            let node = tree.node(
                tree.find(path.as_bytes())
                    .unwrap()
                    .unwrap_or_else(|| panic!("{path}")),
            );
            assert_eq!(node.meta.mtime, 100, "{path}");
            let empty = path.contains("machine-id") || path.contains("/log/");
            assert_eq!(node.size() == 0, empty, "{path}");
        }
        assert!(tree.find(b"tmp").unwrap().is_some());
    }
}
