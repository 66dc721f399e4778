//! ACPI 6.5 tables of a hardware-reduced machine: RSDP, XSDT, FADT, MADT, DSDT.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{Error, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, VirtioSlot, layout, put};
use crate::arch::VIRTIO_MMIO_SIZE;
use crate::memory::Memory;

/// Tables begin at multiples of this.
const ALIGN: usize = 16;
/// FADT, IA-PC boot architecture flags (ACPI 6.5 table 5.11): no VGA, no CMOS real-time clock; the 8042 bit
/// stays clear: no keyboard controller to wait for.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// What to write into the reset register.
const RESET_VALUE: u8 = 1;
/// Sleep type of S5, soft off, in `\_S5` and the sleep control register.
const SLEEP_S5: u8 = 5;
/// What a generation counter notifies of ("Virtual Machine Generation ID", August 2012).
const GENERATION_CHANGED: u8 = 0x80;
/// Hardware id of a virtio-mmio transport in Linux.
const VIRTIO_MMIO_HID: &str = "LNRO0005";

/// Writes all tables from [`layout::ACPI`] on, the RSDP first.
pub(super) fn write(memory: &Memory, platform: &Platform<'_>) -> Result<(), Error> {
    let mut image = vec![0; Rsdp::len().next_multiple_of(ALIGN)];
    let dsdt = append(&mut image, &dsdt(platform));
    let fadt = append(&mut image, &bytes(&fadt(dsdt)));
    let madt = append(&mut image, &bytes(&madt(platform.cpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut image, &bytes(&xsdt));
    image[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)));

    let max = layout::ACPI_END - layout::ACPI;
    if image.len() as u64 > max {
        return Err(Error::Tables {
            what: "ACPI tables",
            len: image.len(),
            max,
        });
    }
    put(memory, "ACPI tables", layout::ACPI, &image)
}

/// Appends a table at the next aligned place and returns its guest-physical address.
fn append(image: &mut Vec<u8>, table: &[u8]) -> u64 {
    image.resize(image.len().next_multiple_of(ALIGN), 0);
    let at = layout::ACPI + image.len() as u64;
    image.extend_from_slice(table);
    at
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// No fixed hardware at all: power-off and reset are one register each.
fn fadt(dsdt: u64) -> impl Aml {
    let port = |n: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(layout::ACPI_PM + n),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.sleep_control_reg = port(0);
    fadt.sleep_status_reg = port(1);
    fadt.reset_reg = port(2);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LAPIC as u32),
    );
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn dsdt(platform: &Platform<'_>) -> Vec<u8> {
    let mut devices = Vec::new();
    for (n, slot) in platform.virtio.iter().enumerate() {
        devices.extend(virtio(n, slot));
    }
    if platform.serial {
        devices.extend(serial());
    }
    devices.extend(generation());
    let mut aml = Scope::raw(Path::new("_SB_"), devices);
    let s5 = Package::new(vec![&SLEEP_S5, &0u8, &0u8, &0u8]);
    aml.extend(bytes(&Name::new(Path::new("_S5_"), &s5)));
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// An edge-triggered, active-high interrupt that nobody shares.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn virtio(n: usize, slot: &VirtioSlot) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, slot.addr as u32, VIRTIO_MMIO_SIZE as u32);
    let interrupt = interrupt(slot.gsi);
    bytes(&Device::new(
        Path::new(&format!("VR{n:02}")),
        vec![
            &Name::new(Path::new("_HID"), &VIRTIO_MMIO_HID),
            &Name::new(Path::new("_UID"), &n),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &interrupt]),
            ),
        ],
    ))
}

/// The generation id, and the event device that notifies of a new one.
fn generation() -> Vec<u8> {
    let address = Package::new(vec![&(layout::GENERATION as u32), &0u32]);
    let counter = bytes(&Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"VMGENCTR"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &address),
        ],
    ));
    let interrupt = interrupt(layout::GENERATION_GSI);
    let counter_path = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&counter_path, &GENERATION_CHANGED);
    let events = bytes(&Device::new(
        Path::new("GED0"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            // One interrupt, so that its number, the argument, says nothing.
            &Method::new(Path::new("_EVT"), 1, true, vec![&notify]),
        ],
    ));
    [counter, events].concat()
}

fn serial() -> Vec<u8> {
    let ports = IO::new(layout::COM1, layout::COM1, 1, layout::COM_PORTS as u8);
    let interrupt = interrupt(layout::COM1_GSI);
    bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Controller;
    use crate::arch::x86_64::LAYOUT;
    use crate::memory::{Bytes, GuestAddress, allocate};

    struct Tables(Memory);

    impl Tables {
        fn written(cpus: u8, virtio: usize) -> Self {
            let memory = allocate(&[(0, 1 << 20)]).unwrap();
            let slots: Vec<_> = (0..virtio).map_while(|n| LAYOUT.virtio_slot(n)).collect();
            let platform = Platform {
                cpus,
                cmdline: "",
                virtio: &slots,
                serial: true,
                uuid: None,
                controller: Controller::Apic,
            };
            write(&memory, &platform).unwrap();
            Tables(memory)
        }

        fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.0.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }

        fn word(&self, at: u64) -> u64 {
            self.0.read_obj(GuestAddress(at)).unwrap()
        }

        /// A table with a correct checksum.
        fn table(&self, at: u64, signature: &[u8; 4]) -> Vec<u8> {
            let len = self.0.read_obj::<u32>(GuestAddress(at + 4)).unwrap();
            let table = self.bytes(at, len as usize);
            assert_eq!(&table[..4], signature);
            assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
            table
        }

        fn entries(&self) -> Vec<u64> {
            let xsdt = self.table(self.word(layout::ACPI + 24), b"XSDT");
            xsdt[36..]
                .chunks(8)
                .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
                .collect()
        }
    }

    #[test]
    fn the_root_pointer_leads_to_every_table() {
        let tables = Tables::written(32, layout::MAX_VIRTIO);
        let rsdp = tables.bytes(layout::ACPI, Rsdp::len());
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(rsdp[..20].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);

        let entries = tables.entries();
        let fadt = tables.table(entries[0], b"FACP");
        assert_eq!(fadt[109..111], NO_VGA_NO_RTC.to_le_bytes());
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 2, 6, 0, 0, 0, 0, 0, 0]);
        let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        tables.table(dsdt, b"DSDT");

        let madt = tables.table(entries[1], b"APIC");
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn the_dsdt_names_each_device_with_address_and_interrupt() {
        let tables = Tables::written(1, 2);
        let fadt = tables.table(tables.entries()[0], b"FACP");
        let dsdt = tables.table(u64::from_le_bytes(fadt[140..148].try_into().unwrap()), b"DSDT");
        let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
        assert!(has(b"VR00") && has(b"VR01") && !has(b"VR02"));
        assert!(has(b"LNRO0005\0") && has(b"COM1"));
        assert!(has(b"VMGENCTR\0") && has(b"VM_Gen_Counter\0") && has(b"ACPI0013\0"));
        // Package of 0xefff0 and 0; Notify(\_SB.VGEN, 0x80).
        assert!(
            has(&[0x12, 9, 2, 0x0c, 0xf0, 0xff, 0x0e, 0, 0x0c, 0, 0, 0, 0])
                || has(&[0x12, 8, 2, 0x0c, 0xf0, 0xff, 0x0e, 0, 0])
        );
        assert!(has(b"\x86\\\x2e_SB_VGEN\x0a\x80"));
        // Memory32Fixed at 0xc0002000, then an edge-triggered, active-high, exclusive interrupt 6.
        assert!(has(&[
            0x86, 9, 0, 1, 0, 0x20, 0, 0xc0, 0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 6, 0, 0, 0
        ]));
    }
}
