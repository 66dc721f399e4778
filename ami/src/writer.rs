//! Writing an AMI: parts first, then what follows from them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::header::Header;
use crate::layout::MANIFEST_PARTITION;
use crate::newfile::NewFile;
use crate::{
    AmiId, ChunkTable, Digest, Error, Layout, Manifest, Part, PartName, SCHEMA, SCHEMA_WARM, gpt, layout,
};

/// Content for a part.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A range of a file; its holes stay holes.
    File {
        /// The file.
        file: &'a File,
        /// First byte.
        offset: u64,
    },
}

/// An AMI being written. It appears under its name when [`Writer::finish`] succeeds, and not before.
#[derive(Debug)]
pub struct Writer {
    out: NewFile,
    layout: Layout,
}

impl Writer {
    /// Start an image with parts of these lengths in bytes, in the order of [`PartName`].
    pub fn create(path: &Path, lengths: &[(PartName, u64)]) -> Result<Self, Error> {
        for (name, length) in lengths {
            if !(1..=layout::MAX_PART).contains(length) {
                return Err(Error::Manifest(format!(
                    "the {name} part cannot have {length} bytes"
                )));
            }
        }
        let layout = Layout::new(lengths);
        let out = NewFile::create(path)?;
        out.file()
            .set_len(layout.file_length)
            .map_err(|e| Error::io("write", path, e))?;
        Ok(Self { out, layout })
    }

    /// The file, to write a part's content at [`Layout::offset`] and above. What is not written is zero.
    pub fn file(&self) -> &File {
        self.out.file()
    }

    /// Where the parts are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fill a whole part.
    pub fn fill(&self, name: PartName, source: Source<'_>) -> Result<(), Error> {
        let fail = |e| Error::io("write", self.out.target(), e);
        let (_, offset, length) = *self.part(name)?;
        match source {
            Source::Bytes(bytes) if bytes.len() as u64 != length => Err(Error::Manifest(format!(
                "{} bytes for the {name} part of {length}",
                bytes.len()
            ))),
            Source::Bytes(bytes) => self.file().write_all_at(bytes, offset).map_err(fail),
            Source::File { file, offset: from } => {
                copy_sparse(file, from, self.file(), offset, length).map_err(fail)
            }
        }
    }

    fn part(&self, name: PartName) -> Result<&(PartName, u64, u64), Error> {
        let missing = || Error::NoSuchPart {
            path: self.out.target().into(),
            part: name,
        };
        self.layout
            .parts()
            .iter()
            .find(|part| part.0 == name)
            .ok_or_else(missing)
    }

    /// Digest the parts, write manifest and tables, and give the file its name. `manifest.parts` is filled in
    /// here; `progress` is called with the number of bytes digested.
    pub fn finish(
        self,
        mut manifest: Manifest,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(AmiId, Manifest), Error> {
        let file = self.out.file();
        let fail = |e| Error::io("write", self.out.target(), e);
        manifest.parts.clear();
        let mut chunks = Vec::new();
        for (name, offset, length) in self.layout.parts() {
            let table = ChunkTable::compute(file, *offset, *length, progress).map_err(fail)?;
            manifest.parts.push(Part {
                name: *name,
                offset: *offset,
                length: *length,
                blake3: table.root(),
            });
            if *name == PartName::Root {
                chunks = table.to_bytes();
            }
        }
        manifest.schema = match manifest.warm {
            None => SCHEMA,
            Some(_) => SCHEMA_WARM,
        };
        manifest.validate()?;
        let bytes = manifest.to_bytes()?;
        if bytes.len() as u64 > layout::MANIFEST_SPACE {
            return Err(Error::Manifest(format!(
                "it has {} bytes, more than 256 KiB",
                bytes.len()
            )));
        }
        let digest = Digest::of(&bytes);
        let header = Header {
            schema: manifest.schema,
            manifest_length: bytes.len() as u32,
            chunks: self.layout.chunks,
            manifest: digest,
        };
        let tables = gpt::tables(&manifest, &digest, &self.layout)?;
        let pieces: [(&[u8], u64); 5] = [
            (&chunks, self.layout.chunks_offset()),
            (&bytes, self.layout.manifest_offset()),
            (&header.to_block(), MANIFEST_PARTITION),
            (&tables.head, 0),
            (&tables.tail, self.layout.file_length - gpt::TAIL as u64),
        ];
        for (piece, at) in pieces {
            file.write_all_at(piece, at).map_err(fail)?;
        }
        self.out.publish()?;
        Ok((AmiId::of(&digest), manifest))
    }
}

/// Copy a range between files, holes excepted. The destination must be zero there. Shares blocks on file
/// systems that can (reflinks).
pub fn copy_sparse(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<()> {
    if from.metadata()?.len() < from_at.saturating_add(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let end = from_at + length;
    let mut at = from_at;
    while at < end {
        let Some((data, hole)) = next_data(from, at, end)? else {
            break;
        };
        copy_range(from, data, to, to_at + (data - from_at), hole - data)?;
        at = hole;
    }
    Ok(())
}

/// Bytes of a range of a file that are no holes.
pub(crate) fn stored(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    let (mut at, end) = (offset, offset + length);
    let mut stored = 0;
    while at < end {
        let Some((data, hole)) = next_data(file, at, end)? else {
            break;
        };
        stored += hole - data;
        at = hole;
    }
    Ok(stored)
}

/// The next extent of data in `[at, end)`. On file systems without holes, everything is data.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| lseek(file.as_fd(), at as i64, whence);
    let data = match seek(at, Whence::SeekData) {
        Ok(data) => data as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some((at, end))),
        Err(errno) => return Err(errno.into()),
    };
    if data >= end {
        return Ok(None);
    }
    let hole = seek(data, Whence::SeekHole)? as u64;
    Ok(Some((data, hole.min(end))))
}

/// In the kernel where it can (which shares blocks on file systems with reflinks), else through a buffer.
fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<()> {
    let (mut done, mut in_kernel) = (0, true);
    let mut buffer = Vec::new();
    while done < length {
        let left = length - done;
        if in_kernel {
            let (mut source, mut target) = ((from_at + done) as i64, (to_at + done) as i64);
            let want = left.min(1 << 30) as usize;
            match nix::fcntl::copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => done += got as u64,
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => in_kernel = false,
                Err(errno) => return Err(errno.into()),
            }
            continue;
        }
        buffer.resize(1 << 20, 0);
        let piece = &mut buffer[..left.min(1 << 20) as usize];
        from.read_exact_at(piece, from_at + done)?;
        to.write_all_at(piece, to_at + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}
