//! The first CPU's state at the kernel's entry, in 64-bit mode or in protected mode, and the tables in RAM
//! that it refers to.

use softcpu::Segment;

use super::kernel::Entry;
use super::{Error, Kernel, layout, put};
use crate::memory::{Memory, PAGE};

/// CR0: protected mode, paging, and the extension type bit that is always set.
const CR0: u64 = CR0_PE | CR0_ET | CR0_PG;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode demands.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: only the bit that is always set; interrupts are off, as the protocol demands.
const RFLAGS: u64 = 1 << 1;

/// What firmware would have at the reset vector: real-mode code that asks for a reset and halts. Linux jumps
/// there on a hardware-reduced machine without EFI, instead of trying the ACPI reset register itself
/// (`reboot_init` in arch/x86/kernel/reboot.c).
const RESET_CODE: [u8; 9] = {
    let [low, high] = (layout::ACPI_PM + 2).to_le_bytes();
    // mov al, 1; mov dx, port; out dx, al; hlt; jmp to hlt
    [0xb0, 1, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd]
};

/// Page table entry bits (Intel SDM volume 3, table 4-15 and following).
const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const ENTRIES: u64 = PAGE / 8;

/// A segment of entry `index` of the GDT: flat, from address 0 over 4 GiB.
const fn flat(index: u16, access: u16) -> Segment {
    Segment {
        selector: index * 8,
        base: 0,
        limit: u32::MAX,
        access,
    }
}

/// The descriptor of a segment.
const fn descriptor(segment: Segment) -> u64 {
    let limit = if segment.access & 0x8000 != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    } as u64;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | (segment.access as u64 & 0xf0ff) << 40
        | (limit >> 16 & 0xf) << 48
        | (segment.base >> 24 & 0xff) << 56
}

/// `__BOOT_CS` of the boot protocol: 64-bit code, readable, accessed.
const CODE: Segment = flat(2, 0xa09b);
/// The same of the 32-bit boot protocol: 32-bit code.
const CODE32: Segment = flat(2, 0xc09b);
/// `__BOOT_DS`: data, writable, accessed.
const DATA: Segment = flat(3, 0xc093);
/// A busy task state segment, of 64 bits in long mode and else of 32: hardware refuses to run without one.
/// Nothing reads it.
const TASK: Segment = Segment {
    selector: 0x20,
    base: 0,
    limit: 0x67,
    access: 0x008b,
};
/// Selector of the 64-bit code segment, for those who write interrupt gates.
pub const CODE_SELECTOR: u16 = CODE.selector;

/// The descriptors for a kernel's entry.
const fn gdt(code: Segment) -> [u64; 4] {
    [0, 0, descriptor(code), descriptor(DATA)]
}

/// The first CPU's registers at the kernel's entry. What is not here is zero or as after reset; the other
/// CPUs wait for a startup IPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// First instruction, linear and physical address alike.
    pub rip: u64,
    /// Physical address of `boot_params`.
    pub rsi: u64,
    /// Initial stack pointer.
    pub rsp: u64,
    /// Flags register.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Physical address of the level 4 page table.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub ds: Segment,
    /// Task register.
    pub tr: Segment,
    /// Base and inclusive limit of the global descriptor table.
    pub gdt: (u64, u16),
    /// Base and inclusive limit of the interrupt descriptor table.
    pub idt: (u64, u16),
}

/// Registers for the kernel's entry (Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol" and
/// "32-bit boot protocol").
pub(super) fn boot_state(kernel: &Kernel) -> Boot {
    match kernel.entry {
        Entry::Long(rip) => enter(rip),
        Entry::Protected(rip) => Boot {
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: CODE32,
            ..enter(rip)
        },
    }
}

/// The same state for code other than a kernel that begins at `rip`, with the tables that it needs written to
/// `memory`.
pub fn boot_state_at(memory: &Memory, rip: u64) -> Result<Boot, Error> {
    write(memory, Entry::Long(rip))?;
    Ok(enter(rip))
}

fn enter(rip: u64) -> Boot {
    Boot {
        rip,
        rsi: layout::BOOT_PARAMS,
        rsp: layout::BOOT_STACK,
        rflags: RFLAGS,
        cr0: CR0,
        cr3: layout::PAGE_TABLES,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        cs: CODE,
        ds: DATA,
        tr: TASK,
        gdt: (layout::GDT, (size_of_val(&gdt(CODE)) - 1) as u16),
        idt: (layout::IDT, 7),
    }
}

/// Writes the GDT, an empty IDT, the reset vector, and page tables that map the first GiB onto itself in 2
/// MiB pages: kernel, `boot_params` and command line all lie there, and the kernel builds its own tables
/// before it looks further. A kernel that is entered in protected mode has no use for the page tables.
pub(super) fn write(memory: &Memory, entry: Entry) -> Result<(), Error> {
    let code = match entry {
        Entry::Long(_) => CODE,
        Entry::Protected(_) => CODE32,
    };
    let gdt: Vec<u8> = gdt(code).iter().flat_map(|entry| entry.to_le_bytes()).collect();
    put(memory, "the GDT", layout::GDT, &gdt)?;
    put(memory, "the IDT", layout::IDT, &[0; 8])?;
    put(memory, "the reset vector", layout::RESET_VECTOR, &RESET_CODE)?;

    let level3 = layout::PAGE_TABLES + PAGE;
    let level2 = level3 + PAGE;
    let link = |to: u64| (to | PRESENT_WRITABLE).to_le_bytes();
    put(memory, "page tables", layout::PAGE_TABLES, &link(level3))?;
    put(memory, "page tables", level3, &link(level2))?;
    let pages: Vec<u8> = (0..ENTRIES)
        .flat_map(|n| (n << 21 | HUGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    put(memory, "page tables", level2, &pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress, allocate};

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(gdt(CODE), [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(gdt(CODE32)[2..], [0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    }

    #[test]
    fn a_32_bit_kernel_starts_in_protected_mode_without_paging() {
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        let entry = Entry::Protected(0x100_0000);
        write(&memory, entry).unwrap();
        let boot = boot_state(&Kernel {
            entry,
            end: 0x200_0000,
            header: None,
            initrd: None,
        });
        assert_eq!((boot.rip, boot.rsi), (0x100_0000, layout::BOOT_PARAMS));
        assert_eq!((boot.cr0, boot.cr3, boot.cr4, boot.efer), (0x11, 0, 0, 0));
        assert_eq!((boot.cs.selector, boot.ds.selector), (0x10, 0x18));
        let code: u64 = memory.read_obj(GuestAddress(layout::GDT + 0x10)).unwrap();
        assert_eq!(code, descriptor(boot.cs), "a reload of CS changes nothing");
    }

    #[test]
    fn the_reset_vector_resets() {
        use iced_x86::{Decoder, DecoderOptions, Mnemonic};
        let decoder = Decoder::new(16, &RESET_CODE, DecoderOptions::NONE);
        let steps: Vec<_> = decoder.into_iter().collect();
        assert_eq!(steps[0].immediate8(), 1, "the FADT's reset value");
        assert_eq!(
            steps[1].immediate16(),
            layout::ACPI_PM + 2,
            "the FADT's reset register"
        );
        let rest: Vec<_> = steps[2..].iter().map(|step| step.mnemonic()).collect();
        assert_eq!(rest, [Mnemonic::Out, Mnemonic::Hlt, Mnemonic::Jmp]);
    }

    #[test]
    fn the_first_gibibyte_is_mapped_onto_itself() {
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        write(&memory, Entry::Long(0)).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory
                .read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8))
                .unwrap()
        };
        for addr in [0, 0x7000, 0x100_0000, (1 << 30) - 1] {
            let level3 = entry(layout::PAGE_TABLES, addr >> 39);
            let level2 = entry(level3, addr >> 30 & 511);
            let page = entry(level2, addr >> 21 & 511);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!(page & !0x1f_ffff, addr & !0x1f_ffff);
        }
        assert_eq!(entry(entry(layout::PAGE_TABLES, 0), 1), 0, "nothing beyond");
    }
}
