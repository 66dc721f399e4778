//! The root file system: a tree as an ext4, written by `mkext4` behind one small interface.
//!
//! `mkext4` gives the same bytes for the same calls; here the calls are made the same for the same tree:
//! names in sorted order, the UUID derived from the tree, holes found in the content and not in the host's
//! files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ami::MAX_PART;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Options, RegionSink, SparseSeg, SpecialKind};
use uuid::Uuid;

use super::Error;
use crate::progress::Step;
use crate::tree::{DataReader, Kind, NodeId, Run, Tree, runs, show};

/// The block size, and the unit of holes.
const BLOCK: u64 = 4096;
/// Files from this size on are searched for holes. Smaller ones have nothing to gain.
const SPARSE_FROM: u64 = 1 << 20;
/// A run of zero blocks becomes a hole from this length on.
const HOLE: u64 = 64 << 10;
/// Room that an automatic size leaves besides the content: a quarter of it, at least 128 MiB. Free space is a
/// hole in the image and costs nothing; a root that is too small costs a person's time.
const HEADROOM: u64 = 128 << 20;
/// Sizes are multiples of this.
const GRANULE: u64 = 4 << 20;
/// Smallest file system: what `mkext4` makes with a journal.
const SMALLEST: u64 = 16 << 20;

/// A file system whose every place is decided: it can be written once or often.
pub trait FileSystem {
    /// Its length in bytes, a multiple of 4096.
    fn length(&self) -> u64;
    /// Write it into a file that is zero there, from `offset` on. `step` advances by content bytes.
    fn write(&self, file: &File, offset: u64, step: &dyn Step) -> Result<(), Error>;
}

/// What the tree itself does not say.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Length in bytes; nothing for content and headroom.
    pub size: Option<u64>,
    /// The file system's own times, in seconds since 1970.
    pub epoch: i64,
}

/// Lay out a tree as an ext4.
pub fn plan<'a>(tree: &'a Tree, settings: Settings) -> Result<impl FileSystem + 'a, Error> {
    if let Some(size) = settings.size.filter(|size| *size > MAX_PART) {
        return Err(Error::TooLarge {
            size,
            largest: MAX_PART,
        });
    }
    let files = find_holes(tree)?;
    let uuid = identity(tree);
    let mut size = match settings.size {
        Some(size) => size.next_multiple_of(BLOCK),
        None => automatic_size(tree),
    };
    // The estimate is above what a layout needs; should it not be, the next try is larger.
    for _ in 0..4 {
        match lay_out(tree, &files, uuid, size, settings.epoch) {
            Err(Error::TooSmall { .. }) if settings.size.is_none() => {
                size = (size * 5 / 4).next_multiple_of(GRANULE)
            }
            other => return other,
        }
    }
    lay_out(tree, &files, uuid, size, settings.epoch)
}

/// Space for the content, its metadata and headroom.
pub fn automatic_size(tree: &Tree) -> u64 {
    let mut content = 0;
    for (_, id) in tree.walk() {
        let node = tree.node(id);
        // A block of slack a file: directory entries, extent blocks, attributes.
        content += node.size().next_multiple_of(BLOCK) / u64::from(node.links) + BLOCK / 4 + 256;
        if node.is_dir() {
            content += BLOCK;
        }
    }
    (content + (content / 4).max(HEADROOM))
        .max(SMALLEST)
        .next_multiple_of(GRANULE)
}

/// A UUID that is the tree's own: its names, kinds, owners, times and sizes.
fn identity(tree: &Tree) -> Uuid {
    let mut hasher = blake3::Hasher::new();
    for (path, id) in tree.walk() {
        let node = tree.node(id);
        let meta = &node.meta;
        let line = format!(
            "{} {:o} {}:{} {} {}\0",
            node.kind.letter(),
            meta.mode,
            meta.uid,
            meta.gid,
            meta.mtime,
            node.size()
        );
        hasher.update(&path).update(b"\0").update(line.as_bytes());
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, hasher.finalize().as_bytes())
}

type Holes = std::collections::BTreeMap<NodeId, Vec<Run>>;

/// The runs of every large file that has holes. They are found in the content, so that a tree unpacked on a
/// file system without holes gives the same image.
fn find_holes(tree: &Tree) -> Result<Holes, Error> {
    let mut holes = Holes::new();
    for (path, id) in tree.walk() {
        if let Kind::File(content) = &tree.node(id).kind
            && content.len() >= SPARSE_FROM
            && !holes.contains_key(&id)
        {
            let runs = runs(content, HOLE).map_err(|source| Error::Read {
                what: show(&path),
                source,
            })?;
            if runs.iter().any(|run| matches!(run, Run::Hole(_))) {
                holes.insert(id, runs);
            }
        }
    }
    Ok(holes)
}

fn segments(runs: &[Run]) -> Vec<SparseSeg> {
    let segment = |run: &Run| match *run {
        Run::Data(length) => SparseSeg::Data(length),
        Run::Hole(length) => SparseSeg::Hole(length),
    };
    runs.iter().map(segment).collect()
}

struct Plan<'a> {
    tree: &'a Tree,
    layout: Layout,
    /// Files in the order of declaration, which is the order of their blocks.
    files: Vec<(Vec<u8>, NodeId, InodeHandle)>,
    holes: Holes,
}

fn lay_out<'a>(tree: &'a Tree, holes: &Holes, uuid: Uuid, size: u64, epoch: i64) -> Result<Plan<'a>, Error> {
    let mut options = Options::new(size, *uuid.as_bytes(), epoch.clamp(0, i64::from(u32::MAX)));
    options.label = Some("kiln-root".into());
    options.reserved_percent = 1;
    let by_ratio = size / 16384;
    options.inodes = InodeCount::Exact(
        (tree.len() as u64 * 5 / 4 + 4096)
            .max(by_ratio)
            .min(u64::from(u32::MAX)) as u32,
    );
    let mut build = Build {
        tree,
        holes,
        builder: FsBuilder::new(options).map_err(|e| too_small(size, &e))?,
        seen: Default::default(),
        files: Vec::new(),
    };
    for (path, id) in tree.walk() {
        build.declare(&path, id)?;
    }
    let Build { builder, files, .. } = build;
    let layout = builder.seal().map_err(|e| too_small(size, &e))?;
    Ok(Plan {
        tree,
        layout,
        files,
        holes: holes.clone(),
    })
}

/// Everything that can be wrong after the declarations is a matter of space.
fn too_small(size: u64, error: &mkext4::Error) -> Error {
    Error::TooSmall {
        size,
        why: error.to_string(),
    }
}

struct Build<'a> {
    tree: &'a Tree,
    holes: &'a Holes,
    builder: FsBuilder,
    seen: std::collections::BTreeMap<NodeId, InodeHandle>,
    files: Vec<(Vec<u8>, NodeId, InodeHandle)>,
}

impl Build<'_> {
    fn declare(&mut self, path: &[u8], id: NodeId) -> Result<(), Error> {
        let unstorable = |why: String| Error::Unstorable {
            path: show(path),
            why,
        };
        let failed = |e: mkext4::Error| unstorable(e.to_string());
        let node = self.tree.node(id);
        let meta = mkext4::Meta::new(
            node.meta.mode & 0o7777,
            node.meta.uid,
            node.meta.gid,
            (node.meta.mtime, 0),
        );
        let builder = &mut self.builder;
        let handle = if path.is_empty() {
            builder.set_meta(mkext4::ROOT, meta).map_err(failed)?;
            mkext4::ROOT
        } else {
            let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
                Some(at) => (self.tree.find(&path[..at])?, &path[at + 1..]),
                None => (Some(Tree::ROOT), path),
            };
            let parent = parent.and_then(|id| self.seen.get(&id)).copied();
            let parent = parent.ok_or_else(|| unstorable("its directory was not declared".into()))?;
            let name = std::str::from_utf8(name).map_err(|_| unstorable("its name is not UTF-8".into()))?;
            if let Some(handle) = self.seen.get(&id) {
                return builder.hardlink(parent, name, *handle).map_err(failed);
            }
            match &node.kind {
                Kind::Dir => builder.mkdir(parent, name, meta),
                Kind::File(content) => {
                    let file = match self.holes.get(&id) {
                        Some(runs) => builder.file_sparse(parent, name, meta, &segments(runs)),
                        None => builder.file(parent, name, meta, content.len()),
                    };
                    file.inspect(|handle| self.files.push((path.to_vec(), id, *handle)))
                }
                Kind::Symlink(target) => {
                    let target = std::str::from_utf8(target)
                        .map_err(|_| unstorable("its target is not UTF-8".into()))?;
                    builder.symlink(parent, name, target, meta)
                }
                Kind::Char(major, minor) => builder.mknod(
                    parent,
                    name,
                    meta,
                    SpecialKind::Char {
                        major: *major,
                        minor: *minor,
                    },
                ),
                Kind::Block(major, minor) => builder.mknod(
                    parent,
                    name,
                    meta,
                    SpecialKind::Block {
                        major: *major,
                        minor: *minor,
                    },
                ),
                Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
                Kind::Socket => builder.mknod(parent, name, meta, SpecialKind::Socket),
            }
            .map_err(failed)?
        };
        for (name, value) in &node.meta.xattrs {
            let name = std::str::from_utf8(name)
                .map_err(|_| unstorable("an attribute's name is not UTF-8".into()))?;
            let value = if name.starts_with("system.posix_acl_") {
                acl_on_disk(value).ok_or_else(|| unstorable("its ACL is malformed".into()))?
            } else {
                value.clone()
            };
            builder.set_xattr(handle, name, &value).map_err(failed)?;
        }
        self.seen.insert(id, handle);
        Ok(())
    }
}

/// A POSIX ACL from the form of `getxattr` (version 2, linux/posix_acl_xattr.h) to that on disk (version 1,
/// fs/ext4/acl.h): entries without a qualifier lose their id field.
fn acl_on_disk(acl: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let (version, entries) = acl.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if *version != 2u32.to_le_bytes() || !rest.is_empty() {
        return None;
    }
    let mut out = 1u32.to_le_bytes().to_vec();
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let length = if tag == USER || tag == GROUP { 8 } else { 4 };
        out.extend_from_slice(&entry[..length]);
    }
    Some(out)
}

/// The reverse of [`acl_on_disk`], for reading images.
pub fn acl_from_disk(acl: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = acl.split_first_chunk::<4>()?;
    if *version != 1u32.to_le_bytes() {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let tag = u16::from_le_bytes(*rest.first_chunk()?);
        let length = if tag == 0x02 || tag == 0x08 { 8 } else { 4 };
        out.extend_from_slice(rest.get(..length)?);
        if length == 4 {
            out.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        rest = &rest[length..];
    }
    Some(out)
}

impl FileSystem for Plan<'_> {
    fn length(&self) -> u64 {
        self.layout.image_len()
    }

    fn write(&self, file: &File, offset: u64, step: &dyn Step) -> Result<(), Error> {
        let write = |e: mkext4::Error| match e {
            mkext4::Error::Io(e) => Error::Ami(ami::Error::io("write", Path::new("the image"), e)),
            other => Error::Ext4(other),
        };
        let mut sink = Sink {
            file,
            base: offset,
            at: 0,
            pending: Vec::with_capacity(WRITE),
        };
        let mut writer = self.layout.writer(&mut sink).map_err(write)?;
        for (path, id, handle) in &self.files {
            let Kind::File(content) = &self.tree.node(*id).kind else {
                continue;
            };
            if content.is_empty() {
                continue;
            }
            let unreadable = |source| Error::Read {
                what: show(path),
                source,
            };
            let runs = self.holes.get(id).map_or(&[][..], Vec::as_slice);
            // A file of nothing but holes has no blocks to fill.
            if !runs.is_empty() && !runs.iter().any(|run| matches!(run, Run::Data(_))) {
                continue;
            }
            let mut reader = DataReader::new(content, runs).map_err(unreadable)?;
            writer.fill(*handle, &mut reader).map_err(write)?;
            step.advance(content.len());
        }
        writer.finish().map_err(write)?;
        sink.flush().map_err(|e| write(mkext4::Error::Io(e)))
    }
}

/// Bytes gathered before a write: most files are small and lie behind each other.
const WRITE: usize = 1 << 20;

/// Positioned writes at an offset of the image file, neighbours joined. Zeros are already there.
struct Sink<'a> {
    file: &'a File,
    base: u64,
    at: u64,
    pending: Vec<u8>,
}

impl Sink<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.base + self.at)?;
        self.pending.clear();
        Ok(())
    }
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let follows = self.at + self.pending.len() as u64 == offset;
        if !follows || self.pending.len() + bytes.len() > WRITE {
            self.flush()?;
            self.at = offset;
        }
        if bytes.len() >= WRITE {
            self.file.write_all_at(bytes, self.base + offset)?;
            self.at = offset + bytes.len() as u64;
        } else {
            self.pending.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn zeros(&mut self, offset: u64, length: u64) -> io::Result<()> {
        // The rest of a file's last block: keep the neighbours joined.
        if length < BLOCK && self.at + self.pending.len() as u64 == offset && !self.pending.is_empty() {
            self.pending.resize(self.pending.len() + length as usize, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "ext4_tests.rs"]
mod tests;
