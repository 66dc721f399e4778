//! Kernel and initramfs into RAM: an uncompressed `Image` low, the initramfs as high as it may be.
//!
//! Not through `linux-loader`, whose loader for this format is compiled on arm64 only and does not say how
//! much RAM the kernel needs behind its file: this module runs, and is tested, on every host.

use std::io::Read;

use super::{Error, layout};
use crate::arch::KernelError;
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory, PAGE, Part};

/// Bytes of the header (Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image").
const HEADER: usize = 64;
/// Offsets in it: distance of the image from a multiple of 2 MiB; memory that it takes, its zeroed data
/// included; the mark.
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const MAGIC: usize = 56;
/// The distance in kernels before 3.17, whose headers name no size.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// A kernel that lies in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arch) struct Kernel {
    /// Its first instruction.
    pub(super) entry: u64,
    /// First byte after the kernel and its uninitialized data.
    pub(super) end: u64,
    /// Where the initramfs lies: address and length in bytes.
    pub(super) initrd: Option<(u64, u64)>,
}

/// Puts `kernel` and `initrd` into RAM.
pub(in crate::arch) fn load(memory: &Memory, kernel: &Part, initrd: Option<&Part>) -> Result<Kernel, Error> {
    let mut loaded = place(memory, kernel).map_err(|source| Error::Kernel {
        path: kernel.path().to_owned(),
        source,
        wanted: "an uncompressed arm64 Image",
    })?;
    let ram = ram_end(memory);
    if loaded.end > ram {
        return Err(Error::Room {
            what: "the kernel",
            needed: loaded.end - layout::RAM,
            free: ram - layout::RAM,
        });
    }
    kernel.place(memory, loaded.entry)?;
    if let Some(initrd) = initrd.filter(|initrd| !initrd.is_empty()) {
        let at = place_initrd(ram, loaded.end, initrd.len())?;
        initrd.place(memory, at)?;
        loaded.initrd = Some((at, initrd.len()));
    }
    Ok(loaded)
}

/// Where `kernel` goes, by its header.
fn place(memory: &Memory, kernel: &Part) -> Result<Kernel, KernelError> {
    let mut head = [0; HEADER];
    kernel
        .reader(memory)
        .read_exact(&mut head)
        .map_err(KernelError::Header)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| head[at + n]));
    if &head[MAGIC..MAGIC + 4] != b"ARM\x64" {
        return Err(match head {
            [0x1f, 0x8b, ..] => KernelError::Compressed,
            [0x7f, b'E', b'L', b'F', ..] => KernelError::Elf,
            _ => KernelError::NoImage,
        });
    }
    let (offset, size) = match word(IMAGE_SIZE) {
        0 => (OLD_TEXT_OFFSET, kernel.len()),
        size => (word(TEXT_OFFSET), size.max(kernel.len())),
    };
    let entry = layout::KERNEL.checked_add(offset);
    let end = entry.and_then(|entry| entry.checked_add(size));
    match (entry, end) {
        (Some(entry), Some(end)) => Ok(Kernel {
            entry,
            end,
            initrd: None,
        }),
        _ => Err(KernelError::TooLarge),
    }
}

/// End of RAM, exclusive.
fn ram_end(memory: &Memory) -> u64 {
    memory
        .iter()
        .find(|region| region.start_addr().0 == layout::RAM)
        .map_or(layout::RAM, |region| layout::RAM + region.len())
}

/// The highest page-aligned place for `len` bytes that is RAM, that the kernel accepts and that does not
/// touch it.
fn place_initrd(ram: u64, kernel_end: u64, len: u64) -> Result<u64, Error> {
    let top = ram.min(layout::RAM + layout::INITRD_WINDOW);
    match top.checked_sub(len).map(|at| at & !(PAGE - 1)) {
        Some(at) if at >= kernel_end => Ok(at),
        _ => Err(Error::Room {
            what: "the initramfs",
            needed: len,
            free: top.saturating_sub(kernel_end),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::memory::{Bytes, GuestAddress, allocate, part_of as part};

    /// An `Image` of `len` bytes with these header fields.
    fn image(len: usize, text_offset: u64, image_size: u64) -> Vec<u8> {
        let mut file = vec![0x55; len];
        file[TEXT_OFFSET..TEXT_OFFSET + 8].copy_from_slice(&text_offset.to_le_bytes());
        file[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&image_size.to_le_bytes());
        file[MAGIC..MAGIC + 4].copy_from_slice(b"ARM\x64");
        file
    }

    fn ram() -> Memory {
        allocate(&[(layout::RAM, 32 << 20)]).unwrap()
    }

    #[test]
    fn an_image_lies_where_its_header_says_and_keeps_room_for_its_data() {
        let memory = ram();
        let (_file, kernel) = part(&image(9000, 0, 1 << 20));
        let (_file, initrd) = part(&[7; 5000]);
        let loaded = load(&memory, &kernel, Some(&initrd)).unwrap();
        assert_eq!(loaded.entry, layout::KERNEL);
        assert_eq!(loaded.end, layout::KERNEL + (1 << 20));
        let end = layout::RAM + (32 << 20);
        assert_eq!(loaded.initrd, Some((end - 8192, 5000)));
        for (at, byte) in [
            (layout::KERNEL + 8999, 0x55),
            (layout::KERNEL + 9000, 0),
            (end - 8192, 7),
        ] {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(at)).unwrap(), byte, "{at:#x}");
        }
    }

    #[test]
    fn the_offset_of_old_kernels_is_known() {
        for (kernel, entry) in [
            (image(4096, 0, 0), layout::KERNEL + OLD_TEXT_OFFSET),
            (image(4096, 0x1000, 8192), layout::KERNEL + 0x1000),
        ] {
            let (_file, kernel) = part(&kernel);
            assert_eq!(load(&ram(), &kernel, None).unwrap().entry, entry);
        }
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_by_name() {
        let gzip = [b"\x1f\x8b".as_slice(), &[0; 100]].concat();
        let elf = [b"\x7fELF".as_slice(), &[0; 100]].concat();
        for (content, why) in [
            (b"short".to_vec(), "header cannot be read"),
            (vec![0; 100], "not an arm64 Image"),
            (gzip, "compressed"),
            (elf, "ELF"),
            (image(100, u64::MAX, 1), "more memory"),
            (image(100, 0, u64::MAX), "more memory"),
        ] {
            let (_file, kernel) = part(&content);
            let message = load(&ram(), &kernel, None).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
            assert!(message.contains(kernel.path().to_str().unwrap()), "{message}");
        }
    }

    #[test]
    fn too_little_ram_is_reported_with_numbers() {
        let (_file, kernel) = part(&image(100, 0, 64 << 20));
        let error = load(&ram(), &kernel, None).unwrap_err();
        assert!(error.to_string().contains("the kernel needs"), "{error}");
        let (_file, kernel) = part(&image(100, 0, 20 << 20));
        let (_file, initrd) = part(&vec![0; 10 << 20]);
        assert!(load(&ram(), &kernel, Some(&initrd)).is_ok());
        let (_file, initrd) = part(&vec![0; (10 << 20) + 1]);
        let error = load(&ram(), &kernel, Some(&initrd)).unwrap_err();
        assert!(error.to_string().contains("the initramfs needs"), "{error}");
    }
}
