//! The device tree (Devicetree Specification 0.4; bindings of Linux, Documentation/devicetree/bindings).

use uuid::Uuid;
use vm_fdt::FdtWriter;

use super::image::Kernel;
use super::{Controller, Error, Platform, layout, mpidr};
use crate::arch::{VIRTIO_MMIO_SIZE, VirtioSlot};
use crate::entropy;
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory};

/// Handles by which nodes refer to others.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// First cell of an interrupt: shared or private (arm,gic.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
/// Third cell of an interrupt.
const EDGE_RISING: u32 = 1;
const LEVEL_LOW: u32 = 8;
/// The architectural timers' private interrupts: secure, non-secure, virtual, hypervisor (BSA §3.8.2, less
/// 16).
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// GICv2's third cell says in bits 8 to 15 which CPUs a private interrupt goes to.
const PPI_CPUS_SHIFT: u32 = 8;
/// The PL031's clock; any frequency will do.
const PCLK_HZ: u32 = 24_000_000;
/// Bytes of a generation id.
const GENERATION_BYTES: u64 = 16;
/// The 16550's clock: 115200 baud with divisor 1.
const UART_HZ: u32 = 115_200 * 16;

/// The tree of a machine with `memory` whose kernel has been loaded.
pub(super) fn tree(memory: &Memory, kernel: &Kernel, platform: &Platform<'_>) -> Result<Vec<u8>, Error> {
    if platform.cmdline.len() >= layout::CMDLINE_MAX {
        return Err(Error::Cmdline {
            len: platform.cmdline.len(),
            max: layout::CMDLINE_MAX - 1,
        });
    }
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "Kiln instance")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    if let Some(uuid) = platform.uuid {
        // Where other hypervisors' guests find theirs: there is no SMBIOS without firmware.
        fdt.property_string("vm,uuid", &Uuid::from_bytes(uuid).to_string())?;
    }
    chosen(&mut fdt, kernel, platform)?;
    for region in memory.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        let node = fdt.begin_node(&format!("memory@{start:x}"))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[start, len])?;
        fdt.end_node(node)?;
    }
    generation(&mut fdt)?;
    cpus(&mut fdt, platform.cpus)?;
    interrupts_and_time(&mut fdt, platform)?;
    clock(&mut fdt)?;
    if platform.serial {
        serial(&mut fdt)?;
    }
    for slot in platform.virtio {
        virtio(&mut fdt, slot)?;
    }
    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}

fn chosen(fdt: &mut FdtWriter, kernel: &Kernel, platform: &Platform<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", platform.cmdline)?;
    if platform.serial {
        fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::SERIAL))?;
    }
    if let Some((start, len)) = kernel.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start + len)?;
    }
    // As many bytes as the key of the kernel's generator has.
    fdt.property("rng-seed", &entropy::bytes::<32>())?;
    fdt.end_node(node)?;
    Ok(())
}

/// The generation id (microsoft,vmgenid.yaml), in memory that is no RAM to the kernel: it would not map that.
fn generation(fdt: &mut FdtWriter) -> Result<(), Error> {
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node(&format!("vmgenid@{:x}", layout::GENERATION))?;
    fdt.property_array_u64("reg", &[layout::GENERATION, layout::GENERATION_SIZE])?;
    fdt.property_null("no-map")?;
    fdt.end_node(node)?;
    fdt.end_node(reserved)?;

    let node = fdt.begin_node(&format!("rng@{:x}", layout::GENERATION))?;
    fdt.property_string("compatible", "microsoft,vmgenid")?;
    fdt.property_array_u64("reg", &[layout::GENERATION, GENERATION_BYTES])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::GENERATION_GSI, EDGE_RISING])?;
    fdt.end_node(node)?;
    Ok(())
}

fn cpus(fdt: &mut FdtWriter, count: u8) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for affinity in (0..count).map(mpidr) {
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", affinity as u32)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;
    Ok(())
}

fn interrupts_and_time(fdt: &mut FdtWriter, platform: &Platform<'_>) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::GIC_DISTRIBUTOR))?;
    let cpus = u64::from(platform.cpus);
    let (compatible, reg, ppi_cpus) = match platform.controller {
        Controller::GicV2 => (
            "arm,gic-400",
            [
                layout::GIC_DISTRIBUTOR,
                layout::GICV2_DISTRIBUTOR_SIZE,
                layout::GICV2_CPU_INTERFACE,
                layout::GICV2_CPU_INTERFACE_SIZE,
            ],
            (1u32 << platform.cpus) - 1,
        ),
        _ => (
            "arm,gic-v3",
            [
                layout::GIC_DISTRIBUTOR,
                layout::GICV3_DISTRIBUTOR_SIZE,
                layout::GICV3_REDISTRIBUTORS,
                layout::GICV3_REDISTRIBUTOR_SIZE * cpus,
            ],
            0,
        ),
    };
    fdt.property_string("compatible", compatible)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_array_u64("reg", &reg)?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)?;

    let flags = ppi_cpus << PPI_CPUS_SHIFT | LEVEL_LOW;
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_array_u32("interrupts", &TIMERS.map(|timer| [PPI, timer, flags]).concat())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)?;
    Ok(())
}

/// The real-time clock. It sets no alarm, so that it has no interrupt.
fn clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", PCLK_HZ)?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("rtc@{:x}", layout::RTC))?;
    fdt.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[layout::RTC, crate::devices::rtc::Clock::SIZE])?;
    fdt.property_u32("clocks", CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)?;
    Ok(())
}

fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("serial@{:x}", layout::SERIAL))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[layout::SERIAL, crate::devices::serial::Serial::SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::SERIAL_GSI, EDGE_RISING])?;
    fdt.property_u32("clock-frequency", UART_HZ)?;
    fdt.end_node(node)?;
    Ok(())
}

fn virtio(fdt: &mut FdtWriter, slot: &VirtioSlot) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", slot.addr))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[slot.addr, VIRTIO_MMIO_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, slot.gsi, EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::arch::aarch64::LAYOUT;
    use crate::memory::allocate;

    /// A flattened tree as a map from `/node/property` to its value (Devicetree Specification 0.4, chapter
    /// 5).
    fn properties(blob: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
        let text = |at: usize| {
            let len = blob[at..].iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(blob[at..at + len].to_vec()).unwrap()
        };
        assert_eq!(word(0), 0xd00d_feed);
        let (mut at, strings) = (word(8), word(12));
        let (mut path, mut found) = (Vec::new(), BTreeMap::new());
        loop {
            let token = word(at);
            at += 4;
            match token {
                1 => {
                    let name = text(at);
                    at += (name.len() + 1).next_multiple_of(4);
                    path.push(name);
                }
                2 => drop(path.pop()),
                3 => {
                    let (len, name) = (word(at), text(strings + word(at + 4)));
                    at += 8;
                    found.insert(format!("{}/{name}", path.join("/")), blob[at..at + len].to_vec());
                    at += len.next_multiple_of(4);
                }
                9 => return found,
                other => panic!("token {other}"),
            }
        }
    }

    fn described(cpus: u8, controller: Controller) -> BTreeMap<String, Vec<u8>> {
        let memory = allocate(&[(layout::RAM, 64 << 20)]).unwrap();
        let kernel = Kernel {
            entry: layout::KERNEL,
            end: layout::KERNEL + 4096,
            initrd: Some((0x4300_0000, 5000)),
        };
        let slots: Vec<_> = (0..2).map_while(|n| LAYOUT.virtio_slot(n)).collect();
        let platform = Platform {
            cpus,
            cmdline: "console=hvc0 quiet",
            virtio: &slots,
            serial: true,
            uuid: Some(*b"\xec\x2a\x01\x02\x03\x04\x45\x06\x87\x08\x09\x0a\x0b\x0c\x0d\x0e"),
            controller,
        };
        properties(&tree(&memory, &kernel, &platform).unwrap())
    }

    fn cells(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn the_kernel_finds_its_command_line_initramfs_memory_and_identity() {
        let tree = described(1, Controller::GicV3);
        assert_eq!(tree["/chosen/bootargs"], b"console=hvc0 quiet\0");
        assert_eq!(tree["/chosen/linux,initrd-start"], cells(&[0, 0x4300_0000]));
        assert_eq!(tree["/chosen/linux,initrd-end"], cells(&[0, 0x4300_0000 + 5000]));
        assert_eq!(
            tree["/memory@40000000/reg"],
            cells(&[0, 0x4000_0000, 0, 64 << 20])
        );
        assert_eq!(tree["/vm,uuid"], b"ec2a0102-0304-4506-8708-090a0b0c0d0e\0");
        let other = described(1, Controller::GicV3);
        assert_ne!(tree["/chosen/rng-seed"], other["/chosen/rng-seed"]);
    }

    #[test]
    fn every_device_has_address_and_interrupt() {
        let tree = described(1, Controller::GicV3);
        assert_eq!(
            tree["/virtio_mmio@a002000/reg"],
            cells(&[0, 0x0a00_2000, 0, 0x1000])
        );
        assert_eq!(tree["/virtio_mmio@a002000/interrupts"], cells(&[0, 2, 1]));
        assert_eq!(tree["/serial@9000000/interrupts"], cells(&[0, 0, 1]));
        assert_eq!(tree["/chosen/stdout-path"], b"/serial@9000000\0");
        assert_eq!(tree["/rtc@9010000/clocks"], tree["/apb-pclk/phandle"]);
        assert!(!tree.contains_key("/virtio_mmio@a003000/reg"));
    }

    #[test]
    fn all_cpus_are_named_by_their_affinity_and_started_by_psci() {
        let tree = described(32, Controller::GicV3);
        for (node, affinity) in [
            ("cpu@0", 0),
            ("cpu@f", 15),
            ("cpu@100", 0x100),
            ("cpu@10f", 0x10f),
        ] {
            assert_eq!(tree[&format!("/cpus/{node}/reg")], cells(&[affinity]));
            assert_eq!(tree[&format!("/cpus/{node}/enable-method")], b"psci\0");
        }
        let count = tree.keys().filter(|key| key.ends_with("/enable-method")).count();
        assert_eq!(count, 32);
        assert_eq!(tree["/psci/method"], b"hvc\0");
    }

    #[test]
    fn the_interrupt_controller_is_the_one_that_the_accelerator_made() {
        let v3 = described(4, Controller::GicV3);
        let node = "/interrupt-controller@8000000";
        assert_eq!(v3[&format!("{node}/compatible")], b"arm,gic-v3\0");
        assert_eq!(
            v3[&format!("{node}/reg")][16..],
            cells(&[0, 0x080a_0000, 0, 0x8_0000])
        );
        assert_eq!(v3["/timer/interrupts"][..12], cells(&[1, 13, 8]));
        let v2 = described(4, Controller::GicV2);
        assert_eq!(v2[&format!("{node}/compatible")], b"arm,gic-400\0");
        assert_eq!(v2["/timer/interrupts"][..12], cells(&[1, 13, 0xf08]));
    }

    #[test]
    fn a_command_line_that_would_be_cut_is_refused() {
        let memory = allocate(&[(layout::RAM, 64 << 20)]).unwrap();
        let kernel = Kernel {
            entry: 0,
            end: 0,
            initrd: None,
        };
        let line = "x".repeat(layout::CMDLINE_MAX);
        let with = |cmdline| Platform {
            cpus: 1,
            cmdline,
            virtio: &[],
            serial: false,
            uuid: None,
            controller: Controller::GicV3,
        };
        assert!(tree(&memory, &kernel, &with(&line[1..])).is_ok());
        let error = tree(&memory, &kernel, &with(&line)).unwrap_err();
        assert!(matches!(error, Error::Cmdline { len: 2048, max: 2047 }));
    }
}
