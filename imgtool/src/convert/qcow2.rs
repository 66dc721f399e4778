//! A raw image as qcow2, version 3 (docs/interop/qcow2.rst of QEMU): header, L1 and L2 tables, reference
//! counts.
//!
//! Clusters of zeros are not stored. The same content is the same file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::progress::Step;

/// Bytes of a cluster: QEMU's default.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of an L2 table, which fills a cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Reference counts (16 bits each) of a refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
/// The entry's cluster is referred to once: it may be written in place.
const COPIED: u64 = 1 << 63;

/// Write the range `[offset, offset + length)` of `from` as a qcow2 into an empty file.
pub fn write(from: &File, offset: u64, length: u64, to: &File, step: &dyn Step) -> io::Result<()> {
    let clusters = length.div_ceil(CLUSTER);
    let l2_tables = clusters.div_ceil(L2_ENTRIES);
    let l1_clusters = (l2_tables * 8).div_ceil(CLUSTER);
    // Header, then L1; L2 tables and data as they come; reference counts at the end, when their number is
    // known.
    let l1_at = CLUSTER;
    let mut next = 1 + l1_clusters;
    let mut l1 = Vec::with_capacity(l2_tables as usize);
    let mut buffer = vec![0; CLUSTER as usize];
    for table in 0..l2_tables {
        let mut l2 = vec![0u8; CLUSTER as usize];
        let first = table * L2_ENTRIES;
        let table_at = next;
        let mut used = false;
        for index in first..clusters.min(first + L2_ENTRIES) {
            let start = index * CLUSTER;
            let piece = CLUSTER.min(length - start) as usize;
            buffer[piece..].fill(0);
            from.read_exact_at(&mut buffer[..piece], offset + start)?;
            step.advance(piece as u64);
            if buffer.iter().all(|byte| *byte == 0) {
                continue;
            }
            if !used {
                (used, next) = (true, next + 1);
            }
            to.write_all_at(&buffer, next * CLUSTER)?;
            let at = (index - first) as usize * 8;
            l2[at..at + 8].copy_from_slice(&((next * CLUSTER) | COPIED).to_be_bytes());
            next += 1;
        }
        if used {
            to.write_all_at(&l2, table_at * CLUSTER)?;
            l1.push((table_at * CLUSTER) | COPIED);
        } else {
            l1.push(0);
        }
    }
    let l1_bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    to.write_all_at(&l1_bytes, l1_at)?;
    let (refcounts_at, table_clusters) = write_refcounts(to, next)?;
    to.write_all_at(
        &header(length, l1.len() as u32, l1_at, refcounts_at, table_clusters),
        0,
    )
}

/// Reference counts for every cluster before `used` and for themselves: a table of blocks behind the data.
/// Gives the table's place and how many clusters it takes.
fn write_refcounts(to: &File, used: u64) -> io::Result<(u64, u32)> {
    let (mut blocks, mut table) = (0, 0);
    // They count themselves, so their number is a fixed point; it is reached in a few rounds.
    loop {
        let total = used + blocks + table;
        let (need_blocks, need_table) = (
            total.div_ceil(REFCOUNTS),
            (total.div_ceil(REFCOUNTS) * 8).div_ceil(CLUSTER),
        );
        if (need_blocks, need_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (need_blocks, need_table);
    }
    let total = used + blocks + table;
    let mut entries = vec![0u8; (table * CLUSTER) as usize];
    for block in 0..blocks {
        let at = used + table + block;
        entries[block as usize * 8..][..8].copy_from_slice(&(at * CLUSTER).to_be_bytes());
        let counted = REFCOUNTS.min(total - block * REFCOUNTS) as usize;
        let mut counts = vec![0u8; CLUSTER as usize];
        counts[..counted * 2]
            .chunks_exact_mut(2)
            .for_each(|count| count.copy_from_slice(&1u16.to_be_bytes()));
        to.write_all_at(&counts, at * CLUSTER)?;
    }
    to.write_all_at(&entries, used * CLUSTER)?;
    to.set_len(total * CLUSTER)?;
    Ok((used * CLUSTER, table as u32))
}

fn header(length: u64, l1_entries: u32, l1_at: u64, refcounts_at: u64, refcount_clusters: u32) -> Vec<u8> {
    let mut header = b"QFI\xfb".to_vec();
    header.extend(3u32.to_be_bytes()); // version
    header.extend([0; 12]); // no backing file
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(length.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend(l1_entries.to_be_bytes());
    header.extend(l1_at.to_be_bytes());
    header.extend(refcounts_at.to_be_bytes());
    header.extend(refcount_clusters.to_be_bytes());
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no feature bits
    header.extend(4u32.to_be_bytes()); // reference counts of 1 << 4 bits
    header.extend(104u32.to_be_bytes()); // header length
    header.extend([0; 8]); // end of header extensions
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;
    use std::process::Command;

    #[test]
    fn qemu_reads_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, qcow2, back) = (
            dir.path().join("raw"),
            dir.path().join("qcow2"),
            dir.path().join("back"),
        );
        let source = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&raw)
            .unwrap();
        // More than one L2 table (512 MiB each), holes, an odd end.
        let length = (1100 << 20) + 4096;
        source.set_len(length).unwrap();
        for at in [0, 70_000, 600 << 20, length - 10] {
            source.write_all_at(b"0123456789", at).unwrap();
        }
        let target = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&qcow2)
            .unwrap();
        write(&source, 0, length, &target, &Quiet).unwrap();
        assert!(target.metadata().unwrap().len() < 1 << 20);
        let run = |arguments: &[&str]| Command::new("qemu-img").args(arguments).output();
        let (qcow2, raw, back) = (
            qcow2.to_str().unwrap(),
            raw.to_str().unwrap(),
            back.to_str().unwrap(),
        );
        let Ok(check) = run(&["check", "-f", "qcow2", qcow2]) else {
            eprintln!("skipped: qemu-img is not installed");
            return;
        };
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
        let compare = run(&["compare", "-f", "raw", "-F", "qcow2", raw, qcow2]).unwrap();
        assert!(
            compare.status.success(),
            "{}",
            String::from_utf8_lossy(&compare.stdout)
        );
        run(&["convert", "-f", "qcow2", "-O", "raw", qcow2, back]).unwrap();
        assert_eq!(std::fs::metadata(back).unwrap().len(), length);
    }
}
