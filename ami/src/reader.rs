//! Reading an AMI. Opening checks header, manifest and partition tables; the parts are verified when asked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Region;
use crate::header::{Header, HeaderError};
use crate::layout::{BLOCK, MANIFEST_PARTITION};
use crate::writer::stored;
use crate::{AmiId, ChunkTable, Digest, Error, Layout, Manifest, Part, PartName, Signature, gpt};

/// Bytes read at once where header and manifest are: enough for most manifests.
const HEAD_READ: u64 = 16 << 10;

/// An open AMI. Reads with `pread`: nothing is mapped, and the file may be shared by any number of readers.
#[derive(Debug)]
pub struct Ami {
    path: PathBuf,
    file: Arc<File>,
    id: AmiId,
    digest: Digest,
    manifest: Manifest,
    bytes: Vec<u8>,
    layout: Layout,
}

impl Ami {
    /// Open an image and check everything but the content of its parts: the file's length, the manifest and
    /// its digest, and both partition tables.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Self::from_file(file, path)
    }

    /// As [`Ami::open`], with a file that is already open. `path` is for messages.
    pub fn from_file(file: File, path: &Path) -> Result<Self, Error> {
        Self::from_known_file(file, path, |_| false)
    }

    /// The same for a file that may have been opened before. Where `known` says that it is as it was then, what
    /// no part is found by is not looked at again: the manifest's spelling and the partition tables.
    pub fn from_known_file(
        file: File,
        path: &Path,
        known: impl FnOnce(&AmiId) -> bool,
    ) -> Result<Self, Error> {
        let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let (header, mut bytes) = read_header(&file, path, length)?;
        let manifest_at = MANIFEST_PARTITION + BLOCK;
        let need = manifest_at + u64::from(header.manifest_length);
        if length < need {
            return Err(Error::Truncated {
                path: path.into(),
                region: Region::Manifest,
                have: length,
                need,
            });
        }
        let have = bytes.len().min(header.manifest_length as usize);
        bytes.resize(header.manifest_length as usize, 0);
        if have < bytes.len() {
            file.read_exact_at(&mut bytes[have..], manifest_at + have as u64)
                .map_err(|e| Error::io("read", path, e))?;
        }
        if Digest::of(&bytes) != header.manifest {
            return Err(damaged(
                path,
                Region::Manifest,
                "it does not match its digest in the header",
            ));
        }
        let id = AmiId::of(&header.manifest);
        let known = known(&id);
        let manifest = match known {
            true => Manifest::from_known_bytes(&bytes),
            false => Manifest::from_bytes(&bytes),
        };
        let manifest = manifest.map_err(|e| damaged(path, Region::Manifest, e.to_string()))?;
        if manifest.schema != header.schema {
            return Err(damaged(
                path,
                Region::Header,
                "it names another format than the manifest",
            ));
        }
        let lengths: Vec<_> = manifest
            .parts
            .iter()
            .map(|part| (part.name, part.length))
            .collect();
        let layout = Layout::new(&lengths);
        if header.chunks != layout.chunks {
            return Err(damaged(
                path,
                Region::Header,
                "it names another number of chunks than the manifest",
            ));
        }
        check_length(path, length, &layout)?;
        let ami = Self {
            path: path.into(),
            file: Arc::new(file),
            id,
            digest: header.manifest,
            manifest,
            bytes,
            layout,
        };
        if !known {
            ami.check_tables()?;
        }
        Ok(ami)
    }

    /// The image's identity.
    pub fn id(&self) -> &AmiId {
        &self.id
    }

    /// The whole digest of the manifest, of which the id is the beginning.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes: what the id digests and a signature signs.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The path that the image was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for mapping a part at its [`Part::offset`].
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Length of the whole file in bytes.
    pub fn length(&self) -> u64 {
        self.layout.file_length
    }

    /// Where a part is.
    pub fn part(&self, name: PartName) -> Result<&Part, Error> {
        self.manifest.part(name).ok_or_else(|| Error::NoSuchPart {
            path: self.path.clone(),
            part: name,
        })
    }

    /// Bytes of a part, unverified. The range must lie inside it.
    pub fn read_at(&self, name: PartName, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let part = self.part(name)?;
        let end = offset
            .checked_add(buffer.len() as u64)
            .filter(|end| *end <= part.length);
        if end.is_none() {
            let why = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("beyond the end of the {name} part"),
            );
            return Err(Error::io("read", &self.path, why));
        }
        self.file
            .read_exact_at(buffer, part.offset + offset)
            .map_err(|e| Error::io("read", &self.path, e))
    }

    /// Bytes of a part that take space on this disk: its length without the holes of the file.
    pub fn stored(&self, name: PartName) -> Result<u64, Error> {
        let part = self.part(name)?;
        stored(&self.file, part.offset, part.length).map_err(|e| Error::io("read", &self.path, e))
    }

    /// A reader over a part, unverified.
    pub fn reader(&self, name: PartName) -> Result<PartReader<'_>, Error> {
        let part = self.part(name)?;
        Ok(PartReader {
            file: &self.file,
            offset: part.offset,
            length: part.length,
            at: 0,
        })
    }

    /// The digests of the root's chunks, checked against the manifest: 32 bytes for each MiB.
    pub fn root_chunks(&self) -> Result<ChunkTable, Error> {
        let root = self.part(PartName::Root)?;
        // The layout caps a part at 1 TiB, so this is at most 32 MiB, and the file is as long as the layout
        // says.
        let mut bytes = vec![0; self.layout.chunks as usize * 32];
        let at = self.layout.chunks_offset();
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|e| Error::io("read", &self.path, e))?;
        let table = ChunkTable::from_bytes(root.length, &bytes).filter(|table| table.root() == root.blake3);
        table.ok_or_else(|| {
            damaged(
                &self.path,
                Region::Chunks,
                "it does not merge to the digest of the root",
            )
        })
    }

    /// Read a part and compare it with its digest.
    pub fn verify_part(&self, name: PartName) -> Result<(), Error> {
        self.verify_part_with(name, &|_| {})
    }

    fn verify_part_with(&self, name: PartName, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
        let part = self.part(name)?;
        let table = ChunkTable::compute(&self.file, part.offset, part.length, progress)
            .map_err(|e| Error::io("read", &self.path, e))?;
        if table.root() != part.blake3 {
            return Err(damaged(
                &self.path,
                Region::Part(name),
                "it does not match its digest in the manifest",
            ));
        }
        Ok(())
    }

    /// Read and check every byte of the file: tables, chunk table, signature slot, padding and all parts.
    /// `progress` is called with the region and the number of its bytes that were read.
    pub fn verify_all(&self, progress: &(dyn Fn(Region, u64) + Sync)) -> Result<(), Error> {
        self.check_tables()?;
        self.root_chunks()?;
        self.signature()?;
        self.check_padding()?;
        for part in &self.manifest.parts {
            self.verify_part_with(part.name, &|bytes| progress(Region::Part(part.name), bytes))?;
        }
        Ok(())
    }

    /// The signature in its slot, unverified; nothing when the image is not signed.
    pub fn signature(&self) -> Result<Option<Signature>, Error> {
        let mut block = [0; BLOCK as usize];
        let at = self.layout.signature_offset();
        self.file
            .read_exact_at(&mut block, at)
            .map_err(|e| Error::io("read", &self.path, e))?;
        Signature::from_block(&block).map_err(|why| damaged(&self.path, Region::Signature, why))
    }

    /// Put a signature (or none) into the slot of the file at `path`, which must be this image. One aligned 4
    /// KiB write: a reader sees the old or the new.
    pub fn set_signature(&self, signature: Option<&Signature>) -> Result<(), Error> {
        let block = signature.map_or([0; BLOCK as usize], Signature::to_block);
        let file = File::options()
            .write(true)
            .open(&self.path)
            .map_err(|e| Error::io("sign", &self.path, e))?;
        let at = self.layout.signature_offset();
        file.write_all_at(&block, at)
            .map_err(|e| Error::io("sign", &self.path, e))
    }

    fn check_tables(&self) -> Result<(), Error> {
        let tables = gpt::tables(&self.manifest, &self.digest, &self.layout)?;
        let tail_at = self.layout.file_length - gpt::TAIL as u64;
        for (region, expected, at) in [
            (Region::Table, &tables.head, 0),
            (Region::BackupTable, &tables.tail, tail_at),
        ] {
            let mut found = vec![0; expected.len()];
            self.file
                .read_exact_at(&mut found, at)
                .map_err(|e| Error::io("read", &self.path, e))?;
            if let Some(byte) = (0..found.len()).find(|i| found[*i] != expected[*i]) {
                let why = format!("byte {} is not what the manifest implies", at + byte as u64);
                return Err(damaged(&self.path, region, why));
            }
        }
        Ok(())
    }

    fn check_padding(&self) -> Result<(), Error> {
        let mut buffer = vec![0; 1 << 20];
        for (mut from, to) in self.layout.padding(self.bytes.len() as u64) {
            while from < to {
                let piece = &mut buffer[..(to - from).min(1 << 20) as usize];
                self.file
                    .read_exact_at(piece, from)
                    .map_err(|e| Error::io("read", &self.path, e))?;
                if let Some(byte) = piece.iter().position(|b| *b != 0) {
                    let why = format!("byte {} is not zero", from + byte as u64);
                    return Err(damaged(&self.path, Region::Padding, why));
                }
                from += piece.len() as u64;
            }
        }
        Ok(())
    }
}

fn damaged(path: &Path, region: Region, why: impl Into<String>) -> Error {
    Error::Damaged {
        path: path.into(),
        region,
        why: why.into(),
    }
}

/// The header, and what else came with it: the beginning of the manifest.
fn read_header(file: &File, path: &Path, length: u64) -> Result<(Header, Vec<u8>), Error> {
    let need = MANIFEST_PARTITION + BLOCK;
    if length < need {
        return Err(not_an_ami(file, path, length));
    }
    let mut bytes = vec![0; (length - MANIFEST_PARTITION).min(HEAD_READ) as usize];
    file.read_exact_at(&mut bytes, MANIFEST_PARTITION)
        .map_err(|e| Error::io("read", path, e))?;
    let rest = bytes.split_off(BLOCK as usize);
    let mut block = [0; BLOCK as usize];
    block.copy_from_slice(&bytes);
    let header = Header::from_block(&block).map_err(|error| match error {
        HeaderError::Magic => not_an_ami(file, path, length),
        HeaderError::Version(found) => Error::Unsupported {
            path: path.into(),
            found,
            supported: crate::SCHEMA_WARM,
        },
        HeaderError::Damaged(why) => damaged(path, Region::Header, why),
    })?;
    Ok((header, rest))
}

/// Say what a file without our magic looks like, since people mix up file names.
fn not_an_ami(file: &File, path: &Path, length: u64) -> Error {
    let mut start = [0; 520];
    let got = file.read_at(&mut start, 0).unwrap_or(0);
    let looks = |magic: &[u8], at: usize| start[..got].get(at..at + magic.len()) == Some(magic);
    let why = if length == 0 {
        "it is empty".to_owned()
    } else if looks(b"\x28\xb5\x2f\xfd", 0) || looks(b"\x5e\x2a\x4d\x18", 0) {
        "it is compressed with zstd; `imgtool unpack` makes an AMI of a packed one".to_owned()
    } else if looks(b"QFI\xfb", 0) {
        "it is a qcow2 disk".to_owned()
    } else if looks(b"EFI PART", 512) && length < MANIFEST_PARTITION + BLOCK {
        format!("it ends after {length} bytes, before its manifest header")
    } else if looks(b"EFI PART", 512) {
        "it is a GPT disk without the manifest header at 1 MiB".to_owned()
    } else {
        "there is no manifest header at 1 MiB".to_owned()
    };
    Error::NotAnAmi {
        path: path.into(),
        why,
    }
}

fn check_length(path: &Path, have: u64, layout: &Layout) -> Result<(), Error> {
    let need = layout.file_length;
    if have > need {
        return Err(damaged(
            path,
            Region::BackupTable,
            format!("{} bytes follow the image", have - need),
        ));
    }
    if have == need {
        return Ok(());
    }
    let part = layout.parts().iter().rev().find(|(_, offset, _)| have >= *offset);
    let region = match part {
        Some((name, offset, length)) if have < offset + length => Region::Part(*name),
        Some(_) => Region::BackupTable,
        None => Region::Manifest,
    };
    Err(Error::Truncated {
        path: path.into(),
        region,
        have,
        need,
    })
}

/// `Read` and `Seek` over one part.
#[derive(Debug, Clone)]
pub struct PartReader<'a> {
    file: &'a File,
    offset: u64,
    length: u64,
    at: u64,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], self.offset + self.at)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for PartReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
