//! The recipe's `files`.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Error;
use super::accounts::{group_id, user_id};
use super::edit::make_parents;
use crate::recipe::{FileEntry, Recipe, expand_braces};
use crate::tree::{Content, Kind, Meta, NodeId, Tree, show};

/// Writes the recipe's files. Times are `epoch`, because a checkout's times say nothing.
pub fn add_files(tree: &mut Tree, recipe: &Recipe, epoch: i64) -> Result<(), Error> {
    for entry in &recipe.files {
        let mut meta = Meta::new(
            0,
            user_id(tree, &entry.owner)?,
            group_id(tree, &entry.group)?,
            epoch,
        );
        // A recipe whose patterns stand for too much is not loaded.
        for path in expand_braces(&entry.path).into_iter().flatten() {
            make_parents(tree, &path, epoch)?;
            add(tree, recipe, entry, &path, &mut meta)?;
        }
    }
    Ok(())
}

fn add(
    tree: &mut Tree,
    recipe: &Recipe,
    entry: &FileEntry,
    path: &str,
    meta: &mut Meta,
) -> Result<(), Error> {
    let mode = entry.mode.map(|mode| mode.0);
    let kind = match entry {
        FileEntry {
            content: Some(text), ..
        } => {
            meta.mode = mode.unwrap_or(0o644);
            Kind::File(Content::bytes(text.clone().into_bytes()))
        }
        FileEntry {
            link: Some(target), ..
        } => {
            meta.mode = 0o777;
            Kind::Symlink(target.clone().into_bytes())
        }
        FileEntry {
            source: Some(source), ..
        } => {
            copy(tree, &recipe.resolve_path(source), path.as_bytes(), mode, meta)?;
            return give(tree, entry, path, meta);
        }
        _ => {
            let id = directory(tree, path.as_bytes(), meta)?;
            let now = &mut tree.node_mut(id).meta;
            (now.uid, now.gid) = (meta.uid, meta.gid);
            now.mode = mode.unwrap_or(now.mode);
            return Ok(());
        }
    };
    put(tree, path.as_bytes(), kind, meta)
}

/// Gives the directory that an entry with a source names to the entry's owner and group, where these are
/// others than root; what else there was keeps its own.
fn give(tree: &mut Tree, entry: &FileEntry, path: &str, meta: &Meta) -> Result<(), Error> {
    let found = tree.find_followed(path.as_bytes()).map_err(Error::tree(path))?;
    if let Some(id) = found.filter(|id| tree.node(*id).is_dir()) {
        let now = &mut tree.node_mut(id).meta;
        if entry.owner != "root" {
            now.uid = meta.uid;
        }
        if entry.group != "root" {
            now.gid = meta.gid;
        }
    }
    Ok(())
}

/// Makes a directory. One that exists, or that a link leads to, keeps its owner, permissions and attributes:
/// with dpkg as well, a package's directory changes nothing about `/tmp` and does not take the place of
/// `/lib`.
fn directory(tree: &mut Tree, path: &[u8], meta: &Meta) -> Result<NodeId, Error> {
    let shown = show(path);
    if let Some(id) = tree.find_followed(path).map_err(Error::tree(&shown))? {
        if !tree.node(id).is_dir() {
            return Err(Error::Occupied {
                path: shown,
                by: "something that is no directory",
                advice: "another path, or leave it out of `source`",
            });
        }
        tree.node_mut(id).meta.mtime = meta.mtime;
        return Ok(id);
    }
    let meta = Meta {
        mode: 0o755,
        ..meta.clone()
    };
    tree.create_dirs(path, &meta).map_err(Error::tree(shown))
}

/// Puts something else at a path. A file or link there is replaced; a directory, or a link to one, is not:
/// what is in it would be lost, or no longer found.
fn put(tree: &mut Tree, path: &[u8], kind: Kind, meta: &Meta) -> Result<(), Error> {
    let at = |e| Error::tree(show(path))(e);
    let is_dir = |id: Option<NodeId>| id.is_some_and(|id| tree.node(id).is_dir());
    let itself = tree.find(path).map_err(at)?;
    // A link that leads in a circle leads to no directory.
    let followed = tree.find_followed(path).unwrap_or_default();
    let by = match kind {
        // A link may say where another leads from now on, and take the place of an empty directory.
        Kind::Symlink(_) => itself
            .filter(|id| tree.children(*id).next().is_some())
            .map(|_| "a directory with files"),
        _ if is_dir(itself) => Some("a directory"),
        _ if is_dir(followed) => Some("a link to a directory"),
        _ => None,
    };
    if let Some(by) = by {
        return Err(Error::Occupied {
            path: show(path),
            by,
            advice: "the path of a file in that directory, or of one with a name of its own",
        });
    }
    tree.insert(path, kind, meta.clone()).map_err(at)?;
    Ok(())
}

/// Copies a file, symbolic link or directory of this machine. `mode` is for files.
fn copy(tree: &mut Tree, from: &Path, to: &[u8], mode: Option<u16>, meta: &Meta) -> Result<(), Error> {
    let unreadable = |source| Error::Source {
        path: from.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(from).map_err(unreadable)?;
    let mut meta = meta.clone();
    let kind = if metadata.is_dir() {
        meta.mode = 0o755;
        Kind::Dir
    } else if metadata.is_symlink() {
        meta.mode = 0o777;
        let target = fs::read_link(from).map_err(unreadable)?.into_os_string();
        if target.to_str().is_none() {
            let (path, why) = (from.to_owned(), "the target of the link is not UTF-8");
            return Err(Error::Unfit { path, why });
        }
        Kind::Symlink(target.into_vec())
    } else if metadata.is_file() {
        fs::File::open(from).map_err(unreadable)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        meta.mode = mode.unwrap_or(if executable { 0o755 } else { 0o644 });
        Kind::File(Content::path(from, metadata.len()))
    } else {
        return Err(unreadable(std::io::Error::other(
            "it is neither file, directory nor symbolic link",
        )));
    };
    if !matches!(kind, Kind::Dir) {
        put(tree, to, kind, &meta)?;
    } else {
        directory(tree, to, &meta)?;
        let mut names = fs::read_dir(from)
            .and_then(|entries| {
                entries
                    .map(|e| e.map(|e| e.file_name()))
                    .collect::<Result<Vec<_>, _>>()
            })
            .map_err(unreadable)?;
        names.sort();
        for name in names {
            if name.to_str().is_none() {
                let (path, why) = (from.join(&name), "its name is not UTF-8");
                return Err(Error::Unfit { path, why });
            }
            copy(
                tree,
                &from.join(&name),
                &[to, b"/", name.as_bytes()].concat(),
                mode,
                &meta,
            )?;
        }
    }
    Ok(())
}
