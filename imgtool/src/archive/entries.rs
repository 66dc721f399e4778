//! Tar streams as packages, container tools and GNU tar write them: every header checked, every size bounded,
//! nothing taken on trust.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::Damage;
use super::pax::Extended;
use super::sparse::{self, BLOCK, MAX_FILE};
use crate::tree::{Piece, show};

/// A path longer than Linux can use.
const MAX_NAME_FIELD: u64 = 8192;
/// A pax header holds a few names and numbers, and attributes.
const MAX_PAX: u64 = 1 << 20;
/// More files than any package has; the largest in Debian has about 100,000.
const MAX_ENTRIES: usize = 2 << 20;

/// What a tar entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file of this many bytes, holes included.
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name for an earlier entry.
    Hardlink(Vec<u8>),
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A tar entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path as written, such as `./usr/bin/true`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, at most `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name. Debian's packages have none; archives of roots do.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where a file's bytes begin in the stream.
    pub offset: u64,
    /// The parts of a file with holes, whose bytes in the stream are those of its data only; offsets are from
    /// the first.
    pub pieces: Option<Vec<Piece>>,
}

/// Calls `take` for each entry, with a reader over the bytes of a file.
pub fn visit<E: From<Damage>>(
    stream: impl Read,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let mut stream = Stream { inner: stream, at: 0 };
    // What a global header says holds for all that follow.
    let (mut global, mut next) = (Extended::default(), Extended::default());
    let mut count = 0;
    while let Some(header) = stream.header()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(Damage::TooMany(MAX_ENTRIES).into());
        }
        let size = header.entry_size().map_err(Damage::Read)?;
        match header.entry_type() {
            EntryType::GNULongName => next.path = Some(stream.name(size)?),
            EntryType::GNULongLink => next.link = Some(stream.name(size)?),
            EntryType::XHeader => next.take(&stream.whole(size, MAX_PAX)?)?,
            EntryType::XGlobalHeader => {
                let records = stream.whole(size, MAX_PAX)?;
                global.take(&records)?;
                next.take(&records)?;
            }
            _ => {
                let extended = std::mem::replace(&mut next, global.clone());
                stream.entry(&header, extended, &mut take)?;
            }
        }
    }
    Ok(())
}

/// The archive, and how far it has been read.
struct Stream<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl<R: Read> Stream<R> {
    /// The next header; `None` at the end, which a block of zeros is as well.
    fn header(&mut self) -> Result<Option<Header>, Damage> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Damage::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Damage::Read(e)),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // Its own field counts as spaces.
        let (before, after) = (&bytes[..148], &bytes[156..]);
        let sum: u32 = before.iter().chain(after).map(|byte| u32::from(*byte)).sum();
        match header.cksum().map_err(Damage::Read)? == sum + 8 * u32::from(b' ') {
            true => Ok(Some(header)),
            false => Err(Damage::Checksum),
        }
    }

    /// The data of an entry that is about the next one.
    fn whole(&mut self, size: u64, cap: u64) -> Result<Vec<u8>, Damage> {
        if size > cap {
            return Err(Damage::LongHeader(cap));
        }
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data).map_err(Damage::Read)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, Damage> {
        let mut name = self.whole(size, MAX_NAME_FIELD)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn skip(&mut self, length: u64) -> Result<(), Damage> {
        let skipped = io::copy(&mut self.take(length), &mut io::sink()).map_err(Damage::Read)?;
        match skipped == length {
            true => Ok(()),
            false => Err(Damage::Read(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn entry<E: From<Damage>>(
        &mut self,
        header: &Header,
        extended: Extended,
        visit: &mut impl FnMut(&Entry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = match extended.size {
            Some(size) => size,
            None => header.entry_size().map_err(Damage::Read)?,
        };
        let in_header = match header.as_gnu() {
            Some(gnu) if header.entry_type() == EntryType::GNUSparse => {
                let length = gnu.real_size().map_err(Damage::Read)?;
                Some((length, sparse::of_header(gnu, self)?))
            }
            _ => None,
        };
        let begin = self.at;
        let map = match (in_header, extended.sparse.length) {
            (Some(map), _) => Some(map),
            (None, Some(length)) if extended.sparse.map_in_data => {
                let map = sparse::of_data(&mut self.take(size))?;
                Some((length, map))
            }
            (None, Some(length)) => Some((length, extended.sparse.map.clone())),
            (None, None) => None,
        };
        let stored = size.saturating_sub(self.at - begin);
        let mut entry = parse(header, extended, stored)?;
        entry.offset = self.at;
        if let (EntryKind::File(length), Some((real, map))) = (&mut entry.kind, map) {
            *length = check_length(&entry.path, real)?;
            entry.pieces = Some(sparse::pieces(&entry.path, &map, real, stored)?);
        }
        let mut data = self.take(stored);
        visit(&entry, &mut data)?;
        let left = data.limit();
        Ok(self.skip(left + padding(size))?)
    }
}

/// The bytes from the end of an entry to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

fn check_length(path: &[u8], length: u64) -> Result<u64, Damage> {
    match length <= MAX_FILE {
        true => Ok(length),
        false => Err(Damage::TooLong(show(path), MAX_FILE)),
    }
}

/// What the headers say. `stored` is how many bytes of data follow.
fn parse(header: &Header, extended: Extended, stored: u64) -> Result<Entry, Damage> {
    let Extended {
        path,
        link,
        size: _,
        uid,
        gid,
        mtime,
        xattrs,
        sparse,
    } = extended;
    let path = sparse
        .name
        .or(path)
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let link = || link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
    let damaged = || Damage::Path(show(&path));
    let device = || {
        let (major, minor) = (header.device_major(), header.device_minor());
        match (major, minor) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(damaged()),
        }
    };
    let kind = match header.entry_type() {
        // Before POSIX a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => EntryKind::Dir,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            EntryKind::File(check_length(&path, stored)?)
        }
        EntryType::Directory => EntryKind::Dir,
        EntryType::Symlink => EntryKind::Symlink(link().ok_or_else(damaged)?),
        EntryType::Link => EntryKind::Hardlink(link().ok_or_else(damaged)?),
        EntryType::Char => device().map(|(major, minor)| EntryKind::Char(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| EntryKind::Block(major, minor))?,
        EntryType::Fifo => EntryKind::Fifo,
        other => return Err(Damage::Kind(show(&path), char::from(other.as_byte()))),
    };
    let id = |said: Option<u64>, field: io::Result<u64>| {
        let id = said.map_or(field, Ok).map_err(Damage::Read)?;
        u32::try_from(id).map_err(|_| Damage::Owner(show(&path), id))
    };
    Ok(Entry {
        kind,
        mode: (header.mode().map_err(Damage::Read)? & 0o7777) as u16,
        uid: id(uid, header.uid())?,
        gid: id(gid, header.gid())?,
        // GNU's form for times before 1970: a two's complement.
        mtime: match mtime {
            Some(mtime) => mtime,
            None => header.mtime().map_err(Damage::Read)?.cast_signed(),
        },
        xattrs,
        offset: 0,
        pieces: None,
        path,
    })
}
