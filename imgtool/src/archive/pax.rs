//! What extended headers say of the entry that follows: pax records, and names that GNU tar writes before it.

use std::collections::BTreeMap;

use base64::Engine;

use super::{Damage, acl};

/// How GNU tar and the tools after it write an extended attribute.
pub const XATTR: &[u8] = b"SCHILY.xattr.";
/// How libarchive does, besides.
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

/// The extended headers of the next entry.
#[derive(Debug, Default, Clone)]
pub struct Extended {
    /// Its path.
    pub path: Option<Vec<u8>>,
    /// The target of its link.
    pub link: Option<Vec<u8>>,
    /// Bytes of it in the archive.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u64>,
    /// Group.
    pub gid: Option<u64>,
    /// Seconds since 1970.
    pub mtime: Option<i64>,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where its data lies, if it is a file with holes.
    pub sparse: Sparse,
}

/// The records of a file with holes, as GNU tar writes them in its versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone)]
pub struct Sparse {
    /// The file's path. That of its entry says that it has holes.
    pub name: Option<Vec<u8>>,
    /// The file's length, holes included.
    pub length: Option<u64>,
    /// Offset and length of each piece of data (0.0 and 0.1).
    pub map: Vec<(u64, u64)>,
    /// The map is at the beginning of the entry's data (1.0).
    pub map_in_data: bool,
    /// The offset whose length comes in the next record (0.0).
    offset: Option<u64>,
}

impl Extended {
    /// Takes the records of a header.
    pub fn take(&mut self, data: &[u8]) -> Result<(), Damage> {
        let mut rest = data;
        while !rest.is_empty() {
            let (key, value) = record(&mut rest).ok_or(Damage::MalformedPax)?;
            self.set(key, value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            // Other times and names of owners are not kept, nor are the numbers of the file system that it
            // was on.
            b"atime"
            | b"ctime"
            | b"LIBARCHIVE.creationtime"
            | b"uname"
            | b"gname"
            | b"comment"
            | b"charset"
            | b"hdrcharset"
            | b"SCHILY.dev"
            | b"SCHILY.ino"
            | b"SCHILY.nlink"
            | b"SCHILY.fflags" => {}
            b"SCHILY.acl.access" => self.set_acl(acl::ACCESS, value)?,
            b"SCHILY.acl.default" => self.set_acl(acl::DEFAULT, value)?,
            b"RHT.security.selinux" => {
                self.xattrs
                    .insert(b"security.selinux".to_vec(), [value, b"\0"].concat());
            }
            key if key.starts_with(XATTR) => {
                self.xattrs.insert(key[XATTR.len()..].to_vec(), value.to_vec());
            }
            key if key.starts_with(LIBARCHIVE) => {
                let (name, value) =
                    libarchive(&key[LIBARCHIVE.len()..], value).ok_or(Damage::MalformedPax)?;
                self.xattrs.entry(name).or_insert(value);
            }
            key => match key.strip_prefix(b"GNU.sparse.") {
                Some(key) => return self.set_sparse(key, value),
                None => return Err(Damage::Pax(String::from_utf8_lossy(key).into_owned())),
            },
        }
        Ok(())
    }

    fn set_acl(&mut self, name: &[u8], text: &[u8]) -> Result<(), Damage> {
        self.xattrs.insert(name.to_vec(), acl::parse(text)?);
        Ok(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let sparse = &mut self.sparse;
        match key {
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.length = Some(number(value)?),
            // The count is that of what follows.
            b"numblocks" | b"minor" => drop(number(value)?),
            b"major" => sparse.map_in_data = number(value)? == 1,
            b"offset" => sparse.offset = Some(number(value)?),
            b"numbytes" => {
                let offset = sparse.offset.take().ok_or(Damage::MalformedPax)?;
                sparse.map.push((offset, number(value)?));
            }
            b"map" if value.is_empty() => {}
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
                let (pairs, rest) = numbers.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(Damage::MalformedPax);
                }
                sparse.map = pairs.iter().map(|[offset, length]| (*offset, *length)).collect();
            }
            key => {
                let key = String::from_utf8_lossy(key);
                return Err(Damage::Pax(format!("GNU.sparse.{key}")));
            }
        }
        Ok(())
    }
}

/// Takes a record `LENGTH KEY=VALUE\n` from the front. Values are binary: only the length ends them.
fn record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = rest.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
    let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    *rest = &rest[length..];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..]))
}

/// A decimal number of at most 20 digits.
pub fn number(text: &[u8]) -> Result<u64, Damage> {
    let text = str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or(Damage::MalformedPax)
}

/// The whole seconds of a time, which may have a sign and a fraction: those before it.
fn seconds(text: &[u8]) -> Result<i64, Damage> {
    let text = str::from_utf8(text).map_err(|_| Damage::MalformedPax)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().map_err(|_| Damage::MalformedPax)?;
    let below = text.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
    Ok(whole.saturating_sub(i64::from(below)))
}

/// A name with `%` escapes, and a value in base64 that may lack its padding.
fn libarchive(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let mut byte = *first;
        if byte == b'%' {
            let digits = str::from_utf8(rest.get(..2)?).ok()?;
            byte = u8::from_str_radix(digits, 16).ok()?;
            rest = &rest[2..];
        }
        plain.push(byte);
    }
    let value = value.trim_ascii_end();
    let end = value
        .iter()
        .rposition(|byte| *byte != b'=')
        .map_or(0, |at| at + 1);
    let value = base64::engine::general_purpose::STANDARD_NO_PAD.decode(&value[..end]);
    Some((plain, value.ok()?))
}
