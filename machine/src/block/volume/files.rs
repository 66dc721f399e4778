//! Creating, opening and recognising volume files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use vm_memory::VolatileSlice;

use super::map::Map;
use super::{BLOCK, Base, Lazy, SIZE_UNIT, Volume};
use crate::block::space;
use crate::block::{sparse, vectored};

/// Begins the tail of a volume file that needs its base.
const MAGIC: &[u8; 8] = b"KILNVOL1";
/// Magic, size of the base, identity of the base.
const TAIL: usize = 8 + 8 + 32;
/// Bytes copied at a time by [`Volume::create_full`].
const COPY: u64 = 1 << 20;

/// Why a volume could not be created or opened.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// the root volume {path} cannot be {action}: {source}{space}
    Io {
        /// The volume file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
        /// How much space there is, where the reason is that there is none.
        space: String,
    },
    /// a root volume of {size} bytes is smaller than the image's root partition of {base} bytes
    TooSmall {
        /// Size asked for.
        size: u64,
        /// Size of the base.
        base: u64,
    },
    /// the file system of {path} does not keep holes in blocks of 4 KiB, which a lazy copy needs
    FileSystem {
        /// The volume file.
        path: PathBuf,
    },
    /// the root volume {path} still needs its image, and was opened without it
    NeedsBase {
        /// The volume file.
        path: PathBuf,
    },
    /// the root volume {path} was made from another image
    OtherBase {
        /// The volume file.
        path: PathBuf,
    },
    /// {path} is not a root volume, or was never flushed before the host went down: nothing acknowledged is lost
    Damaged {
        /// The volume file.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err` on what was tried with the file at `path`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            path: path.to_owned(),
            action,
            space: space::left(path, &source),
            source,
        }
    }
}

/// Rounds a wanted size to one that a volume can have.
fn volume_size(size: u64, base: u64) -> Result<u64, Error> {
    let too_small = Error::TooSmall { size, base };
    match size.checked_next_multiple_of(SIZE_UNIT) {
        Some(rounded) if rounded >= base && rounded > 0 && rounded < i64::MAX as u64 => Ok(rounded),
        _ => Err(too_small),
    }
}

impl Volume {
    /// Creates a volume of `size` bytes (rounded up to a mebibyte) at `path`, which must not exist, over
    /// `base`. Copies nothing, and takes microseconds at any size.
    ///
    /// # Errors
    /// When the file cannot be made, when `size` is smaller than the base, or when the file system does not
    /// keep holes exactly ([`Error::FileSystem`]; nothing is left behind).
    pub fn create(path: &Path, base: Base, size: u64) -> Result<Self, Error> {
        let size = volume_size(size, base.len())?;
        let file = create_file(path)?;
        let lazy = keeps_holes(&file)
            .map_err(Error::io(path, "examined"))
            .and_then(|keeps| {
                if keeps {
                    Ok(())
                } else {
                    Err(Error::FileSystem {
                        path: path.to_owned(),
                    })
                }
            });
        let made = lazy.and_then(|()| {
            let mut tail = [0; TAIL];
            tail[..8].copy_from_slice(MAGIC);
            tail[8..16].copy_from_slice(&base.len().to_le_bytes());
            tail[16..].copy_from_slice(base.identity());
            file.set_len(size + BLOCK)
                .and_then(|()| file.write_all_at(&tail, size))
                .map_err(Error::io(path, "created"))
        });
        if let Err(error) = made {
            remove(path);
            return Err(error);
        }
        let present = Map::new(base.len().div_ceil(BLOCK));
        Ok(Volume::over_base(file, size, base, present))
    }

    fn over_base(file: File, size: u64, base: Base, present: Map) -> Volume {
        Volume {
            file,
            size,
            lazy: Some(Lazy::new(base, present)),
            standalone: AtomicBool::new(false),
        }
    }

    /// Creates a volume that stands alone from the start: `base` is shared block by block where the file
    /// system can (reflink), else its data is copied. Every chunk is verified.
    ///
    /// # Errors
    /// When the file cannot be made or filled, or the base is damaged; nothing is left behind.
    pub fn create_full(path: &Path, base: &Base, size: u64) -> Result<Self, Error> {
        let size = volume_size(size, base.len())?;
        let file = create_file(path)?;
        let filled = fill(&file, base, size).and_then(|()| file.sync_all());
        if let Err(source) = filled {
            remove(path);
            return Err(Error::io(path, "filled from the image")(source));
        }
        Ok(Volume {
            file,
            size,
            lazy: None,
            standalone: AtomicBool::new(true),
        })
    }

    /// Whether the volume at `path` needs its image.
    ///
    /// # Errors
    /// When the file cannot be read or is not a volume.
    pub fn needs_base(path: &Path) -> Result<bool, Error> {
        let file = File::open(path).map_err(Error::io(path, "opened"))?;
        Ok(tail_of(&file, path)?.is_some())
    }

    /// Opens the volume at `path`. `base` is needed, and must be the one that the volume was created over,
    /// unless the volume stands alone.
    ///
    /// # Errors
    /// When the file cannot be read, is not a volume, or the base is missing or another one.
    pub fn open(path: &Path, base: Option<Base>) -> Result<Self, Error> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(Error::io(path, "opened"))?;
        let Some((size, base_len, identity)) = tail_of(&file, path)? else {
            let size = file.metadata().map_err(Error::io(path, "examined"))?.len();
            return Ok(Volume {
                file,
                size,
                lazy: None,
                standalone: AtomicBool::new(true),
            });
        };
        let base = base.ok_or_else(|| Error::NeedsBase {
            path: path.to_owned(),
        })?;
        if base.len() != base_len || *base.identity() != identity {
            return Err(Error::OtherBase {
                path: path.to_owned(),
            });
        }
        if !keeps_holes(&file).map_err(Error::io(path, "examined"))? {
            return Err(Error::FileSystem {
                path: path.to_owned(),
            });
        }
        let present = Map::new(base.len().div_ceil(BLOCK));
        rebuild(&file, &base, &present).map_err(Error::io(path, "examined"))?;
        Ok(Volume::over_base(file, size, base, present))
    }

    /// Cuts off the tail: from now on the file is all there is. Everything was copied and is durable.
    pub(super) fn cut_tail(&self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        self.file.sync_all()
    }
}

fn create_file(path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    opened.map_err(Error::io(path, "created"))
}

/// Takes back a file that could not be completed. When even that fails, the first error says more.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Size, length of the base and identity of the base, for a volume that needs its base.
fn tail_of(file: &File, path: &Path) -> Result<Option<(u64, u64, [u8; 32])>, Error> {
    let damaged = || Error::Damaged {
        path: path.to_owned(),
    };
    let len = file.metadata().map_err(Error::io(path, "examined"))?.len();
    match len % SIZE_UNIT {
        0 if len > 0 => return Ok(None),
        BLOCK if len > BLOCK => {}
        _ => return Err(damaged()),
    }
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, len - BLOCK)
        .map_err(Error::io(path, "read"))?;
    if tail[..8] != *MAGIC {
        return Err(damaged());
    }
    let base_len = u64::from_le_bytes(std::array::from_fn(|i| tail[8 + i]));
    if base_len > len - BLOCK {
        return Err(damaged());
    }
    Ok(Some((
        len - BLOCK,
        base_len,
        std::array::from_fn(|i| tail[16 + i]),
    )))
}

/// Whether the file system reports holes exactly, in blocks no larger than [`BLOCK`], and says that something
/// is data only after the data. Those that do are named; a block size above 4 KiB (huge pages in tmpfs, large
/// sectors) rules one out all the same. overlayfs passes everything on to one of the others.
fn keeps_holes(file: &File) -> io::Result<bool> {
    const KNOWN: [i64; 7] = [
        0xef53,      // ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0xca45_1a4e, // bcachefs
        0x0102_1994, // tmpfs
        0x794c_7630, // overlayfs
    ];
    let kind = sparse::file_system(file)?;
    Ok(KNOWN.contains(&kind) && file.metadata()?.blksize() <= BLOCK)
}

/// Finds the blocks that are in the file. Where a crash has left a block in part (file system blocks can be
/// smaller than ours), the rest of it was never written and comes from the base.
fn rebuild(file: &File, base: &Base, present: &Map) -> io::Result<()> {
    let blocks = base.len().div_ceil(BLOCK);
    let mut at = 0;
    while at < blocks * BLOCK
        && let Some(data) = sparse::next_data(file, at)?
    {
        if data.start >= blocks * BLOCK {
            break;
        }
        let first = data.start / BLOCK * BLOCK;
        let end = data.end.div_ceil(BLOCK) * BLOCK;
        // Only what precedes this range in its first block: what a former range in the same block holds,
        // stays.
        copy(file, base, first.max(at), data.start)?;
        if data.end < end {
            let next = sparse::next_data(file, data.end)?.map_or(end, |next| next.start.min(end));
            copy(file, base, data.end, next)?;
        }
        present.insert(first / BLOCK..(end / BLOCK).min(blocks));
        at = data.end;
    }
    Ok(())
}

/// Copies `[start, end)`, less than a block, from the base.
fn copy(file: &File, base: &Base, start: u64, end: u64) -> io::Result<()> {
    let mut data = vec![0; end.saturating_sub(start) as usize];
    let slice = [VolatileSlice::from(&mut data[..])];
    base.read_at(start, &slice)?;
    vectored::write_all_at(file, start, &slice)
}

/// Makes `file` a copy of `base`, `size` bytes long.
fn fill(file: &File, base: &Base, size: u64) -> io::Result<()> {
    let (source, offset) = base.file();
    let shared = sparse::clone_range(source, offset, base.len(), file).is_ok();
    file.set_len(size)?;
    let mut buffer = vec![0; COPY as usize];
    let mut at = 0;
    while let Some(data) = base.next_data(at)? {
        at = data.start;
        while at < data.end {
            let part = (data.end - at).min(COPY) as usize;
            let slice = [VolatileSlice::from(&mut buffer[..part])];
            // Reading is what verifies; a shared file is complete already.
            base.read_at(at, &slice)?;
            if !shared {
                vectored::write_all_at(file, at, &slice)?;
            }
            at += part as u64;
        }
    }
    Ok(())
}
