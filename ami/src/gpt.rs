//! The partition tables, computed from the manifest: protective MBR, primary and backup GPT (UEFI 2.10 §5).

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use ::gpt::disk::LogicalBlockSize;
use ::gpt::mbr::ProtectiveMBR;
use ::gpt::partition::Partition;
use ::gpt::partition_types::{LINUX_FS, LINUX_ROOT_ARM_64, LINUX_ROOT_X64, LINUX_ROOT_X86, Type};
use uuid::Uuid;

use crate::layout::MANIFEST_PARTITION;
use crate::{Architecture, Digest, Error, Layout, Manifest, PartName};

/// Bytes of a sector in the tables.
const SECTOR: u64 = 512;
/// Bytes at the start of the file: MBR, header and 128 entries.
pub(crate) const HEAD: usize = 34 * SECTOR as usize;
/// Bytes at the end of the file: 128 entries and the backup header.
pub(crate) const TAIL: usize = 33 * SECTOR as usize;
/// The namespace of all GUIDs in an AMI's tables.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b69_6c6e_0a6d_4901_a001_6770_7467_7569);

/// What the first [`HEAD`] and the last [`TAIL`] bytes of an image must be.
pub(crate) struct Tables {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

/// The tables of an image with this manifest.
pub(crate) fn tables(manifest: &Manifest, digest: &Digest, layout: &Layout) -> Result<Tables, Error> {
    build(manifest, digest, layout).map_err(|e| Error::Manifest(format!("no partition table for it: {e}")))
}

fn build(manifest: &Manifest, digest: &Digest, layout: &Layout) -> Result<Tables, String> {
    let mut device = Ends {
        length: layout.file_length,
        at: 0,
        head: vec![0; HEAD],
        tail: vec![0; TAIL],
    };
    let sectors = u32::try_from(layout.file_length / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut device)
        .map_err(|e| e.to_string())?;
    let mut disk = ::gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(guid("disk", digest)))
        .map_err(|e| e.to_string())?;
    disk.update_partitions(partitions(manifest, digest, layout))
        .map_err(|e| e.to_string())?;
    let device = disk.write().map_err(|e| e.to_string())?;
    Ok(Tables {
        head: device.head,
        tail: device.tail,
    })
}

fn partitions(manifest: &Manifest, digest: &Digest, layout: &Layout) -> BTreeMap<u32, Partition> {
    let entry = |offset: u64, length: u64, kind: Type, label: &str, content: &Digest| Partition {
        part_type_guid: kind,
        part_guid: guid(label, content),
        first_lba: offset / SECTOR,
        last_lba: (offset + length.next_multiple_of(SECTOR)) / SECTOR - 1,
        flags: 0,
        name: label.to_owned(),
    };
    let length = layout.manifest_partition_length;
    let mut entries = vec![entry(
        MANIFEST_PARTITION,
        length,
        LINUX_FS,
        "ami-manifest",
        digest,
    )];
    entries.extend(manifest.parts.iter().map(|part| {
        let kind = match (part.name, manifest.architecture) {
            (PartName::Root, Architecture::X86_64) => LINUX_ROOT_X64,
            (PartName::Root, Architecture::Arm64) => LINUX_ROOT_ARM_64,
            (PartName::Root, Architecture::I386) => LINUX_ROOT_X86,
            _ => LINUX_FS,
        };
        entry(part.offset, part.length, kind, part.name.label(), &part.blake3)
    }));
    (1..).zip(entries).collect()
}

/// A UUIDv5 of a name and content: the same on every machine.
fn guid(name: &str, content: &Digest) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{name} {content}").as_bytes())
}

/// A disk of which only the two ends exist.
#[derive(Debug)]
struct Ends {
    length: u64,
    at: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Ends {
    fn slice(&mut self, want: usize) -> io::Result<&mut [u8]> {
        let tail = self.length - TAIL as u64;
        let (area, start) = if self.at < HEAD as u64 {
            (&mut self.head, self.at as usize)
        } else if self.at >= tail && self.at < self.length {
            (&mut self.tail, (self.at - tail) as usize)
        } else {
            return Err(io::Error::other("outside the partition tables"));
        };
        let end = area.len().min(start + want);
        Ok(&mut area[start..end])
    }
}

impl Read for Ends {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.slice(buffer.len())?;
        let got = from.len();
        buffer[..got].copy_from_slice(from);
        self.at += got as u64;
        Ok(got)
    }
}

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let to = self.slice(bytes.len())?;
        let wrote = to.len();
        to.copy_from_slice(&bytes[..wrote]);
        self.at += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Ends {
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
