//! Checks of an untrusted file system before `mkext4` reads it: `mkext4` checks neither all sums for overflow
//! nor the length of all walks.

use mkext4::Error;
use mkext4::reader::{Fs, ReadAt};
use mkext4::spec::extent::{Extent, ExtentHeader, ExtentIdx, entry};
use mkext4::spec::inode::{FileType, Inode};

use super::corrupt;

/// Where the superblock is, and what in it is looked at here (ext4 disk layout, "The Super Block").
const SUPERBLOCK: u64 = 1024;
const BLOCKS_COUNT_LOW: usize = 0x4;
const FIRST_DATA_BLOCK: usize = 0x14;
const LOG_BLOCK_SIZE: usize = 0x18;
const BLOCKS_COUNT_HIGH: usize = 0x150;
/// Bytes of a block, the only size that is known here, and the superblock's number for it.
pub const BLOCK: u64 = 4096;
const LOG_BLOCK: u32 = 2;

/// Refuses sizes with which the reader would calculate beyond its integers.
pub fn superblock(device: &impl ReadAt, length: u64) -> Result<(), Error> {
    let mut bytes = [0; 0x154];
    device.read_exact_at(SUPERBLOCK, &mut bytes)?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if word(LOG_BLOCK_SIZE) != LOG_BLOCK {
        let log = word(LOG_BLOCK_SIZE);
        return Err(corrupt(&format!(
            "its blocks have 2^(10 + {log}) bytes, and only {BLOCK} are known here"
        )));
    }
    let blocks = u64::from(word(BLOCKS_COUNT_LOW)) | u64::from(word(BLOCKS_COUNT_HIGH)) << 32;
    let first = u64::from(word(FIRST_DATA_BLOCK));
    if blocks > length / BLOCK || first >= blocks {
        return Err(corrupt(&format!(
            "blocks {first} to {blocks} are not within its {length} bytes"
        )));
    }
    Ok(())
}

/// Refuses tables of inodes outside of the file system.
pub fn groups<R: ReadAt>(fs: &Fs<R>, length: u64) -> Result<(), Error> {
    for group in 0..fs.superblock().group_count() {
        let table = fs.group_desc(group)?.inode_table;
        if table >= length / BLOCK {
            return Err(corrupt(&format!(
                "group {group} has its inodes at block {table}, outside of the file system"
            )));
        }
    }
    Ok(())
}

/// Deepest tree of extents: ext4 makes none that is deeper.
const MAX_DEPTH: u16 = 5;

/// Refuses a directory or link that is longer than the file system, and extents that do not bring the file
/// on: a small tree that names one node many times would make the listing endless. Returns how many extents
/// there are.
pub fn inode<R: ReadAt>(fs: &Fs<R>, number: u32, inode: &Inode, length: u64) -> Result<u64, Error> {
    if matches!(inode.file_type(), FileType::Dir | FileType::Symlink) && inode.size > length {
        let size = inode.size;
        return Err(corrupt(&format!(
            "inode {number} is a directory or link of {size} bytes"
        )));
    }
    match inode.extent_root() {
        Some(root) => node(fs, number, root, None, &mut 0),
        None => Ok(0),
    }
}

/// Counts the extents of one node of a tree, which begin at the block `next` of the file or behind it.
fn node<R: ReadAt>(
    fs: &Fs<R>,
    number: u32,
    bytes: &[u8],
    parent: Option<u16>,
    next: &mut u64,
) -> Result<u64, Error> {
    let header = ExtentHeader::decode(bytes)?;
    let room = (bytes.len() - ExtentHeader::LEN) / ExtentHeader::ENTRY_LEN;
    let entries = usize::from(header.entries);
    let (depth, empty) = (header.depth, entries == 0);
    let fits = parent.map_or(depth <= MAX_DEPTH, |parent| depth + 1 == parent && !empty);
    if !fits || entries > room {
        return Err(corrupt(&format!(
            "inode {number} has a malformed tree of extents"
        )));
    }
    let mut count = 0;
    for index in 0..entries {
        let entry = entry(bytes, index);
        if depth > 0 {
            let child = fs.read_block(ExtentIdx::decode(entry).leaf)?;
            count += node(fs, number, &child, Some(depth), next)?;
            continue;
        }
        let extent = Extent::decode(entry);
        if u64::from(extent.logical) < *next || extent.is_empty() {
            return Err(corrupt(&format!(
                "inode {number} has extents that overlap or go backwards"
            )));
        }
        *next = u64::from(extent.logical) + u64::from(extent.len());
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::ext4::{FileSystem, Settings, plan};
    use crate::progress::Quiet;
    use crate::tree::{Kind, Meta, Tree};

    const LENGTH: u64 = 32 << 20;

    /// An empty file system and a place in it for a node.
    struct Device(Vec<u8>);

    impl ReadAt for Device {
        fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            let at = offset as usize;
            let bytes = self.0.get(at..at + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    fn device() -> Device {
        let mut tree = Tree::new();
        tree.insert(b"pipe", Kind::Fifo, Meta::new(0o600, 0, 0, 0))
            .unwrap();
        let size = Some(LENGTH);
        let plan = plan(&tree, Settings { size, epoch: 0 }).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(plan.length()).unwrap();
        plan.write(file.as_file(), 0, &Quiet).unwrap();
        Device(std::fs::read(file.path()).unwrap())
    }

    /// A node of `depth` with entries of three words each.
    fn tree(depth: u16, entries: &[[u32; 3]]) -> Vec<u8> {
        let count = entries.len() as u16;
        let header = ExtentHeader {
            entries: count,
            max: count,
            depth,
            generation: 0,
        };
        let mut bytes = vec![0; ExtentHeader::LEN];
        header.encode(&mut bytes);
        bytes.extend(entries.iter().flatten().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_tree_that_names_a_node_twice_is_not_walked_twice() {
        const NODE: u32 = 8000;
        let mut device = device();
        let leaf = tree(0, &[[0, 1, 100], [1, 1, 101]]);
        let at = NODE as usize * BLOCK as usize;
        device.0[at..at + leaf.len()].copy_from_slice(&leaf);
        let fs = Fs::open(device).unwrap();
        let walk = |root: &[u8]| node(&fs, 12, root, None, &mut 0).map_err(|error| error.to_string());
        assert_eq!(walk(&tree(1, &[[0, NODE, 0]])), Ok(2));
        let twice = walk(&tree(1, &[[0, NODE, 0], [0, NODE, 0]])).unwrap_err();
        assert!(
            twice.contains("inode 12 has extents that overlap or go backwards"),
            "{twice}"
        );
        for malformed in [tree(6, &[[0, NODE, 0]]), tree(2, &[[0, NODE, 0]])] {
            assert!(walk(&malformed).unwrap_err().contains("malformed"));
        }
    }

    #[test]
    fn empty_nodes_below_the_root_are_refused() {
        let mut device = device();
        let empty = tree(0, &[]);
        device.0[..empty.len()].copy_from_slice(&empty);
        let fs = Fs::open(device).unwrap();
        assert!(node(&fs, 12, &tree(1, &[[0, 0, 0]]), None, &mut 0).is_err());
        assert!(node(&fs, 12, &tree(0, &[]), None, &mut 0).is_ok());
    }
}
