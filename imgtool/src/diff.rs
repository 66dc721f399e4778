//! What differs between two images: manifest, packages, files.

use std::collections::BTreeMap;

use ami::{Ami, PartName};
use serde::Serialize;
use serde_json::Value;

use crate::compose::sbom;
use crate::time::timestamp;
use crate::tree::{Kind, NodeId, Tree, show};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `manifest`, `package` or `file`.
    pub section: &'static str,
    /// The key, the package or the path.
    pub name: String,
    /// What the first image has; nothing when it has none.
    pub before: Option<String>,
    /// What the second image has.
    pub after: Option<String>,
}

/// The differences of the manifests, the parts' places aside.
pub fn manifests(a: &Ami, b: &Ami) -> Vec<Change> {
    let flat = |ami: &Ami| -> BTreeMap<String, String> {
        let value = serde_json::to_value(ami.manifest()).unwrap_or_default();
        let mut flat = BTreeMap::new();
        for (key, value) in value
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| *key != "parts")
        {
            flatten(key, value, &mut flat);
        }
        for part in &ami.manifest().parts {
            flat.insert(
                format!("part {}", part.name),
                format!("{} bytes, {}", part.length, part.blake3),
            );
        }
        flat
    };
    compare("manifest", flat(a), flat(b))
}

fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(k, v)| flatten(&format!("{key}.{k}"), v, out)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, v)| flatten(&format!("{key}[{i}]"), v, out));
        }
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(plain).collect();
            out.insert(key.into(), texts.join(" "));
        }
        other => {
            out.insert(key.into(), plain(other));
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The differences of the packages, as the bills of materials name them.
pub fn packages(a: &Ami, b: &Ami) -> Result<Vec<Change>, ami::Error> {
    Ok(compare("package", versions(a)?, versions(b)?))
}

/// Name and version of each package. An image without a bill of materials has none to compare.
fn versions(ami: &Ami) -> Result<BTreeMap<String, String>, ami::Error> {
    if ami.part(PartName::Sbom).is_err() {
        return Ok(BTreeMap::new());
    }
    ami.verify_part(PartName::Sbom)?;
    let failed = |error| ami::Error::io("read the bill of materials of", ami.path(), error);
    let document = sbom::decompress(ami.reader(PartName::Sbom)?).map_err(failed)?;
    let value: Value = serde_json::from_slice(&document).map_err(|e| failed(e.into()))?;
    let packages = value["packages"].as_array().cloned().unwrap_or_default();
    let entry = |p: &Value| {
        Some((
            p["name"].as_str()?.to_owned(),
            p["versionInfo"].as_str()?.to_owned(),
        ))
    };
    Ok(packages.iter().filter_map(entry).collect())
}

/// The differences of the files: kind, mode, owner, attributes, size or target, content. Times are left out
/// unless asked for, since a rebuilt package changes them all.
pub fn files(a: &Tree, b: &Tree, times: bool) -> std::io::Result<Vec<Change>> {
    let index = |tree: &Tree| tree.walk().collect::<BTreeMap<Vec<u8>, NodeId>>();
    let (in_a, in_b) = (index(a), index(b));
    let mut changes = Vec::new();
    for path in in_a
        .keys()
        .chain(in_b.keys().filter(|path| !in_a.contains_key(*path)))
    {
        let (left, right) = (in_a.get(path), in_b.get(path));
        let before = left.map(|id| describe(a, *id, times));
        let after = right.map(|id| describe(b, *id, times));
        let change = |before, after| Change {
            section: "file",
            name: show(path),
            before,
            after,
        };
        if before != after {
            changes.push(change(before, after));
        } else if let (Some(left), Some(right)) = (left, right)
            && let Some((left, right)) = contents(a, *left, b, *right)?
        {
            let text = |digest: blake3::Hash| Some(format!("content {}", &digest.to_hex()[..16]));
            changes.push(change(text(left), text(right)));
        }
    }
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(changes)
}

fn describe(tree: &Tree, id: NodeId, times: bool) -> String {
    let node = tree.node(id);
    let meta = &node.meta;
    let mut text = format!(
        "{}{:04o} {}:{}",
        node.kind.letter(),
        meta.mode,
        meta.uid,
        meta.gid
    );
    match &node.kind {
        Kind::File(content) => text.push_str(&format!(" {} bytes", content.len())),
        Kind::Symlink(target) => text.push_str(&format!(" -> {}", String::from_utf8_lossy(target))),
        Kind::Char(major, minor) | Kind::Block(major, minor) => text.push_str(&format!(" {major}:{minor}")),
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
    }
    for (name, value) in &meta.xattrs {
        let hex: String = value.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!(" {}={hex}", String::from_utf8_lossy(name)));
    }
    if times {
        text.push_str(&format!(" {}", timestamp(meta.mtime)));
    }
    text
}

fn contents(
    a: &Tree,
    left: NodeId,
    b: &Tree,
    right: NodeId,
) -> std::io::Result<Option<(blake3::Hash, blake3::Hash)>> {
    let (Kind::File(left), Kind::File(right)) = (&a.node(left).kind, &b.node(right).kind) else {
        return Ok(None);
    };
    let digest = |content: &crate::tree::Content| -> std::io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(content.open()?)?;
        Ok(hasher.finalize())
    };
    let (left, right) = (digest(left)?, digest(right)?);
    Ok((left != right).then_some((left, right)))
}

fn compare(
    section: &'static str,
    a: BTreeMap<String, String>,
    mut b: BTreeMap<String, String>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, before) in a {
        let after = b.remove(&name);
        if after.as_ref() != Some(&before) {
            changes.push(Change {
                section,
                name,
                before: Some(before),
                after,
            });
        }
    }
    changes.extend(b.into_iter().map(|(name, after)| Change {
        section,
        name,
        before: None,
        after: Some(after),
    }));
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Meta};

    fn tree(files: &[(&str, &str, u16)]) -> Tree {
        let mut tree = Tree::new();
        for (path, text, mode) in files {
            let meta = Meta::new(*mode, 0, 0, text.len() as i64);
            tree.insert(path.as_bytes(), Kind::File(Content::bytes(*text)), meta)
                .unwrap();
        }
        tree
    }

    #[test]
    fn every_kind_of_difference_is_seen_once() {
        let a = tree(&[
            ("same", "1", 0o644),
            ("gone", "1", 0o644),
            ("mode", "1", 0o644),
            ("text", "1", 0o644),
        ]);
        let b = tree(&[
            ("same", "1", 0o644),
            ("new", "1", 0o644),
            ("mode", "1", 0o600),
            ("text", "2", 0o644),
        ]);
        let changes = files(&a, &b, false).unwrap();
        let names: Vec<_> = changes
            .iter()
            .map(|c| (c.name.as_str(), c.before.is_some(), c.after.is_some()))
            .collect();
        assert_eq!(
            names,
            [
                ("/gone", true, false),
                ("/mode", true, true),
                ("/new", false, true),
                ("/text", true, true)
            ]
        );
        assert!(changes[3].before.as_ref().unwrap().starts_with("content "));
        assert!(files(&a, &a, true).unwrap().is_empty());
    }

    #[test]
    fn times_count_only_when_asked() {
        let (a, mut b) = (tree(&[("f", "x", 0o644)]), tree(&[("f", "x", 0o644)]));
        let id = b.find(b"f").unwrap().unwrap();
        b.node_mut(id).meta.mtime = 99;
        assert!(files(&a, &b, false).unwrap().is_empty());
        assert_eq!(files(&a, &b, true).unwrap().len(), 1);
    }

    #[test]
    fn maps_are_compared_by_key() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        let changes = compare(
            "package",
            map(&[("a", "1"), ("b", "1")]),
            map(&[("b", "2"), ("c", "1")]),
        );
        let names: Vec<_> = changes.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
