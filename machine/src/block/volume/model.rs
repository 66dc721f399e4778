//! The volume against an oracle: random requests, hydration, reopening, and power cuts that lose or tear what
//! was not flushed.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::*;
use crate::entropy::chance::Chance;

const SECTOR: u64 = 512;

/// Somewhere to put files. In memory if possible, because the model checks the logic thousands of times; the
/// other tests use whatever file system there is.
fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn sector_bytes(tag: u32) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if tag != 0 {
        for word in bytes.chunks_mut(4) {
            word.copy_from_slice(&tag.to_le_bytes());
        }
    }
    bytes
}

fn tag_of(bytes: &[u8]) -> u32 {
    let tag = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    assert!(bytes == sector_bytes(tag), "a torn sector");
    tag
}

/// An image with a partition at 1 MiB whose sectors are partly holes. Returns the tag of each sector.
fn image(path: &Path, len: u64, chance: &mut Chance) -> Vec<u32> {
    let file = File::create(path).unwrap();
    file.set_len((2 << 20) + len).unwrap();
    file.write_all_at(&[0xee; 4096], (1 << 20) - 4096).unwrap();
    file.write_all_at(&[0xee; 4096], (1 << 20) + len).unwrap();
    let mut tags = vec![0; (len / SECTOR) as usize];
    for block in 0..len / BLOCK {
        if chance.below(3) > 0 {
            for sector in block * 8..block * 8 + 8 {
                // Some blocks are data that is all zeros.
                tags[sector as usize] = if chance.below(8) == 0 {
                    0
                } else {
                    0x8000_0000 | sector as u32
                };
            }
            let bytes: Vec<u8> = (block * 8..block * 8 + 8)
                .flat_map(|s| sector_bytes(tags[s as usize]))
                .collect();
            file.write_all_at(&bytes, (1 << 20) + block * BLOCK).unwrap();
        }
    }
    tags
}

fn base(path: &Path, len: u64) -> Base {
    let expected = Arc::new({
        let mut all = vec![0; len as usize];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut all, 1 << 20)
            .unwrap();
        all
    });
    let verify: Verify = Box::new(move |number, content| {
        let start = number as usize * 16384;
        let mut data = Vec::new();
        content.read_to_end(&mut data)?;
        Ok(expected[start..start + data.len()] == *data)
    });
    Base::new(File::open(path).unwrap(), 1 << 20, len, [7; 32])
        .verified_by(16384, verify)
        .unwrap()
}

/// The volume under test and what each sector may hold.
struct Model {
    volume: Volume,
    path: PathBuf,
    /// What a read returns now.
    now: Vec<u32>,
    /// What each sector has held since the last flush, and at it: what a power cut may leave.
    possible: Vec<HashSet<u32>>,
    at_flush: PathBuf,
    next_tag: u32,
    hydrated: u64,
}

impl Model {
    fn new(dir: &Path, base: Base, tags: &[u32], size: u64) -> Self {
        let path = dir.join("volume");
        let volume = Volume::create(&path, base, size).unwrap();
        let mut now = tags.to_vec();
        now.resize((size / SECTOR) as usize, 0);
        let at_flush = dir.join("at-flush");
        let mut model = Model {
            volume,
            path,
            possible: now.iter().map(|&tag| HashSet::from([tag])).collect(),
            now,
            at_flush,
            next_tag: 1,
            hydrated: 0,
        };
        model.flush();
        model
    }

    fn sectors(&self, chance: &mut Chance) -> std::ops::Range<usize> {
        let all = self.now.len() as u64;
        let start = chance.below(all);
        let longest = if chance.below(4) == 0 { 300 } else { 20 };
        start as usize..(start + 1 + chance.below(longest)).min(all) as usize
    }

    fn write(&mut self, sectors: std::ops::Range<usize>, chance: &mut Chance) {
        let mut bytes = Vec::new();
        for sector in sectors.clone() {
            self.next_tag += 1;
            bytes.extend(sector_bytes(self.next_tag));
            self.now[sector] = self.next_tag;
            self.possible[sector].insert(self.next_tag);
        }
        let cut = chance.below(bytes.len() as u64 + 1) as usize;
        let (front, back) = bytes.split_at_mut(cut);
        let buffers = [VolatileSlice::from(front), VolatileSlice::from(back)];
        self.volume
            .write_at(sectors.start as u64 * SECTOR, &buffers)
            .unwrap();
    }

    fn zero(&mut self, sectors: std::ops::Range<usize>, unmap: bool) {
        let (offset, len) = (sectors.start as u64 * SECTOR, sectors.len() as u64 * SECTOR);
        self.volume.write_zeroes(offset, len, unmap).unwrap();
        for sector in sectors {
            self.now[sector] = 0;
            self.possible[sector].insert(0);
        }
    }

    fn discard(&mut self, sectors: std::ops::Range<usize>) {
        self.volume
            .discard(sectors.start as u64 * SECTOR, sectors.len() as u64 * SECTOR)
            .unwrap();
        for (sector, tag) in sectors.clone().zip(self.read(sectors)) {
            assert!(
                tag == 0 || tag == self.now[sector],
                "discard exposed {tag:#x} in sector {sector}"
            );
            self.now[sector] = tag;
            self.possible[sector].insert(tag);
        }
    }

    fn read(&self, sectors: std::ops::Range<usize>) -> Vec<u32> {
        let mut bytes = vec![0xaa; sectors.len() * SECTOR as usize];
        let (front, back) = bytes.split_at_mut(sectors.len() * 100);
        let buffers = [VolatileSlice::from(front), VolatileSlice::from(back)];
        self.volume
            .read_at(sectors.start as u64 * SECTOR, &buffers)
            .unwrap();
        bytes.chunks(SECTOR as usize).map(tag_of).collect()
    }

    fn check(&self, sectors: std::ops::Range<usize>) {
        assert_eq!(
            self.read(sectors.clone()),
            self.now[sectors.clone()],
            "sectors {sectors:?}"
        );
    }

    fn flush(&mut self) {
        // Durability itself is the host's; the test only remembers the file as it is at this moment.
        copy_with_holes(&self.path, &self.at_flush);
        self.possible = self.now.iter().map(|&tag| HashSet::from([tag])).collect();
    }

    fn reopen(&mut self, base: Base) {
        self.volume = Volume::open(&self.path, Some(base)).unwrap();
        self.hydrated = 0;
    }

    /// The host loses power: each block of the file is as at the last flush, as it is now, or torn between
    /// its sectors, by chance.
    fn power_cut(&mut self, base: Base, chance: &mut Chance) {
        let cut = self.path.with_extension("cut");
        copy_with_holes(&self.at_flush, &cut);
        let (file, now) = (
            File::options().write(true).open(&cut).unwrap(),
            File::open(&self.path).unwrap(),
        );
        let len = now.metadata().unwrap().len().min(file.metadata().unwrap().len());
        for block in 0..len / BLOCK {
            match chance.below(5) {
                0..2 => copy_block(&now, &file, block * BLOCK),
                2 => tear_block(&now, &file, block * BLOCK, chance),
                _ => {}
            }
        }
        std::fs::rename(&cut, &self.path).unwrap();
        self.reopen(base);
        self.now = self.read(0..self.now.len());
        for (sector, tag) in self.now.iter().enumerate() {
            assert!(
                self.possible[sector].contains(tag),
                "sector {sector} holds {tag:#x} after a power cut, not one of {:x?}",
                self.possible[sector]
            );
        }
        self.flush();
    }

    fn hydrate(&mut self) {
        match self.volume.hydrate(self.hydrated).unwrap() {
            Some(next) => self.hydrated = next,
            // The length is journalled after the data: from here on a power cut leaves a file that stands
            // alone.
            None => self.flush(),
        }
    }
}

fn copy_with_holes(from: &Path, to: &Path) {
    let (source, target) = (File::open(from).unwrap(), File::create(to).unwrap());
    target.set_len(source.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    while let Some(data) = sparse::next_data(&source, at).unwrap() {
        let mut bytes = vec![0; (data.end - data.start) as usize];
        source.read_exact_at(&mut bytes, data.start).unwrap();
        target.write_all_at(&bytes, data.start).unwrap();
        at = data.end;
    }
}

fn is_data(file: &File, offset: u64) -> bool {
    let next = sparse::next_data(file, offset).unwrap();
    next.is_some_and(|data| data.start < offset + BLOCK)
}

/// Copies some sectors of a block that is data in both. A file system makes a hole data, or data a hole, at
/// once.
fn tear_block(source: &File, target: &File, offset: u64, chance: &mut Chance) {
    if !is_data(source, offset) || !is_data(target, offset) {
        return;
    }
    for at in (offset..offset + BLOCK).step_by(SECTOR as usize) {
        if chance.below(2) == 0 {
            let mut sector = [0; SECTOR as usize];
            source.read_exact_at(&mut sector, at).unwrap();
            target.write_all_at(&sector, at).unwrap();
        }
    }
}

/// Makes the block at `offset` data or a hole, as it is in `source`.
fn copy_block(source: &File, target: &File, offset: u64) {
    if is_data(source, offset) {
        let mut block = [0; BLOCK as usize];
        source.read_exact_at(&mut block, offset).unwrap();
        target.write_all_at(&block, offset).unwrap();
    } else {
        sparse::punch(target, offset, BLOCK).unwrap();
    }
}

fn run(dir: tempfile::TempDir, seed: u64, rounds: u32, with_hydration: bool) {
    let mut chance = Chance(seed);
    let len = (1 << 20) - 3 * BLOCK;
    let image_path = dir.path().join("image");
    let tags = image(&image_path, len, &mut chance);
    let mut model = Model::new(dir.path(), base(&image_path, len), &tags, 2 << 20);
    for _ in 0..rounds {
        let sectors = model.sectors(&mut chance);
        match chance.below(100) {
            0..40 => model.write(sectors, &mut chance),
            40..70 => model.check(sectors),
            70..78 => model.discard(sectors),
            78..88 => model.zero(sectors, chance.below(2) == 0),
            88..92 => model.flush(),
            92..94 => model.reopen(base(&image_path, len)),
            94..96 => model.power_cut(base(&image_path, len), &mut chance),
            _ if with_hydration => model.hydrate(),
            _ => {}
        }
    }
    model.check(0..model.now.len());
    while !model.volume.stands_alone() {
        model.hydrate();
    }
    model.check(0..model.now.len());
    drop(model.volume);
    model.volume = Volume::open(&model.path, None).unwrap();
    model.check(0..model.now.len());
    let plain = std::fs::read(&model.path).unwrap();
    assert_eq!(
        plain.len() as u64,
        2 << 20,
        "a volume that stands alone is a plain disk image"
    );
    assert!(
        plain
            .chunks(SECTOR as usize)
            .map(tag_of)
            .eq(model.now.iter().copied())
    );
}

/// How many seeds are tried: as many as `KILN_MODEL_SEEDS` says, for who has the time.
fn seeds(otherwise: u64) -> std::ops::Range<u64> {
    let seeds = std::env::var("KILN_MODEL_SEEDS").ok();
    1..1 + seeds.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_volume_behaves_like_a_disk_with_hydration() {
    for seed in seeds(8) {
        run(quick_dir(), seed, 600, true);
    }
}

#[test]
fn a_volume_behaves_like_a_disk_without_hydration() {
    for seed in seeds(5) {
        run(quick_dir(), seed ^ 1 << 32, 600, false);
    }
}

#[test]
fn a_volume_behaves_like_a_disk_on_this_file_system() {
    run(tempfile::tempdir().unwrap(), 77, 150, true);
}

#[test]
fn a_damaged_base_is_an_error_and_never_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut chance = Chance(9);
    image(&path, 1 << 20, &mut chance);
    let good = base(&path, 1 << 20);
    let volume = Volume::create(&dir.path().join("v"), good, 1 << 20).unwrap();
    // One byte of the second chunk, after the digests were made.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[0x55], (1 << 20) + 20000)
        .unwrap();
    let mut block = [0; 4096];
    let read = |at: u64, to: &mut [u8]| volume.read_at(at, &[VolatileSlice::from(to)]);
    read(0, &mut block).unwrap();
    assert_eq!(
        read(16384, &mut block).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    // A partial write would need the damaged block; a whole one does not.
    let write = |at: u64, from: &mut [u8]| volume.write_at(at, &[VolatileSlice::from(from)]);
    assert!(write(20480, &mut [1; 512]).is_err());
    write(20480, &mut [2; 4096]).unwrap();
    read(20480, &mut block).unwrap();
    assert_eq!(block, [2; 4096]);
    assert!(volume.hydrate(0).is_err());
    assert!(!volume.stands_alone());
}

#[test]
fn volumes_know_their_base() {
    let dir = tempfile::tempdir().unwrap();
    let (image_path, path) = (dir.path().join("image"), dir.path().join("v"));
    image(&image_path, 1 << 20, &mut Chance(3));
    let make = |identity| Base::new(File::open(&image_path).unwrap(), 1 << 20, 1 << 20, identity);
    assert!(
        Volume::create(&path, make([1; 32]), 4096).is_ok(),
        "sizes are rounded up"
    );
    assert!(Volume::needs_base(&path).unwrap());
    assert!(
        matches!(
            Volume::create(&path, make([1; 32]), 1 << 20),
            Err(Error::Io { .. })
        ),
        "it exists"
    );
    assert!(matches!(Volume::open(&path, None), Err(Error::NeedsBase { .. })));
    assert!(matches!(
        Volume::open(&path, Some(make([2; 32]))),
        Err(Error::OtherBase { .. })
    ));
    assert_eq!(Volume::open(&path, Some(make([1; 32]))).unwrap().size(), 1 << 20);
    let big = Base::new(File::open(&image_path).unwrap(), 0, 3 << 20, [1; 32]);
    assert!(matches!(
        Volume::create(&dir.path().join("w"), big, 1 << 20),
        Err(Error::TooSmall { .. })
    ));
    for len in [0, 4096, 5000, (1 << 20) + 4096] {
        let file = dir.path().join(format!("bad{len}"));
        File::create(&file).unwrap().set_len(len).unwrap();
        assert!(
            matches!(Volume::open(&file, None), Err(Error::Damaged { .. })),
            "{len}"
        );
    }
}

#[test]
fn a_full_copy_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image_path = dir.path().join("image");
    let tags = image(&image_path, 1 << 20, &mut Chance(4));
    let path = dir.path().join("v");
    let volume = Volume::create_full(&path, &base(&image_path, 1 << 20), 3 << 20).unwrap();
    assert!(volume.stands_alone() && !Volume::needs_base(&path).unwrap());
    let plain = std::fs::read(&path).unwrap();
    assert_eq!(plain.len(), 3 << 20);
    assert!(plain.chunks(512).map(tag_of).take(tags.len()).eq(tags));
    assert!(volume.allocated().unwrap() <= 1 << 20);
}

#[test]
fn creation_allocates_one_block_at_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let image_path = dir.path().join("image");
    image(&image_path, 1 << 20, &mut Chance(4));
    for size in [1 << 30, 100 << 30] {
        let path = dir.path().join(size.to_string());
        let volume = Volume::create(&path, base(&image_path, 1 << 20), size).unwrap();
        assert_eq!((volume.size(), volume.allocated().unwrap()), (size, 0));
        assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) <= 16);
    }
}
