//! The file that holds the record of an instance.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::error::RecordError;
use crate::store::record::{FORMAT, Record};
use crate::store::replace::{Durable, replace};
use crate::store::reserve;
use crate::{Error, Result};

/// The largest record that is read: one with the largest user input is far below.
const MAX_RECORD: u64 = 1 << 20;
/// Its name in the state directory.
pub(super) const RECORD: &str = "instance.json";

/// `None` when there is no such instance.
pub fn read(directory: &Path) -> Result<Option<Record>> {
    let path = directory.join(RECORD);
    let damaged = |source: RecordError| Error::Damaged {
        id: directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !directory.exists() => return Ok(None),
        Err(e) => return Err(damaged(e.into())),
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut text).map_err(|e| damaged(e.into()))?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| damaged(e.into()))?;
    if record.format != FORMAT {
        return Err(damaged(RecordError::Format {
            found: record.format,
            known: FORMAT,
        }));
    }
    if directory.file_name() != Some(record.id.as_str().as_ref()) {
        return Err(damaged(RecordError::OfAnother(record.id.to_string())));
    }
    Ok(Some(record))
}

/// Writes the record into a directory that nobody sees yet.
pub fn write_first(directory: &Path, record: &Record) -> Result<()> {
    let path = directory.join(RECORD);
    let written = text_of(record).and_then(|text| fs::write(&path, text));
    written.map_err(Error::file("writing", &path))
}

fn text_of(record: &Record) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(record)?;
    text.push(b'\n');
    Ok(text)
}

/// Replaces the record, if need be with the room that is kept for it.
pub fn replace_in(directory: &Path, record: &Record, durable: Durable) -> Result<()> {
    let path = directory.join(RECORD);
    let written =
        text_of(record).and_then(|text| reserve::with_room(directory, || replace(&path, &text, durable)));
    written.map_err(Error::file("writing", &path))
}
