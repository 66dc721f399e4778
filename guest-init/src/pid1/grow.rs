//! Growing the root file system to the size of its disk, online.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::sys::statvfs::statvfs;

use super::mounts;

nix::ioctl_write_ptr!(resize, b'f', 16, u64);

/// Growing by less than this is not worth the ioctl: statfs does not count the file system's own structures,
/// so a small difference is always there.
const SLACK: u64 = 1024 * 1024;

/// Grows the ext4 file system mounted at `point` to fill `device`. A failure is said; the system runs at its
/// old size.
pub fn to_disk_size(device: &str, point: &str) {
    let Some((blocks, block_size)) = wanted(device, point) else {
        return;
    };
    let result = File::open(point).and_then(|root| {
        // SAFETY: EXT4_IOC_RESIZE_FS reads the number of blocks, which lives until the call returns.
        unsafe { resize(root.as_raw_fd(), &blocks) }.map_err(std::io::Error::from)
    });
    if let Err(error) = result {
        mounts::say(&format!(
            "guest-init: the root file system could not be grown to {} MiB: {error}",
            (blocks * block_size) >> 20
        ));
    }
}

/// Blocks and block size of a file system that fills the disk, unless it does so already.
fn wanted(device: &str, point: &str) -> Option<(u64, u64)> {
    let name = device.strip_prefix("/dev/")?;
    let sectors: u64 = fs::read_to_string(format!("/sys/class/block/{name}/size"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let superblock = superblock(device)?;
    (sectors * 512 > superblock.blocks * superblock.block_size + SLACK)
        .then_some((sectors * 512 / superblock.block_size, superblock.block_size))
        .filter(|_| statvfs(point).is_ok())
}

struct Superblock {
    blocks: u64,
    block_size: u64,
}

/// Reads the two figures from the disk: what statfs says leaves out the file system's own blocks.
fn superblock(device: &str) -> Option<Superblock> {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 1024];
    File::open(device).ok()?.read_exact_at(&mut bytes, 1024).ok()?;
    parse_superblock(&bytes)
}

/// ext4's superblock (Documentation/filesystems/ext4/super.rst): counts at 0x4 and 0x150, log of the block
/// size at 0x18, magic at 0x38, incompatible features at 0x60.
fn parse_superblock(bytes: &[u8; 1024]) -> Option<Superblock> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let wide = u32_at(0x60) & 0x80 != 0;
    let high = if wide { u64::from(u32_at(0x150)) << 32 } else { 0 };
    let log = u32_at(0x18);
    (log <= 6).then(|| Superblock {
        blocks: high | u64::from(u32_at(4)),
        block_size: 1024 << log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_is_read() {
        let mut bytes = [0; 1024];
        assert!(parse_superblock(&bytes).is_none());
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[4..8].copy_from_slice(&1000_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x150] = 1;
        let narrow = parse_superblock(&bytes).unwrap();
        assert_eq!((narrow.blocks, narrow.block_size), (1000, 4096));
        bytes[0x60] = 0x80;
        assert_eq!(parse_superblock(&bytes).unwrap().blocks, (1 << 32) + 1000);
        bytes[0x18] = 60;
        assert!(parse_superblock(&bytes).is_none());
    }
}
