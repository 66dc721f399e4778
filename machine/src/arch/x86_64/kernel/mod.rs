//! Kernel and initramfs into RAM: an ELF `vmlinux` or a bzImage low, the initramfs as high as it may be.

#[cfg(target_arch = "x86_64")]
mod crates;
mod elf;
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
mod setup;

use std::io::{Read, Seek};

#[cfg(target_arch = "x86_64")]
use self::crates as loader;
#[cfg(not(target_arch = "x86_64"))]
use self::portable as loader;
use super::Error;
use crate::arch::KernelError;
use crate::memory::{Memory, PAGE, Part, PartReader, low_end};

use setup::at;
pub(super) use setup::{START as SETUP_START, SetupHeader, at as setup_at};

/// Highest address, inclusive, at which kernels of any age find their initramfs.
const INITRD_MAX: u64 = 0x7fff_ffff;
/// The kernel must lie in the first GiB, which the initial page tables map.
const MAPPED: u64 = 1 << 30;
/// A bzImage's 64-bit entry is this far behind its 32-bit one (boot protocol, "64-bit boot protocol").
const BZIMAGE_ENTRY64: u64 = 0x200;
/// `xloadflags`: the kernel has that 64-bit entry. The field came with boot protocol 2.12.
const XLF_KERNEL_64: u16 = 1 << 0;
const WITH_XLOADFLAGS: u16 = 0x20c;
/// The boot protocol since which a header says how much memory the kernel needs (Linux 2.6.31).
const WITH_INIT_SIZE: u16 = 0x20a;
/// Offset of the file type marks: ELF's at 0, the boot protocol's "HdrS" at 0x202.
const HDRS: usize = 0x202;
/// Least size of either format's headers, in bytes.
const HEAD: usize = 0x280;

/// Where a kernel begins, by physical address, and in which mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arch) enum Entry {
    /// 64-bit mode ("64-bit boot protocol").
    Long(u64),
    /// Protected mode without paging ("32-bit boot protocol").
    Protected(u64),
}

/// A kernel that lies in guest RAM.
#[derive(Debug, Clone)]
pub(in crate::arch) struct Kernel {
    /// Its entry point.
    pub entry: Entry,
    /// First byte after the kernel and its uninitialized data.
    pub end: u64,
    /// The setup header of a bzImage.
    pub(super) header: Option<SetupHeader>,
    /// Where the initramfs lies: address and length in bytes.
    pub initrd: Option<(u64, u64)>,
}

/// What a loader knows of a kernel that it has put into RAM.
#[derive(Debug, PartialEq, Eq)]
struct Loaded {
    /// ELF: the entry point. bzImage: where the protected-mode code begins.
    start: u64,
    /// First byte after it.
    end: u64,
    /// The setup header of a bzImage.
    header: Option<SetupHeader>,
}

/// Puts `kernel` and `initrd` into RAM.
pub(in crate::arch) fn load(memory: &Memory, kernel: &Part, initrd: Option<&Part>) -> Result<Kernel, Error> {
    let mut head = [0; HEAD];
    let unusable = |source| Error::Kernel {
        path: kernel.path().to_owned(),
        source,
        wanted: "an x86 vmlinux or bzImage",
    };
    // The loaders read the header again, from what this reader has fetched already.
    let mut reader = kernel.reader(memory);
    reader
        .read_exact(&mut head)
        .and_then(|()| reader.rewind())
        .map_err(|error| unusable(KernelError::Header(error)))?;
    let ram = low_end(memory);
    let limit = ram.min(MAPPED);
    let no_room = |needed| Error::Room {
        what: "the kernel",
        needed,
        free: limit,
    };
    // The loaders report a segment that does not fit as one that cannot be read.
    if let Some(end) = elf::end(&head).filter(|end| *end > limit) {
        return Err(no_room(end));
    }
    let mut loaded = if head.starts_with(elf::MAGIC) {
        load_elf(memory, &mut reader, &head)
    } else if head[HDRS..].starts_with(b"HdrS") {
        load_bzimage(memory, &mut reader)
    } else {
        Err(KernelError::Unknown)
    }
    .map_err(unusable)?;

    if loaded.end > limit {
        return Err(no_room(loaded.end));
    }
    if let Some(initrd) = initrd.filter(|initrd| !initrd.is_empty()) {
        let at = place_initrd(ram, &loaded, initrd.len())?;
        initrd.place(memory, at)?;
        loaded.initrd = Some((at, initrd.len()));
    }
    Ok(loaded)
}

fn load_elf(memory: &Memory, reader: &mut PartReader<'_>, head: &[u8; HEAD]) -> Result<Kernel, KernelError> {
    let narrow = elf::is_32_bits(head)?;
    let Loaded { start, end, .. } = match narrow {
        true => elf::load(memory, reader, &elf::BITS32)?,
        false => loader::elf(memory, reader)?,
    };
    if end <= start {
        return Err(KernelError::EntryOutside);
    }
    Ok(Kernel {
        entry: match narrow {
            true => Entry::Protected(start),
            false => Entry::Long(start),
        },
        end,
        header: None,
        initrd: None,
    })
}

fn load_bzimage(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Kernel, KernelError> {
    let Loaded { start, end, header } = loader::bzimage(memory, reader)?;
    let header = header.ok_or(KernelError::NoSetupHeader)?;
    let version = header.u16(at::VERSION);
    if version < WITH_INIT_SIZE {
        return Err(KernelError::OldProtocol(version));
    }
    let long = version >= WITH_XLOADFLAGS && header.u16(at::XLOADFLAGS) & XLF_KERNEL_64 != 0;
    // While it unpacks itself the kernel needs `init_size` bytes from where it runs.
    let preferred = u64::from(header.u64(at::PREF_ADDRESS) as u32);
    let working = u64::from(header.u32(at::INIT_SIZE)).saturating_add(preferred);
    Ok(Kernel {
        entry: match long {
            true => Entry::Long(start + BZIMAGE_ENTRY64),
            false => Entry::Protected(start),
        },
        end: end.max(working),
        header: Some(header),
        initrd: None,
    })
}

/// The highest page-aligned place for `len` bytes that is RAM, that the kernel accepts and that does not
/// touch it.
fn place_initrd(ram: u64, kernel: &Kernel, len: u64) -> Result<u64, Error> {
    let max = match kernel.header {
        Some(header) if header.u32(at::INITRD_ADDR_MAX) != 0 => header.u32(at::INITRD_ADDR_MAX).into(),
        _ => INITRD_MAX,
    };
    let top = ram.min(max + 1);
    let free = top.saturating_sub(kernel.end);
    let room = Error::Room {
        what: "the initramfs",
        needed: len,
        free,
    };
    match top.checked_sub(len) {
        Some(at) if at & !(PAGE - 1) >= kernel.end => Ok(at & !(PAGE - 1)),
        _ => Err(room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::arch::x86_64::testing::{elf, elf32};
    use crate::memory::{Bytes, GuestAddress, allocate, part_of as part};

    /// A bzImage whose payload is `data`.
    fn bzimage(data: &[u8], xloadflags: u16) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x211] = 1;
        file[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        file[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x80_0000u32.to_le_bytes());
        file.extend_from_slice(data);
        file
    }

    #[test]
    fn an_elf_kernel_lies_at_its_physical_address() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let (_file, kernel) = part(&elf(0x100_0000, &[0xf4; 5000], 0x4000));
        let (_file, initrd) = part(&[7; 5000]);
        let loaded = load(&memory, &kernel, Some(&initrd)).unwrap();
        assert_eq!((loaded.entry, loaded.end), (Entry::Long(0x100_0000), 0x100_4000));
        let mut seen = [0; 5001];
        memory.read_slice(&mut seen, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(seen[..5000], [0xf4; 5000]);
        assert_eq!(seen[5000], 0);
        let (at, len) = loaded.initrd.unwrap();
        assert_eq!((at, len), ((64 << 20) - 8192, 5000));
        let mut seen = [0; 5000];
        memory.read_slice(&mut seen, GuestAddress(at)).unwrap();
        assert_eq!(seen, [7; 5000]);
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let (_file, kernel) = part(&bzimage(&[0x90; 9000], XLF_KERNEL_64));
        let loaded = load(&memory, &kernel, None).unwrap();
        assert_eq!(loaded.entry, Entry::Long(0x10_0200));
        assert_eq!(loaded.end, 0x180_0000, "room to unpack");
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(0x10_0000 + 8999)).unwrap(),
            0x90
        );
    }

    #[test]
    fn a_32_bit_elf_kernel_is_entered_in_protected_mode() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let (_file, kernel) = part(&elf32(0x100_0000, &[0xf4; 5000], 0x4000));
        let loaded = load(&memory, &kernel, None).unwrap();
        assert_eq!(
            (loaded.entry, loaded.end),
            (Entry::Protected(0x100_0000), 0x100_4000)
        );
        let mut seen = [0; 5001];
        memory.read_slice(&mut seen, GuestAddress(0x100_0000)).unwrap();
        assert_eq!((&seen[..5000], seen[5000]), (&[0xf4; 5000][..], 0));
    }

    #[test]
    fn a_bzimage_without_a_64_bit_entry_is_entered_in_protected_mode() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let (_file, kernel) = part(&bzimage(&[0x90; 9000], 0));
        let loaded = load(&memory, &kernel, None).unwrap();
        assert_eq!(loaded.entry, Entry::Protected(0x10_0000));
        assert_eq!(loaded.end, 0x180_0000, "room to unpack");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn both_loaders_do_the_same() {
        let mut low = bzimage(&[0; 64], 0);
        low[0x211] = 0;
        let mut below = bzimage(&[0; 64], 0);
        below[0x214..][..4].copy_from_slice(&0x1000u32.to_le_bytes());
        let mut far = elf(0x100_0000, &[1; 16], 16);
        far[64 + 24..][..8].copy_from_slice(&(64u64 << 20).to_le_bytes());
        let mut endless = elf(0x100_0000, &[1; 16], u64::MAX);
        endless[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
        for (n, content) in [
            elf(0x100_0000, &[0xf4; 5000], 0x4000),
            elf(0x1000, &[0; 16], 16),
            far,
            endless,
            bzimage(&[0x90; 9000], XLF_KERNEL_64),
            low,
            below,
            bzimage(&[], 0)[..700].to_vec(),
        ]
        .into_iter()
        .enumerate()
        {
            let (_file, part) = part(&content);
            let outcomes = [true, false].map(|crates| {
                let memory = allocate(&[(0, 32 << 20)]).unwrap();
                let loaded = match (content.starts_with(b"\x7fELF"), crates) {
                    (true, true) => crates::elf(&memory, &mut part.reader(&memory)),
                    (true, false) => portable::elf(&memory, &mut part.reader(&memory)),
                    (false, true) => crates::bzimage(&memory, &mut part.reader(&memory)),
                    (false, false) => portable::bzimage(&memory, &mut part.reader(&memory)),
                };
                let mut ram = vec![0; 32 << 20];
                memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
                (loaded.ok(), ram)
            });
            assert_eq!(outcomes[0].0, outcomes[1].0, "kernel {n}");
            assert!(
                outcomes[0].0.is_none() || outcomes[0].1 == outcomes[1].1,
                "kernel {n}"
            );
        }
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_by_name() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let mut arm = elf(0x100_0000, &[0; 16], 16);
        arm[18] = 183;
        // The processor says 32 bits, and the class 64.
        let mut torn = elf(0x100_0000, &[0; 16], 16);
        torn[18] = 3;
        let mut old = bzimage(&[0; 64], XLF_KERNEL_64);
        old[0x206] = 9;
        let mut narrow = elf32(0x100_0000, &[0; 16], 16);
        narrow.truncate(0x1008);
        let mut cut = elf(0x100_0000, &[0; 16], 16);
        cut.truncate(0x1008);
        for (content, why) in [
            (b"short".to_vec(), "header cannot be read"),
            (vec![0; 4096], "neither ELF nor bzImage"),
            (arm, "another processor"),
            (torn, "another processor"),
            (narrow, "cannot be placed"),
            (cut, "kernel"),
            (elf(0x1000, &[0; 16], 16), "entry"),
            (elf32(0x1000, &[0; 16], 16), "entry"),
            (old, "boot protocol 0x209"),
        ] {
            let (_file, kernel) = part(&content);
            let message = load(&memory, &kernel, None).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
            assert!(message.contains(kernel.path().to_str().unwrap()), "{message}");
        }
    }

    #[test]
    fn too_little_ram_is_reported_with_numbers() {
        let memory = allocate(&[(0, 32 << 20)]).unwrap();
        let (_file, kernel) = part(&elf(0x100_0000, &[0; 16], 1 << 30));
        assert!(matches!(
            load(&memory, &kernel, None),
            Err(Error::Room {
                what: "the kernel",
                ..
            })
        ));
        let (_file, kernel) = part(&elf32(0x100_0000, &[0; 16], 1 << 30));
        let refused = load(&memory, &kernel, None).unwrap_err().to_string();
        assert!(refused.contains("more memory"), "{refused}");
        // So large that its bytes in the file do not fit, either.
        let (_file, kernel) = part(&elf(0x100_0000, &vec![1; 17 << 20], 17 << 20));
        let refused = load(&memory, &kernel, None).unwrap_err().to_string();
        assert!(refused.contains("more memory"), "{refused}");
        let (_file, kernel) = part(&elf(0x100_0000, &[0; 16], 1 << 20));
        let (_file, initrd) = part(&vec![0; 15 << 20]);
        assert!(load(&memory, &kernel, Some(&initrd)).is_ok());
        let (_file, initrd) = part(&vec![0; (15 << 20) + 1]);
        assert!(matches!(
            load(&memory, &kernel, Some(&initrd)),
            Err(Error::Room {
                what: "the initramfs",
                ..
            })
        ));
    }
}
