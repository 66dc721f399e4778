//! Tar streams as packages use them: every header checked, long names bounded, nothing taken on trust.

use std::collections::BTreeMap;
use std::io::Read;

use tar::EntryType;

use super::Damage;

/// A path longer than Linux can use.
const MAX_NAME_FIELD: u64 = 8192;
/// A pax header holds a few names and numbers.
const MAX_PAX: u64 = 1 << 20;
/// More files than any package has; the largest in Debian has about 100,000.
const MAX_ENTRIES: usize = 2 << 20;

/// How GNU tar and the tools after it write an extended attribute.
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a tar entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file of this many bytes.
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
}

/// Calls `visit` for each entry, with a reader over the bytes of a file.
pub fn read(
    stream: impl Read,
    mut visit: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Damage>,
) -> Result<(), Damage> {
    let mut archive = tar::Archive::new(stream);
    let mut long = LongNames::default();
    let entries = archive.entries().map_err(Damage::Read)?.raw(true);
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(Damage::Read)?;
        if count >= MAX_ENTRIES {
            return Err(Damage::TooMany(MAX_ENTRIES));
        }
        if long.take(&mut entry)? {
            continue;
        }
        let offset = entry.raw_file_position();
        let parsed = parse(entry.header(), std::mem::take(&mut long), offset)?;
        visit(&parsed, &mut entry)?;
    }
    Ok(())
}

/// Names that did not fit into the header of the entry that follows.
#[derive(Debug, Default)]
struct LongNames {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl LongNames {
    /// Takes the entry if it is about the next one.
    fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool, Damage> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(read_name(entry)?),
            EntryType::GNULongLink => self.link = Some(read_name(entry)?),
            EntryType::XHeader => self.read_pax(entry)?,
            EntryType::XGlobalHeader => drop(read_capped(entry, MAX_PAX)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_pax(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), Damage> {
        let data = read_capped(entry, MAX_PAX)?;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let (key, value) = pax_record(&mut rest).ok_or(Damage::MalformedPax)?;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                // Times finer than a second and names of owners are not kept.
                b"mtime" | b"atime" | b"ctime" | b"uname" | b"gname" | b"comment" => {}
                key if key.starts_with(XATTR) => {
                    self.xattrs.insert(key[XATTR.len()..].to_vec(), value.to_vec());
                }
                key => return Err(Damage::Pax(String::from_utf8_lossy(key).into_owned())),
            }
        }
        Ok(())
    }
}

/// Takes a record `LENGTH KEY=VALUE\n` from the front. Values are binary: only the length ends them.
fn pax_record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = rest.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
    let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    *rest = &rest[length..];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..]))
}

fn read_name(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, Damage> {
    let mut name = read_capped(entry, MAX_NAME_FIELD)?;
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    Ok(name)
}

fn read_capped(entry: &mut tar::Entry<'_, impl Read>, cap: u64) -> Result<Vec<u8>, Damage> {
    if entry.size() > cap {
        return Err(Damage::LongHeader(cap));
    }
    let mut data = Vec::new();
    entry.take(cap).read_to_end(&mut data).map_err(Damage::Read)?;
    Ok(data)
}

fn parse(header: &tar::Header, long: LongNames, offset: u64) -> Result<Entry, Damage> {
    let path = long
        .path
        .clone()
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let link = || {
        long.link
            .clone()
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
    };
    let damaged = || Damage::Path(crate::tree::show(&path));
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
        EntryType::Regular | EntryType::Continuous => EntryKind::File(header.size().map_err(Damage::Read)?),
        EntryType::Directory => EntryKind::Dir,
        EntryType::Symlink => EntryKind::Symlink(link().ok_or_else(damaged)?),
        EntryType::Link => EntryKind::Hardlink(link().ok_or_else(damaged)?),
        EntryType::Char => device().map(|(major, minor)| EntryKind::Char(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| EntryKind::Block(major, minor))?,
        EntryType::Fifo => EntryKind::Fifo,
        other => {
            return Err(Damage::Kind(
                crate::tree::show(&path),
                char::from(other.as_byte()),
            ));
        }
    };
    let id = |id: std::io::Result<u64>| u32::try_from(id.map_err(Damage::Read)?).map_err(|_| damaged());
    Ok(Entry {
        kind,
        mode: (header.mode().map_err(Damage::Read)? & 0o7777) as u16,
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        // GNU's form for times before 1970: a two's complement.
        mtime: header.mtime().map_err(Damage::Read)?.cast_signed(),
        xattrs: long.xattrs,
        offset,
        path,
    })
}
