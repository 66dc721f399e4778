//! Root file systems that others made: a tar, a container image in an archive, a raw ext4.

mod container;
mod image;
mod layer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use container::Config;
pub use image::{Error as ImageError, KernelSource, Options, image};

use displaydoc::Display;
use layer::Layer;

use crate::advice::Advice;
use crate::decompress::{Capped, xz_streams};
use crate::imagefs;
use crate::tree::Tree;

/// What one archive or layer may unpack to: twice the largest container images that are in use. A
/// decompression bomb ends here.
const MAX_UNPACKED: u64 = 64 << 30;

/// Why a source cannot be imported.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// cannot read {path}: {source}
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// {0}
    ImageFs(#[from] imagefs::Error),
    /// cannot import {what}: {why}
    Archive {
        /// The file, and the layer in it.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// {what} has no image for {wanted}, only for {found}
    NoPlatform {
        /// The file.
        what: String,
        /// What was wanted.
        wanted: ami::Architecture,
        /// What it has: `linux/386`.
        found: String,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::ImageFs(error) => error.advice(),
            Self::Io { .. } => Some("check the path".into()),
            Self::NoPlatform { .. } => Some(
                "--arch with one of these that images can have: x86_64 (amd64), arm64 or i386 (386)".into(),
            ),
            Self::Archive { .. } => {
                Some("write the archive again with GNU tar, `docker save` or `skopeo copy`".into())
            }
        }
    }
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
    let wrong = |why: &str| Error::Archive {
        what: path.display().to_string(),
        why: why.to_owned(),
    };
    if length == 0 {
        return Err(wrong("it is empty"));
    }
    let imported = load_any(path, file, length, machine, scratch)?;
    match imported.tree.is_empty() {
        true => Err(wrong("there are no files in it")),
        false => Ok(imported),
    }
}

fn load_any(
    path: &Path,
    file: Arc<File>,
    length: u64,
    machine: ami::Architecture,
    scratch: &Path,
) -> Result<Imported, Error> {
    let io = |source| Error::Io {
        path: path.into(),
        source,
    };
    let mut magic = [0; 2];
    // The ext4 superblock is at 1024; its magic at 0x38 in it.
    if length > 2048 && file.read_exact_at(&mut magic, 1024 + 0x38).is_ok() && magic == [0x53, 0xef] {
        let tree = imagefs::of_file(file, 0, length, path)?;
        return Ok(Imported { tree, config: None });
    }
    let what = path.display().to_string();
    let container = container::is_one(&file).map_err(io)?;
    let mut layer = Layer::new(scratch, false)?;
    layer.apply(&what, decompress(&file).map_err(io)?)?;
    if container {
        return container::assemble(&what, &layer.tree, machine, scratch);
    }
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
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Box::new(xz_streams(stream)?),
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

/// Environment variables from `KEY=value` texts.
fn environment(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[cfg(test)]
mod gnu_tests;
#[cfg(test)]
pub(super) mod tests;
