//! KVM's own statistics: exits of any kind, faults in the nested page tables, interrupts (Linux,
//! Documentation/virt/kvm/api.rst, `KVM_GET_STATS_FD`). What user space sees of a guest is a small part of
//! what the processor does for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Bytes of `struct kvm_stats_header`: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before its name: flags, exponent, size, offset, bucket_size.
const DESCRIPTOR: usize = 16;
/// Most descriptors that are read. Linux 6.12 has 17 for a virtual machine and 70 for a virtual processor.
const MAX_DESCRIPTORS: u32 = 1024;
/// Longest name in bytes; the kernel's is 48.
const MAX_NAME: u32 = 256;
/// Bits of `flags` that say what a value means, and their values: a counter that only grows, and one that is
/// a level.
const TYPE_MASK: u32 = 0xf;
const TYPE_CUMULATIVE: u32 = 0;
const TYPE_INSTANT: u32 = 1;

/// One statistic's place among the data.
#[derive(Debug)]
struct Descriptor {
    name: String,
    /// Bytes from the start of the file.
    offset: u64,
}

/// The statistics of a virtual machine or of one virtual processor.
#[derive(Debug)]
pub(super) struct Stats {
    file: File,
    descriptors: Vec<Descriptor>,
}

impl Stats {
    /// Opens those of `fd`, a virtual machine's or a virtual processor's descriptor. Hosts before Linux 5.14
    /// have none: `ENOTTY`.
    pub(super) fn open(fd: &impl AsRawFd) -> io::Result<Stats> {
        // SAFETY: the ioctl takes no argument and returns a new descriptor or a negative number.
        let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD as _) };
        if stats < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Stats::read_descriptors(unsafe { File::from_raw_fd(stats) })
    }

    fn read_descriptors(file: File) -> io::Result<Stats> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let (name_size, count) = (u32_at(&header, 4), u32_at(&header, 8));
        let (first, data) = (u64::from(u32_at(&header, 16)), u64::from(u32_at(&header, 20)));
        if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
            return Err(io::Error::other("KVM's statistics have an unknown format"));
        }
        let size = DESCRIPTOR + name_size as usize;
        let mut bytes = vec![0; size * count as usize];
        file.read_exact_at(&mut bytes, first)?;
        let counter = |descriptor: &[u8]| {
            let kind = u32_at(descriptor, 0) & TYPE_MASK;
            // Histograms have several values.
            let single = u16::from_ne_bytes([descriptor[6], descriptor[7]]) == 1;
            (single && matches!(kind, TYPE_CUMULATIVE | TYPE_INSTANT)).then(|| {
                let name = &descriptor[DESCRIPTOR..];
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                Descriptor {
                    name: String::from_utf8_lossy(&name[..end]).into_owned(),
                    offset: data + u64::from(u32_at(descriptor, 8)),
                }
            })
        };
        let descriptors = bytes.chunks_exact(size).filter_map(counter).collect();
        Ok(Stats { file, descriptors })
    }

    /// Adds every statistic's value to the one of its name in `sums`.
    pub(super) fn add_to(&self, sums: &mut Vec<(String, u64)>) -> io::Result<()> {
        let Some(first) = self.descriptors.iter().map(|d| d.offset).min() else {
            return Ok(());
        };
        let end = self
            .descriptors
            .iter()
            .map(|d| d.offset + 8)
            .max()
            .unwrap_or(first);
        // One call for all: each would cost the guest an exit's time.
        let mut data = vec![0; (end - first) as usize];
        self.file.read_exact_at(&mut data, first)?;
        for Descriptor { name, offset } in &self.descriptors {
            let at = (offset - first) as usize;
            let value = data[at..]
                .first_chunk()
                .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name.clone(), value)),
            }
        }
        Ok(())
    }
}

/// A native 32-bit number. The callers' slices hold it.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file as the kernel makes it: two counters and a histogram of three buckets.
    fn file() -> File {
        let mut bytes = Vec::new();
        let descriptors: [(u32, u16, u32, &[u8; 16]); 3] = [
            (TYPE_CUMULATIVE, 1, 0, b"exits\0\0\0\0\0\0\0\0\0\0\0"),
            (2, 3, 8, b"halt_wait_hist\0\0"),
            (TYPE_INSTANT, 1, 32, b"pages_2m\0\0\0\0\0\0\0\0"),
        ];
        for number in [
            0,
            16,
            3,
            HEADER as u32,
            HEADER as u32 + 8,
            HEADER as u32 + 8 + 3 * 32,
        ] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(*b"kvm-1\0\0\0");
        for (flags, size, offset, name) in descriptors {
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(0u16.to_ne_bytes());
            bytes.extend(size.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(name);
        }
        for value in [5438u64, 1, 2, 3, 38] {
            bytes.extend(value.to_ne_bytes());
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counters_are_summed_by_name_and_histograms_are_left_out() {
        let stats = Stats::read_descriptors(file()).unwrap();
        let mut sums = vec![("pages_2m".to_owned(), 2)];
        stats.add_to(&mut sums).unwrap();
        assert_eq!(sums, [("pages_2m".to_owned(), 40), ("exits".to_owned(), 5438)]);
    }

    #[test]
    fn an_unknown_format_is_an_error() {
        let damaged = file();
        damaged.write_all_at(&u32::MAX.to_ne_bytes(), 8).unwrap();
        assert!(Stats::read_descriptors(damaged).is_err());
        assert!(Stats::read_descriptors(tempfile::tempfile().unwrap()).is_err());
    }
}
