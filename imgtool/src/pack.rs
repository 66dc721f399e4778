//! `pack` and `unpack`: an AMI for transport, in the seekable format of zstd (contrib/seekable_format of
//! Zstandard): frames that decompress alone, and a table of them at the end. Any zstd unpacks it; readers of
//! the format can seek.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ami::{Ami, NewFile};
use displaydoc::Display;

use crate::advice::Advice;
use crate::progress::Step;

/// Bytes of the image in one frame. Smaller seeks better, larger compresses better: measured in research, 1
/// MiB costs 9 % over one frame.
const FRAME: u64 = 1 << 20;
/// Compression level.
const LEVEL: i32 = 9;
/// A skippable frame with the seek table: its magic, and that of the footer.
const TABLE_MAGIC: u32 = 0x184d_2a5e;
const FOOTER_MAGIC: u32 = 0x8f92_eab1;
/// Most frames in a table that is read: an image of every part at its limit has fewer.
const MAX_FRAMES: u32 = 8 << 20;

/// Why an image cannot be packed or unpacked.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Ami(#[from] ami::Error),
    /// {path} is not a packed image: {why}
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// cannot {action} {path}: {source}
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ami(error) => error.advice(),
            Self::Malformed { .. } => {
                Some("copy or download it again; `imgtool pack` writes such files".into())
            }
            Self::Io { .. } => Some("check the path and the space on the disk".into()),
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.display().to_string(),
        source,
    }
}

/// Pack an image after verifying all of it. Returns the packed length in bytes.
pub fn pack(image: &Path, to: &Path, step: &dyn Step) -> Result<u64, Error> {
    let ami = Ami::open(image)?;
    ami.verify_all(&|_, _| {})?;
    let length = ami.file().metadata().map_err(io_error("read", image))?.len();
    let new = NewFile::create(to)?;
    let sizes = compress_frames(ami.file(), length, new.file(), step).map_err(io_error("pack", image))?;
    let at = sizes.iter().map(|(packed, _)| u64::from(*packed)).sum();
    let table = seek_table(&sizes);
    new.file()
        .write_all_at(&table, at)
        .map_err(io_error("write", to))?;
    new.publish()?;
    Ok(at + table.len() as u64)
}

/// Compress every frame, on all processors, and write them in order. Gives each one's packed and plain size.
fn compress_frames(from: &File, length: u64, to: &File, step: &dyn Step) -> io::Result<Vec<(u32, u32)>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(8) as u64;
    let count = length.div_ceil(FRAME);
    let (mut at, mut sizes) = (0, Vec::new());
    // A batch of frames at a time bounds memory; within it, workers take the next one.
    for batch in (0..count).step_by(4 * workers as usize) {
        let end = count.min(batch + 4 * workers);
        let next = AtomicU64::new(batch);
        let done = Mutex::new(Vec::new());
        let work = || -> io::Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    return Ok(());
                }
                let mut plain = vec![0; FRAME.min(length - index * FRAME) as usize];
                from.read_exact_at(&mut plain, index * FRAME)?;
                let packed = zstd::bulk::compress(&plain, LEVEL)?;
                done.lock().map_err(|_| io::Error::other("a worker died"))?.push((
                    index,
                    packed,
                    plain.len() as u32,
                ));
            }
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let results = handles.into_iter().map(|h| {
                h.join()
                    .unwrap_or_else(|_| Err(io::Error::other("a worker died")))
            });
            results.collect::<io::Result<Vec<()>>>()
        })?;
        let mut done = done.into_inner().map_err(|_| io::Error::other("a worker died"))?;
        done.sort_by_key(|(index, ..)| *index);
        for (_, packed, plain) in done {
            to.write_all_at(&packed, at)?;
            at += packed.len() as u64;
            sizes.push((packed.len() as u32, plain));
            step.advance(u64::from(plain));
        }
    }
    Ok(sizes)
}

fn seek_table(sizes: &[(u32, u32)]) -> Vec<u8> {
    let mut table = TABLE_MAGIC.to_le_bytes().to_vec();
    table.extend((sizes.len() as u32 * 8 + 9).to_le_bytes());
    for (packed, plain) in sizes {
        table.extend(packed.to_le_bytes());
        table.extend(plain.to_le_bytes());
    }
    table.extend((sizes.len() as u32).to_le_bytes());
    // Descriptor: no checksums in the table; each part of the image has its BLAKE3.
    table.push(0);
    table.extend(FOOTER_MAGIC.to_le_bytes());
    table
}

/// The frames of a packed file: where each is, its packed and its plain size.
fn read_table(file: &File, path: &Path) -> Result<Vec<(u64, u32, u32)>, Error> {
    let malformed = |why: &str| Error::Malformed {
        path: path.display().to_string(),
        why: why.into(),
    };
    let length = file.metadata().map_err(io_error("read", path))?.len();
    let mut footer = [0; 9];
    let footer_at = length
        .checked_sub(9)
        .ok_or_else(|| malformed("it is too short"))?;
    file.read_exact_at(&mut footer, footer_at)
        .map_err(io_error("read", path))?;
    let word = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
    if word(&footer[5..]) != FOOTER_MAGIC {
        return Err(malformed(
            "its seek table is missing: it is cut short, or another kind of file",
        ));
    }
    let (count, descriptor) = (word(&footer), footer[4]);
    if descriptor & 0x7c != 0 || count > MAX_FRAMES {
        return Err(malformed("its seek table is of an unknown kind"));
    }
    let entry = if descriptor & 0x80 != 0 { 12 } else { 8 };
    let size = u64::from(count) * entry;
    let start = footer_at
        .checked_sub(size)
        .ok_or_else(|| malformed("its seek table is longer than the file"))?;
    let mut table = vec![0; size as usize];
    file.read_exact_at(&mut table, start)
        .map_err(io_error("read", path))?;
    let mut at = 0;
    let mut frames = Vec::new();
    for entry in table.chunks_exact(entry as usize) {
        let (packed, plain) = (word(entry), word(&entry[4..]));
        frames.push((at, packed, plain));
        at += u64::from(packed);
    }
    if at + 8 != start {
        return Err(malformed("its seek table does not fit its frames"));
    }
    Ok(frames)
}

/// Unpack an image and verify all of it before it gets its name.
pub fn unpack(packed: &Path, to: &Path, step: &dyn Step) -> Result<ami::AmiId, Error> {
    let file = File::open(packed).map_err(io_error("open", packed))?;
    let frames = read_table(&file, packed)?;
    let malformed = |why: &str| Error::Malformed {
        path: packed.display().to_string(),
        why: why.into(),
    };
    let new = NewFile::create(to)?;
    let mut at = 0;
    for (offset, packed_size, plain_size) in frames {
        // Our own frames have 1 MiB; another writer's may be larger, within reason.
        if plain_size > 64 << 20 || packed_size > 65 << 20 {
            return Err(malformed("a frame has more than 64 MiB"));
        }
        let mut frame = vec![0; packed_size as usize];
        file.read_exact_at(&mut frame, offset)
            .map_err(io_error("read", packed))?;
        let mut plain = Vec::with_capacity(plain_size as usize);
        let decoder = zstd::Decoder::with_buffer(&frame[..]).map_err(io_error("unpack", packed))?;
        let read = decoder.take(u64::from(plain_size) + 1).read_to_end(&mut plain);
        read.map_err(|e| malformed(&format!("a frame is damaged: {e}")))?;
        if plain.len() != plain_size as usize {
            return Err(malformed("a frame has another size than its seek table says"));
        }
        write_sparse(new.file(), &plain, at).map_err(io_error("write", to))?;
        at += u64::from(plain_size);
        step.advance(u64::from(plain_size));
    }
    new.file().set_len(at).map_err(io_error("write", to))?;
    let check = new.file().try_clone().map_err(io_error("read", to))?;
    let ami = Ami::from_file(check, packed)?;
    ami.verify_all(&|_, _| {})?;
    let id = ami.id().clone();
    new.publish()?;
    Ok(id)
}

/// The plain length of a packed file, for progress.
pub fn plain_length(packed: &Path) -> Result<u64, Error> {
    let file = File::open(packed).map_err(io_error("open", packed))?;
    Ok(read_table(&file, packed)?
        .iter()
        .map(|(_, _, plain)| u64::from(*plain))
        .sum())
}

/// Write what is not zero, in blocks.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at + (index * BLOCK) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;
    use ami::{Architecture, Manifest, PartName, Source, Writer};

    fn image(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("a.ami");
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 999) as u8).collect();
        let parts = [
            (PartName::Kernel, 100),
            (PartName::Initramfs, 3_000_000),
            (PartName::Root, 32 << 20),
        ];
        let writer = Writer::create(&path, &parts).unwrap();
        writer.fill(PartName::Kernel, Source::Bytes(&[7; 100])).unwrap();
        writer.fill(PartName::Initramfs, Source::Bytes(&content)).unwrap();
        writer
            .finish(Manifest::new("a", Architecture::X86_64), &|_| {})
            .unwrap();
        path
    }

    #[test]
    fn pack_and_unpack_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let (image, packed, back) = (
            image(dir.path()),
            dir.path().join("a.zst"),
            dir.path().join("b.ami"),
        );
        let length = pack(&image, &packed, &Quiet).unwrap();
        assert_eq!(length, std::fs::metadata(&packed).unwrap().len());
        assert!(length < 1 << 20);
        assert_eq!(
            plain_length(&packed).unwrap(),
            std::fs::metadata(&image).unwrap().len()
        );
        unpack(&packed, &back, &Quiet).unwrap();
        assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
        // It is one plain zstd stream as well: the table is a frame that readers skip.
        let all = zstd::decode_all(File::open(&packed).unwrap()).unwrap();
        assert!(all == std::fs::read(&image).unwrap());
    }

    #[test]
    fn damage_in_transport_leaves_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let (image, packed, back) = (
            image(dir.path()),
            dir.path().join("a.zst"),
            dir.path().join("b.ami"),
        );
        pack(&image, &packed, &Quiet).unwrap();
        let good = std::fs::read(&packed).unwrap();
        for at in (0..good.len()).step_by(good.len() / 40 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 0x21;
            std::fs::write(&packed, &bad).unwrap();
            // A flipped bit in a frame's own bookkeeping may change nothing; then the image is whole.
            if unpack(&packed, &back, &Quiet).is_ok() {
                assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
                std::fs::remove_file(&back).unwrap();
            }
            assert!(!back.exists(), "byte {at}");
            std::fs::write(&packed, &good[..at]).unwrap();
            assert!(unpack(&packed, &back, &Quiet).is_err());
        }
    }
}
