//! Edits of small text files in a tree.

use super::Error;
use crate::tree::{Content, Kind, Meta, Tree};

/// passwd and its like; a system of 100,000 users is below.
const MAX_TEXT: u64 = 32 << 20;

/// The text of a file; empty if it does not exist.
pub fn read_text(tree: &Tree, path: &str) -> Result<String, Error> {
    let failed = |reason: String| Error::Edit {
        path: path.to_owned(),
        reason,
    };
    let Some(id) = tree.find_followed(path.as_bytes()).map_err(Error::tree(path))? else {
        return Ok(String::new());
    };
    let Kind::File(content) = &tree.node(id).kind else {
        return Err(failed("it is not a file".into()));
    };
    let bytes = content.read(MAX_TEXT).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8 text".into()))
}

/// Writes a file. One that exists keeps its owner and permissions; missing directories are made.
pub fn write_text(tree: &mut Tree, path: &str, text: String, meta: Meta) -> Result<(), Error> {
    let content = Content::bytes(text.into_bytes());
    if let Some(id) = tree.find_followed(path.as_bytes()).map_err(Error::tree(path))? {
        let node = tree.node_mut(id);
        if !matches!(node.kind, Kind::File(_)) {
            return Err(Error::Edit {
                path: path.to_owned(),
                reason: "it is not a file".into(),
            });
        }
        node.meta.mtime = meta.mtime;
        node.kind = Kind::File(content);
        return Ok(());
    }
    make_parents(tree, path, meta.mtime)?;
    tree.insert(path.as_bytes(), Kind::File(content), meta)
        .map_err(Error::tree(path))?;
    Ok(())
}

/// Makes the directories above a path, owned by root.
pub fn make_parents(tree: &mut Tree, path: &str, mtime: i64) -> Result<(), Error> {
    if let Some((parent, _)) = path.rsplit_once('/') {
        let meta = Meta::new(0o755, 0, 0, mtime);
        tree.create_dirs(parent.as_bytes(), &meta)
            .map_err(Error::tree(path))?;
    }
    Ok(())
}
