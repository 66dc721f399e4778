//! `struct boot_params` and the command line (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).

use super::kernel::{SETUP_START, SetupHeader, setup_at as at};
use super::{Error, Kernel, layout, put};
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory, PAGE};

/// Signature words of the setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = 0x5372_6448;
/// Protocol 2.15, the newest.
const VERSION: u16 = 0x20f;
/// What every kernel since 4.x is aligned to.
const ALIGNMENT: u32 = 0x20_0000;
/// "Some boot loader without a number of its own."
const LOADER_OTHER: u8 = 0xff;
/// Offsets in `boot_params` before and behind the setup header (zero-page.rst).
const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
/// Memory map entry types (ACPI 6.5 §15).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes both.
pub(super) fn write(memory: &Memory, kernel: &Kernel, cmdline: &str) -> Result<(), Error> {
    // An ELF file has no setup header: it gets one with what every kernel since 4.x expects.
    let header = kernel.header.unwrap_or_else(|| {
        SetupHeader::new(&[])
            .with(at::BOOT_FLAG, &BOOT_FLAG.to_le_bytes())
            .with(at::HEADER, &HDRS.to_le_bytes())
            .with(at::VERSION, &VERSION.to_le_bytes())
            .with(at::KERNEL_ALIGNMENT, &ALIGNMENT.to_le_bytes())
            .with(at::CMDLINE_SIZE, &(layout::CMDLINE_MAX as u32 - 1).to_le_bytes())
    });
    let max = (header.u32(at::CMDLINE_SIZE) as usize).min(layout::CMDLINE_MAX - 1);
    if cmdline.len() > max {
        return Err(Error::Cmdline {
            len: cmdline.len(),
            max,
        });
    }
    let mut terminated = Vec::with_capacity(cmdline.len() + 1);
    terminated.extend_from_slice(cmdline.as_bytes());
    terminated.push(0);
    put(memory, "the command line", layout::CMDLINE, &terminated)?;

    let (initrd, initrd_len) = kernel.initrd.unwrap_or((0, 0));
    let header = header
        .with(at::TYPE_OF_LOADER, &[LOADER_OTHER])
        .with(at::CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes())
        .with(at::RAMDISK_IMAGE, &(initrd as u32).to_le_bytes())
        .with(at::RAMDISK_SIZE, &(initrd_len as u32).to_le_bytes());
    let map = memory_map(memory);
    let entries: Vec<u8> = map
        .iter()
        .flat_map(|&(addr, size, kind)| {
            [&addr.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
        })
        .collect();
    let mut params = vec![0; PAGE as usize];
    for (at, bytes) in [
        (ACPI_RSDP_ADDR, &layout::ACPI.to_le_bytes()[..]),
        (EXT_RAMDISK_IMAGE, &((initrd >> 32) as u32).to_le_bytes()),
        (EXT_RAMDISK_SIZE, &((initrd_len >> 32) as u32).to_le_bytes()),
        (E820_ENTRIES, &[map.len() as u8]),
        (SETUP_START, header.bytes()),
        (E820_TABLE, &entries),
    ] {
        params[at..at + bytes.len()].copy_from_slice(bytes);
    }
    put(memory, "boot_params", layout::BOOT_PARAMS, &params)
}

/// The memory map: (address, length, type).
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (
            layout::LOW_RAM_END,
            layout::HIGH_MEMORY - layout::LOW_RAM_END,
            E820_RESERVED,
        ),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        let end = region.start_addr().0 + region.len();
        if start < end {
            map.push((start, end - start, E820_RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::kernel::Entry;
    use crate::memory::{Bytes, GuestAddress, allocate};

    fn kernel() -> Kernel {
        Kernel {
            entry: Entry::Long(0x100_0000),
            end: 0x200_0000,
            header: None,
            initrd: Some((0x300_0000, 77)),
        }
    }

    #[test]
    fn the_kernel_finds_what_the_protocol_promises() {
        let memory = allocate(&[(0, 64 << 20), (4 << 30, 1 << 20)]).unwrap();
        write(&memory, &kernel(), "console=ttyS0").unwrap();
        let byte = |offset: u64| {
            memory
                .read_obj::<u8>(GuestAddress(layout::BOOT_PARAMS + offset))
                .unwrap()
        };
        let word = |offset: u64| {
            memory
                .read_obj::<u32>(GuestAddress(layout::BOOT_PARAMS + offset))
                .unwrap()
        };
        assert_eq!(word(0x202), HDRS);
        assert_eq!(word(0x218), 0x300_0000);
        assert_eq!(word(0x21c), 77);
        assert_eq!(u64::from(word(0x70)), layout::ACPI);
        let mut line = [0xff; 14];
        memory
            .read_slice(&mut line, GuestAddress(u64::from(word(0x228))))
            .unwrap();
        assert_eq!(&line, b"console=ttyS0\0");
        assert_eq!(byte(0x1e8), 4);
        let entries: Vec<(u64, u64, u32)> = (0..4)
            .map(|n| {
                let at = GuestAddress(layout::BOOT_PARAMS + 0x2d0 + n * 20);
                (
                    memory.read_obj(at).unwrap(),
                    memory.read_obj(at.unchecked_add(8)).unwrap(),
                    memory.read_obj(at.unchecked_add(16)).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x6_0400, E820_RESERVED),
                (0x10_0000, 63 << 20, E820_RAM),
                (4 << 30, 1 << 20, E820_RAM)
            ]
        );
    }

    #[test]
    fn a_command_line_that_would_be_cut_is_refused() {
        let memory = allocate(&[(0, 64 << 20)]).unwrap();
        let fits = "x".repeat(layout::CMDLINE_MAX - 1);
        write(&memory, &kernel(), &fits).unwrap();
        let error = write(&memory, &kernel(), &format!("{fits}x")).unwrap_err();
        assert!(matches!(error, Error::Cmdline { len: 2048, max: 2047 }));
    }

    use crate::memory::Address;
}
