//! Where the bytes of a file are until they are written into the image.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The content of a regular file. Cheap to clone; bytes are read when they are needed.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory: for small generated files.
    Bytes(Arc<[u8]>),
    /// A range of an open file, such as a [`Spool`] or the root part of an image.
    Range {
        /// The file.
        file: Arc<File>,
        /// Its first byte, in bytes from the start of `file`.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A whole file by name, opened only while it is read: a configured root has more files than a process
    /// may hold open.
    Path {
        /// The file on the host.
        path: Arc<Path>,
        /// Its length in bytes when it was scanned; reading fails when it has changed since.
        len: u64,
    },
    /// Several ranges of an open file, with holes between them: a file inside a file system.
    Pieces {
        /// The file.
        file: Arc<File>,
        /// Its parts in order.
        pieces: Arc<[Piece]>,
        /// The sum of their lengths.
        len: u64,
    },
}

/// A part of [`Content::Pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Piece {
    /// Bytes of the file.
    Data {
        /// The first, in bytes from the start of the file.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// This many zeros.
    Hole(u64),
}

impl Piece {
    /// The same pieces, where the first byte of the file is `by` bytes further on.
    pub fn shifted(pieces: &[Piece], by: u64) -> Vec<Piece> {
        let shift = |piece: &Piece| match *piece {
            Piece::Data { offset, length } => Piece::Data {
                offset: offset + by,
                length,
            },
            hole => hole,
        };
        pieces.iter().map(shift).collect()
    }

    fn length(self) -> u64 {
        match self {
            Piece::Data { length, .. } | Piece::Hole(length) => length,
        }
    }
}

impl Content {
    /// Content from bytes.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Content::Bytes(bytes.into().into())
    }

    /// Content of a file on the host.
    pub fn path(path: impl Into<PathBuf>, len: u64) -> Self {
        Content::Path {
            path: path.into().into(),
            len,
        }
    }

    /// Content of ranges of a file.
    pub fn pieces(file: Arc<File>, pieces: Vec<Piece>) -> Self {
        let len = pieces.iter().map(|piece| piece.length()).sum();
        match pieces[..] {
            [Piece::Data { offset, length: len }] => Content::Range { file, offset, len },
            _ => Content::Pieces {
                file,
                pieces: pieces.into(),
                len,
            },
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Range { len, .. } | Content::Path { len, .. } | Content::Pieces { len, .. } => *len,
        }
    }

    /// True for an empty file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reader over the whole content. It gives exactly [`Content::len`] bytes or an error.
    pub fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(&bytes[..]),
            Content::Range { file, offset, len } => Box::new(RangeReader {
                file: Arc::clone(file),
                at: *offset,
                left: *len,
            }),
            Content::Pieces { file, pieces, .. } => Box::new(PiecesReader::new(file, pieces)),
            Content::Path { path, len } => {
                let file = File::open(path).map_err(|e| named(path, &e))?;
                let now = file.metadata().map_err(|e| named(path, &e))?.len();
                if now != *len {
                    let why = format!(
                        "{} changed while the image was built: {len} bytes, now {now}",
                        path.display()
                    );
                    return Err(io::Error::other(why));
                }
                Box::new(RangeReader {
                    file: Arc::new(file),
                    at: 0,
                    left: *len,
                })
            }
        })
    }

    /// As [`Content::open`], for content whose holes are known.
    pub(super) fn open_pieces(&self) -> Option<PiecesReader> {
        match self {
            Content::Pieces { file, pieces, .. } => Some(PiecesReader::new(file, pieces)),
            _ => None,
        }
    }

    /// The whole content in memory, refused above `cap` bytes.
    pub fn read(&self, cap: u64) -> io::Result<Vec<u8>> {
        if self.len() > cap {
            let why = format!("{} bytes where at most {cap} are expected", self.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut out = Vec::with_capacity(self.len() as usize);
        self.open()?.read_to_end(&mut out)?;
        Ok(out)
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// `pread` over a range; an end of file inside it is an error, not a short file.
struct RangeReader {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// A reader over pieces, which can pass over their holes.
pub(super) struct PiecesReader {
    file: Arc<File>,
    pieces: Arc<[Piece]>,
    index: usize,
    /// Bytes read of the current piece.
    done: u64,
}

impl PiecesReader {
    fn new(file: &Arc<File>, pieces: &Arc<[Piece]>) -> Self {
        Self {
            file: Arc::clone(file),
            pieces: Arc::clone(pieces),
            index: 0,
            done: 0,
        }
    }

    /// How many bytes of a hole come next.
    pub(super) fn hole(&mut self) -> u64 {
        self.pass(0);
        match self.pieces.get(self.index) {
            Some(Piece::Hole(length)) => length - self.done,
            _ => 0,
        }
    }

    /// Passes over bytes.
    pub(super) fn pass(&mut self, mut length: u64) {
        while let Some(piece) = self.pieces.get(self.index) {
            let left = piece.length() - self.done;
            if length < left {
                self.done += length;
                return;
            }
            length -= left;
            (self.index, self.done) = (self.index + 1, 0);
        }
    }
}

impl Read for PiecesReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.get(self.index) {
            let want = buffer
                .len()
                .min(usize::try_from(piece.length() - self.done).unwrap_or(usize::MAX));
            if want == 0 {
                if buffer.is_empty() {
                    return Ok(0);
                }
                (self.index, self.done) = (self.index + 1, 0);
                continue;
            }
            let got = match piece {
                Piece::Hole(_) => {
                    buffer[..want].fill(0);
                    want
                }
                Piece::Data { offset, .. } => self.file.read_at(&mut buffer[..want], offset + self.done)?,
            };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.done += got as u64;
            return Ok(got);
        }
        Ok(0)
    }
}

/// One unnamed temporary file that takes the contents of many: unpacked archives cost one descriptor and no
/// clean-up, whatever way the program ends.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    end: u64,
}

/// Files up to this size stay in memory: a `pread` costs more than the copy.
const INLINE: usize = 4096;

impl Spool {
    /// An empty spool in this directory (created unlinked where the file system can).
    pub fn new_in(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(tempfile::tempfile_in(dir).map_err(|e| named(dir, &e))?),
            end: 0,
        })
    }

    /// Take exactly `len` bytes from `reader`.
    pub fn add(&mut self, reader: &mut impl Read, len: u64) -> io::Result<Content> {
        if len <= INLINE as u64 {
            let mut bytes = vec![0; len as usize];
            reader.read_exact(&mut bytes)?;
            return Ok(Content::bytes(bytes));
        }
        let offset = self.end;
        let mut out = OffsetWriter {
            file: &self.file,
            at: offset,
        };
        let copied = io::copy(&mut reader.take(len), &mut out)?;
        if copied != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end = offset + len;
        Ok(Content::Range {
            file: Arc::clone(&self.file),
            offset,
            len,
        })
    }
}

impl Spool {
    /// Take the data of a file with holes from `reader`: that of one piece behind that of the other, with
    /// offsets from the first byte of `reader`.
    pub fn add_pieces(&mut self, reader: &mut impl Read, pieces: &[Piece]) -> io::Result<Content> {
        let offset = self.end;
        let mut out = OffsetWriter {
            file: &self.file,
            at: offset,
        };
        let data = |piece: &Piece| match piece {
            Piece::Data { length, .. } => *length,
            Piece::Hole(_) => 0,
        };
        let length = pieces.iter().map(data).sum();
        if io::copy(&mut reader.take(length), &mut out)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end = offset + length;
        Ok(Content::pieces(
            Arc::clone(&self.file),
            Piece::shifted(pieces, offset),
        ))
    }
}

struct OffsetWriter<'a> {
    file: &'a File,
    at: u64,
}

impl Write for OffsetWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wrote = self.file.write_at(buffer, self.at)?;
        self.at += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
