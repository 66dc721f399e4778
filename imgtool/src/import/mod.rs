//! Root file systems that others made: a tar, a container image in an archive, a raw ext4.

mod container;
mod image;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use container::Config;
pub use image::{Error as ImageError, Options, image};

use crate::imagefs;
use crate::tree::{Kind, Meta, Spool, Tree, TreeError};
use crate::unpack::archive::{self, Entry, EntryKind};
use crate::unpack::bounds::{self, Capped};

/// What one archive or layer may unpack to: twice the largest container images that are in use. A decompression bomb
/// ends here.
const MAX_UNPACKED: u64 = 64 << 30;

/// Why a source cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}\n  try: check the path", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is a raw image, but not of an ext4 that is known here.
    #[error(transparent)]
    ImageFs(#[from] imagefs::Error),
    /// It is a tar, but damaged or with something that an image cannot hold.
    #[error(
        "cannot import {what}: {why}\n  try: write the archive again with GNU tar, `docker save` or `skopeo copy`"
    )]
    Archive {
        /// The file, and the layer in it.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What was found in a source.
#[derive(Debug)]
pub struct Imported {
    /// The files.
    pub tree: Tree,
    /// What a container image says about itself.
    pub config: Option<Config>,
}

/// Read a source of any kind. `scratch` is a directory for temporary files.
pub fn load(path: &Path, machine: ami::Architecture, scratch: &Path) -> Result<Imported, Error> {
    let io = |source| Error::Io {
        path: path.into(),
        source,
    };
    let file = Arc::new(File::open(path).map_err(io)?);
    let length = file.metadata().map_err(io)?.len();
    let mut magic = [0; 2];
    // The ext4 superblock is at 1024; its magic at 0x38 in it.
    if length > 2048 && file.read_exact_at(&mut magic, 1024 + 0x38).is_ok() && magic == [0x53, 0xef] {
        let tree = imagefs::of_file(file, 0, length, path)?;
        return Ok(Imported { tree, config: None });
    }
    let spool = Spool::new_in(scratch).map_err(|source| Error::Io {
        path: scratch.into(),
        source,
    })?;
    let mut layer = Layer {
        tree: Tree::new(),
        spool,
        whiteouts: false,
    };
    let what = path.display().to_string();
    if container::is_one(&file).map_err(io)? {
        let mut tree = Tree::new();
        let outer = Layer {
            tree: std::mem::take(&mut tree),
            ..layer
        };
        let outer = outer.apply(&what, decompress(&file).map_err(io)?)?;
        return container::assemble(&what, outer, machine, scratch);
    }
    layer = layer.apply(&what, decompress(&file).map_err(io)?)?;
    Ok(Imported {
        tree: layer.tree,
        config: None,
    })
}

/// A tar stream out of what `tar`, `docker save` and registries compress with, by magic.
fn decompress(file: &File) -> io::Result<Box<dyn Read + '_>> {
    decompress_stream(Cursor { file, at: 0 })
}

fn decompress_stream<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    let start = io::BufRead::fill_buf(&mut stream)?;
    let plain: Box<dyn Read> = match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(stream)?),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Box::new(bounds::xz_streams(stream)?),
        _ => Box::new(stream),
    };
    Ok(Box::new(Capped::new(plain, MAX_UNPACKED)))
}

/// `Read` from the start, whatever the file's own position is.
struct Cursor<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// A tree that archives are unpacked over, one after another.
struct Layer {
    tree: Tree,
    spool: Spool,
    /// `.wh.` entries remove what lower layers have (OCI image specification, "Whiteouts").
    whiteouts: bool,
}

impl Layer {
    fn apply(mut self, what: &str, stream: impl Read) -> Result<Self, Error> {
        let mut failed = None;
        let read = archive::read(stream, |entry, reader| {
            if failed.is_none()
                && let Err(why) = self.entry(entry, reader)
            {
                failed = Some(why);
            }
            Ok(())
        });
        let why = match (read, failed) {
            (Ok(()), None) => return Ok(self),
            (_, Some(why)) => why,
            (Err(damage), None) => damage.to_string(),
        };
        Err(Error::Archive {
            what: what.to_owned(),
            why,
        })
    }

    fn entry(&mut self, entry: &Entry, reader: &mut dyn Read) -> Result<(), String> {
        let name = entry
            .path
            .rsplit(|b| *b == b'/')
            .find(|name| !name.is_empty())
            .unwrap_or_default();
        if self.whiteouts && name.starts_with(b".wh.") {
            return self.whiteout(entry, name).map_err(|e| e.to_string());
        }
        let meta = Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        };
        let kind = match &entry.kind {
            EntryKind::Dir => Kind::Dir,
            EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
            EntryKind::Char(major, minor) => Kind::Char(*major, *minor),
            EntryKind::Block(major, minor) => Kind::Block(*major, *minor),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::File(length) => {
                let mut reader = reader;
                Kind::File(self.spool.add(&mut reader, *length).map_err(|e| e.to_string())?)
            }
            EntryKind::Hardlink(target) => return self.link(&entry.path, target).map_err(|e| e.to_string()),
        };
        self.put(&entry.path, kind, meta).map_err(|e| e.to_string())
    }

    /// Insert, with missing parents made, and with a lower layer's directory giving way to something else.
    fn put(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<(), TreeError> {
        match self.tree.insert(path, kind.clone(), meta.clone()) {
            Err(TreeError::NotFound(_)) => {
                let parent = crate::tree::TreePath::parse(path)?;
                let parent = parent
                    .split_last()
                    .map(|(parent, _)| parent.as_bytes().to_vec())
                    .unwrap_or_default();
                self.tree
                    .create_dirs(&parent, &Meta::new(0o755, 0, 0, meta.mtime))?;
                self.tree.insert(path, kind, meta)?;
            }
            Err(TreeError::DirectoryInTheWay(_)) => {
                self.tree.remove(path)?;
                self.tree.insert(path, kind, meta)?;
            }
            other => drop(other?),
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let found = self.tree.find(target)?;
        let id = found.ok_or_else(|| TreeError::NotFound(crate::tree::show(target)))?;
        self.tree.link(path, id)
    }

    fn whiteout(&mut self, entry: &Entry, name: &[u8]) -> Result<(), TreeError> {
        let parent = &entry.path[..entry.path.len() - name.len()];
        if name == b".wh..wh..opq" {
            let Some(directory) = self.tree.find(parent)? else {
                return Ok(());
            };
            let names: Vec<Vec<u8>> = self
                .tree
                .children(directory)
                .map(|(name, _)| name.to_vec())
                .collect();
            for name in names {
                self.tree.remove(&[parent, b"/", &name].concat())?;
            }
            return Ok(());
        }
        self.tree.remove(&[parent, &name[4..]].concat())?;
        Ok(())
    }
}

/// Environment variables from `KEY=value` texts.
fn environment(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
