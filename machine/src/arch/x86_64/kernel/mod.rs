//! Kernel and initramfs into RAM: an ELF `vmlinux` or a bzImage low, the initramfs as high as it may be.

#[cfg(target_arch = "x86_64")]
mod crates;
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
/// `xloadflags`: the kernel has that 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Offset of the file type marks: ELF's at 0, the boot protocol's "HdrS" at 0x202.
const HDRS: usize = 0x202;
/// `e_machine` of ELF and its value for x86-64.
const E_MACHINE: usize = 18;
const EM_X86_64: u16 = 62;
/// 32-bit x86.
const EM_386: u16 = 3;
/// Least size of either format's headers, in bytes.
const HEAD: usize = 0x280;

/// A kernel that lies in guest RAM.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
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
pub(super) fn load(memory: &Memory, kernel: &Part, initrd: Option<&Part>) -> Result<Kernel, Error> {
    let mut head = [0; HEAD];
    let unusable = |source| Error::Kernel {
        path: kernel.path().to_owned(),
        source,
        wanted: "a 64-bit x86 vmlinux or bzImage",
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
    if let Some(end) = elf_end(&head).filter(|end| *end > limit) {
        return Err(no_room(end));
    }
    let mut loaded = if head.starts_with(b"\x7fELF") {
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

/// The end in RAM of an x86-64 ELF file's segments, as far as `head` has their headers (System V ABI, chapter
/// 5).
fn elf_end(head: &[u8; HEAD]) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(head.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    if !head.starts_with(b"\x7fELF") || number(E_MACHINE, 2)? != u64::from(EM_X86_64) {
        return None;
    }
    let first = usize::try_from(number(32, 8)?).ok()?;
    let (size, count) = (number(54, 2)? as usize, number(56, 2)? as usize);
    let end = |index: usize| {
        let header = first.checked_add(index * size)?;
        let (kind, start, length) = (
            number(header, 4)?,
            number(header + 24, 8)?,
            number(header + 40, 8)?,
        );
        Some(if kind == PT_LOAD {
            start.saturating_add(length)
        } else {
            0
        })
    };
    (0..count).map_while(end).max()
}

fn load_elf(memory: &Memory, reader: &mut PartReader<'_>, head: &[u8; HEAD]) -> Result<Kernel, KernelError> {
    let machine = u16::from_le_bytes([head[E_MACHINE], head[E_MACHINE + 1]]);
    if machine == EM_386 {
        return Err(KernelError::Bits32);
    }
    if machine != EM_X86_64 {
        return Err(KernelError::Processor(machine));
    }
    let Loaded { start, end, .. } = loader::elf(memory, reader)?;
    if end <= start {
        return Err(KernelError::EntryOutside);
    }
    Ok(Kernel {
        entry: start,
        end,
        header: None,
        initrd: None,
    })
}

fn load_bzimage(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Kernel, KernelError> {
    let Loaded { start, end, header } = loader::bzimage(memory, reader)?;
    let header = header.ok_or(KernelError::NoSetupHeader)?;
    if header.u16(at::VERSION) < 0x20c || header.u16(at::XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err(KernelError::NoEntry64);
    }
    // While it unpacks itself the kernel needs `init_size` bytes from where it runs.
    let preferred = u64::from(header.u64(at::PREF_ADDRESS) as u32);
    let working = u64::from(header.u32(at::INIT_SIZE)).saturating_add(preferred);
    Ok(Kernel {
        entry: start + BZIMAGE_ENTRY64,
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

    use crate::arch::x86_64::testing::elf;
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
        assert_eq!((loaded.entry, loaded.end), (0x100_0000, 0x100_4000));
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
        assert_eq!(loaded.entry, 0x10_0200);
        assert_eq!(loaded.end, 0x180_0000, "room to unpack");
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(0x10_0000 + 8999)).unwrap(),
            0x90
        );
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
        let mut narrow = elf(0x100_0000, &[0; 16], 16);
        (narrow[4], narrow[18]) = (1, 3);
        let mut cut = elf(0x100_0000, &[0; 16], 16);
        cut.truncate(0x1008);
        for (content, why) in [
            (b"short".to_vec(), "header cannot be read"),
            (vec![0; 4096], "neither ELF nor bzImage"),
            (arm, "another processor"),
            (narrow, "a 32-bit kernel"),
            (cut, "kernel"),
            (elf(0x1000, &[0; 16], 16), "entry"),
            (bzimage(&[0; 64], 0), "no 64-bit entry"),
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
