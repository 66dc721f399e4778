//! A root as a tar file: how configured roots are cached and handed between processes. GNU and pax extensions
//! carry long names and extended attributes, so that `tar tvf` shows one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use tar::{EntryType, Header};

use super::Damage;
use super::entries::{self, EntryKind};
use super::pax::XATTR;
use crate::tree::{self, Content, DataReader, Kind, Meta, Node, NodeId, Piece, Run, Tree};

/// Files up to this size are read with the index instead of later, one by one.
const INLINE: u64 = 4096;
const BUFFER: usize = 1 << 18;
/// Files from this size on are searched for holes. Smaller ones have nothing to gain.
const SPARSE_FROM: u64 = 1 << 20;
/// Most bytes of a name that only tools without knowledge of holes see.
const MAX_OTHER: usize = 64;
/// A run of zeros becomes a hole from this length on.
const HOLE: u64 = 64 << 10;

/// Writes a tree.
pub fn write(tree: &Tree, out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(out);
    let mut first_names: HashMap<NodeId, Vec<u8>> = HashMap::new();
    for (path, id) in tree.walk() {
        let node = tree.node(id);
        let name = if path.is_empty() {
            b"./".to_vec()
        } else {
            [b"./", &*path].concat()
        };
        let mut header = header(node)?;
        if node.links > 1 && !node.is_dir() {
            if let Some(first) = first_names.get(&id) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                builder.append_link(&mut header, os(&name), os(first))?;
                continue;
            }
            first_names.insert(id, name.clone());
        }
        let xattrs: Vec<(String, &[u8])> = node
            .meta
            .xattrs
            .iter()
            .map(|(key, value)| {
                (
                    String::from_utf8_lossy(&[XATTR, key].concat()).into_owned(),
                    &value[..],
                )
            })
            .collect();
        if let Kind::File(content) = &node.kind
            && content.len() >= SPARSE_FROM
        {
            let runs = tree::runs(content, HOLE)?;
            if runs.iter().any(|run| matches!(run, Run::Hole(_))) {
                sparse(&mut builder, header, &name, xattrs, content, &runs)?;
                continue;
            }
        }
        builder.append_pax_extensions(xattrs.iter().map(|(key, value)| (key.as_str(), *value)))?;
        match &node.kind {
            Kind::File(content) => {
                let room = content.len().min(BUFFER as u64) as usize;
                let reader = BufReader::with_capacity(room, content.open()?);
                builder.append_data(&mut header, os(&name), reader)?;
            }
            Kind::Symlink(target) => builder.append_link(&mut header, os(&name), os(target))?,
            _ => builder.append_data(&mut header, os(&name), io::empty())?,
        }
    }
    builder.into_inner()?.flush()
}

/// Appends a file with holes, as GNU tar does in its version 1.0 of pax archives: a map and the data behind
/// it. Other tools see a file of another name that holds both.
fn sparse(
    builder: &mut tar::Builder<impl Write>,
    mut header: Header,
    name: &[u8],
    xattrs: Vec<(String, &[u8])>,
    content: &Content,
    runs: &[Run],
) -> io::Result<()> {
    let (mut at, mut stored) = (0, 0);
    let mut pieces = Vec::new();
    for run in runs {
        match run {
            Run::Hole(length) => at += length,
            Run::Data(length) => {
                pieces.push((at, *length));
                (at, stored) = (at + length, stored + length);
            }
        }
    }
    if matches!(runs.last(), Some(Run::Hole(_))) {
        pieces.push((at, 0));
    }
    let mut map = format!("{}\n", pieces.len());
    for (offset, length) in &pieces {
        map += &format!("{offset}\n{length}\n");
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    let length = content.len().to_string();
    let mut records = xattrs;
    for (key, value) in [
        ("major", &b"1"[..]),
        ("minor", b"0"),
        ("name", name),
        ("realsize", length.as_bytes()),
    ] {
        records.push((format!("GNU.sparse.{key}"), value));
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value)))?;
    header.set_size(map.len() as u64 + stored);
    let data = DataReader::new(content, runs)?;
    // GNU tar takes the records for those of a file with holes in headers of POSIX only. A name that fits
    // needs no entry of its own before this one, which would come between the records and the file.
    header.as_mut_bytes()[257..265].copy_from_slice(b"ustar\x0000");
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let other = [b"./GNUSparseFile.0/", &last[..last.len().min(MAX_OTHER)]].concat();
    builder.append_data(&mut header, os(&other), (&map[..]).chain(data))
}

fn header(node: &Node) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        xattrs: _,
    } = &node.meta;
    header.set_mode(u32::from(*mode));
    header.set_uid(u64::from(*uid));
    header.set_gid(u64::from(*gid));
    header.set_mtime(mtime.cast_unsigned());
    if *mtime < 0 {
        // The sign goes on in the bytes above those of the number.
        header.as_old_mut().mtime[..4].fill(0xff);
    }
    header.set_size(0);
    let kind = match &node.kind {
        Kind::File(content) => {
            header.set_size(content.len());
            EntryType::Regular
        }
        Kind::Dir => EntryType::Directory,
        Kind::Symlink(_) => EntryType::Symlink,
        Kind::Char(major, minor) => device(&mut header, *major, *minor, EntryType::Char)?,
        Kind::Block(major, minor) => device(&mut header, *major, *minor, EntryType::Block)?,
        // A socket file without its process is nothing; a named pipe is the nearest thing to keep its name.
        Kind::Fifo | Kind::Socket => EntryType::Fifo,
    };
    header.set_entry_type(kind);
    Ok(header)
}

fn device(header: &mut Header, major: u32, minor: u32, kind: EntryType) -> io::Result<EntryType> {
    header.set_device_major(major)?;
    header.set_device_minor(minor)?;
    Ok(kind)
}

fn os(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Reads a tree. Larger files stay in the archive, which must not change while the tree is in use.
pub fn read(path: &Path) -> Result<Tree, Damage> {
    let file = Arc::new(File::open(path).map_err(Damage::Read)?);
    index(&file, BufReader::with_capacity(BUFFER, &*file))
}

/// As [`read`], with the digest of the whole archive.
pub fn read_with_digest(path: &Path) -> Result<(Tree, blake3::Hash), Damage> {
    let file = Arc::new(File::open(path).map_err(Damage::Read)?);
    let mut hashing = Hashing {
        file: &file,
        hasher: blake3::Hasher::new(),
    };
    let tree = index(&file, BufReader::with_capacity(BUFFER, &mut hashing))?;
    // What follows the last entry.
    io::copy(&mut hashing, &mut io::sink()).map_err(Damage::Read)?;
    Ok((tree, hashing.hasher.finalize()))
}

/// Reads a file and takes its digest on the way.
struct Hashing<'a> {
    file: &'a File,
    hasher: blake3::Hasher,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// The tree of the archive in `file`, which `stream` reads from its beginning.
fn index(file: &Arc<File>, stream: impl Read) -> Result<Tree, Damage> {
    let mut tree = Tree::new();
    entries::visit(stream, |entry, reader| {
        let kind = match &entry.kind {
            EntryKind::File(_) if entry.pieces.is_some() => {
                let pieces = entry.pieces.as_deref().unwrap_or_default();
                Kind::File(Content::pieces(
                    file.clone(),
                    Piece::shifted(pieces, entry.offset),
                ))
            }
            EntryKind::File(len) if *len > INLINE => Kind::File(Content::Range {
                file: file.clone(),
                offset: entry.offset,
                len: *len,
            }),
            EntryKind::File(_) => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map_err(Damage::Read)?;
                Kind::File(Content::bytes(bytes))
            }
            EntryKind::Dir => Kind::Dir,
            EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
            EntryKind::Char(major, minor) => Kind::Char(*major, *minor),
            EntryKind::Block(major, minor) => Kind::Block(*major, *minor),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Hardlink(target) => {
                let show = crate::tree::show;
                let missing = || Damage::Hardlink(show(&entry.path), show(target));
                let id = tree.find(target)?.ok_or_else(missing)?;
                return Ok(tree.link(&entry.path, id)?);
            }
        };
        let mut meta = Meta::new(entry.mode, entry.uid, entry.gid, entry.mtime);
        meta.xattrs.clone_from(&entry.xattrs);
        tree.insert(&entry.path, kind, meta)?;
        Ok::<_, Damage>(())
    })?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_round_trips() {
        let mut tree = Tree::new();
        tree.insert(b"", Kind::Dir, Meta::new(0o755, 0, 0, 5)).unwrap();
        tree.insert(b"dir", Kind::Dir, Meta::new(0o1777, 1, 2, 7))
            .unwrap();
        let long = [b"dir/", &b"x".repeat(200)[..]].concat();
        let mut meta = Meta::new(0o4755, 3, 4, 9);
        meta.xattrs
            .insert(b"security.capability".to_vec(), vec![0, 1, 2, 10, 255]);
        tree.insert(b"old", Kind::Fifo, Meta::new(0o600, 0, 0, -1000))
            .unwrap();
        let id = tree
            .insert(&long, Kind::File(Content::bytes(vec![7; 100_000])), meta)
            .unwrap();
        tree.link(b"second", id).unwrap();
        let target = b"y".repeat(300);
        tree.insert(b"link", Kind::Symlink(target.clone()), Meta::new(0o777, 0, 0, 0))
            .unwrap();
        tree.insert(b"null", Kind::Char(1, 3), Meta::new(0o666, 0, 0, 0))
            .unwrap();
        tree.insert(
            b"small",
            Kind::File(Content::bytes(b"z".to_vec())),
            Meta::new(0o644, 0, 0, 0),
        )
        .unwrap();

        let file = tempfile::NamedTempFile::new().unwrap();
        write(&tree, &file).unwrap();
        let again = read(file.path()).unwrap();
        let show = |tree: &Tree| {
            let line = |(path, id): (Vec<u8>, NodeId)| {
                let node = tree.node(id);
                let content = match &node.kind {
                    Kind::File(content) => content.read(1 << 20).unwrap(),
                    Kind::Symlink(target) => target.clone(),
                    other => format!("{other:?}").into_bytes(),
                };
                (path, node.meta.clone(), node.links, content)
            };
            tree.walk()
                .map(|(path, id)| line((path.to_vec(), id)))
                .collect::<Vec<_>>()
        };
        assert_eq!(show(&again), show(&tree));
        assert_eq!(again.find(b"second").unwrap(), again.find(&long).unwrap());
    }
}
