//! The recipe's `files`.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Error;
use super::accounts::{group_id, user_id};
use super::edit::make_parents;
use crate::recipe::{FileEntry, Recipe, expand_braces};
use crate::tree::{Content, Kind, Meta, Tree};

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
            return copy(tree, &recipe.resolve_path(source), path.as_bytes(), mode, meta);
        }
        _ => {
            meta.mode = mode.unwrap_or(0o755);
            Kind::Dir
        }
    };
    tree.insert(path.as_bytes(), kind, meta.clone())
        .map_err(Error::tree(path))?;
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
    let is_dir = matches!(kind, Kind::Dir);
    tree.insert(to, kind, meta.clone())
        .map_err(Error::tree(crate::tree::show(to)))?;
    if is_dir {
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
