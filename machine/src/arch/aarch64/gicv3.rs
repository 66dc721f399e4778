//! The registers in which a GICv3 keeps its state (GICv3 architecture §12.9 to §12.11), as KVM gives them to
//! user space (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst).
//!
//! Of two registers that set and clear the same bits only the one that sets is here: a controller that was
//! just made has none of them set. Left out is what KVM does not have (LPIs without an ITS) or derives: the
//! levels of the timers' lines.

use super::layout;

/// The distributor's, of shared interrupts. Routes come before what is pending.
const DISTRIBUTOR: [(u64, u32); 7] = [
    (0x0080, 1),  // GICD_IGROUPR
    (0x0100, 1),  // GICD_ISENABLER
    (0x0c00, 2),  // GICD_ICFGR
    (0x6000, 64), // GICD_IROUTER
    (0x0400, 8),  // GICD_IPRIORITYR
    (0x0200, 1),  // GICD_ISPENDR
    (0x0300, 1),  // GICD_ISACTIVER
];
/// GICD_CTLR.
const GICD_CTLR: u64 = 0;
/// Where the redistributor's second frame begins, which has the interrupts of one processor.
const SGI_FRAME: u64 = 0x1_0000;
/// A redistributor's, of software-generated and private interrupts.
const REDISTRIBUTOR: [(u64, u32); 6] = [
    (0x080, 1), // GICR_IGROUPR0
    (0x100, 1), // GICR_ISENABLER0
    (0xc00, 2), // GICR_ICFGR0 and 1
    (0x400, 8), // GICR_IPRIORITYR
    (0x200, 1), // GICR_ISPENDR0
    (0x300, 1), // GICR_ISACTIVER0
];
/// A processor's interface, before the active priorities.
const INTERFACE: [u64; 7] = [
    register(12, 12, 5), // ICC_SRE_EL1
    ICC_CTLR_EL1,
    register(4, 6, 0),   // ICC_PMR_EL1
    register(12, 8, 3),  // ICC_BPR0_EL1
    register(12, 12, 3), // ICC_BPR1_EL1
    register(12, 12, 6), // ICC_IGRPEN0_EL1
    register(12, 12, 7), // ICC_IGRPEN1_EL1
];
/// ICC_CTLR_EL1.
pub const ICC_CTLR_EL1: u64 = register(12, 12, 4);
/// Its place among those of [`interface`].
pub const ICC_CTLR_PLACE: usize = 1;
/// What of ICC_CTLR_EL1 says how the controller is made: PRIbits, IDbits, SEIS, A3V.
pub const ICC_CTLR_MADE: u64 = 0xff00;

/// A system register with op0 3 and op1 0, as KVM numbers them.
const fn register(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// The 32-bit registers from `base` on that have `bits` bits for each of the interrupts `ids`.
fn words(base: u64, bits: u32, ids: std::ops::Range<u32>) -> impl Iterator<Item = u64> {
    let at = move |id: u32| base + u64::from(id * bits / 8);
    (at(ids.start)..at(ids.end)).step_by(4)
}

/// Offsets of the distributor's 32-bit registers.
pub fn distributor() -> Vec<u64> {
    let ids = layout::FIRST_SPI..layout::FIRST_SPI + layout::SPIS;
    let shared = DISTRIBUTOR
        .into_iter()
        .flat_map(|(base, bits)| words(base, bits, ids.clone()));
    std::iter::once(GICD_CTLR).chain(shared).collect()
}

/// Offsets of a redistributor's 32-bit registers.
pub fn redistributor() -> Vec<u64> {
    let private = |(base, bits)| words(SGI_FRAME + base, bits, 0..layout::FIRST_SPI);
    REDISTRIBUTOR.into_iter().flat_map(private).collect()
}

/// The system registers of a processor's interface whose ICC_CTLR_EL1 is `control`: it says how many
/// registers active priorities take.
pub fn interface(control: u64) -> Vec<u64> {
    let count = match control >> 8 & 7 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    };
    let active = (0..count)
        .map(|n| register(12, 8, 4 + n)) // ICC_AP0R<n>_EL1
        .chain((0..count).map(|n| register(12, 9, n))); // ICC_AP1R<n>_EL1
    INTERFACE.into_iter().chain(active).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interrupt_has_its_registers_once() {
        let distributor = distributor();
        // CTLR; one word of 32 bits three times over, with enables; two, 64 and eight words.
        assert_eq!(distributor.len(), 1 + 4 + 2 + 64 + 8);
        for offset in [
            0, 0x84, 0x104, 0xc08, 0xc0c, 0x6100, 0x61fc, 0x420, 0x43c, 0x204, 0x304,
        ] {
            assert_eq!(
                distributor.iter().filter(|at| **at == offset).count(),
                1,
                "{offset:#x}"
            );
        }
        let redistributor = redistributor();
        assert_eq!(redistributor.len(), 4 + 2 + 8);
        for offset in [0x1_0080, 0x1_0c04, 0x1_0400, 0x1_041c, 0x1_0200] {
            assert!(redistributor.contains(&offset), "{offset:#x}");
        }
    }

    #[test]
    fn active_priorities_take_as_many_registers_as_the_controller_has() {
        assert_eq!(interface(0)[ICC_CTLR_PLACE], ICC_CTLR_EL1);
        for (control, count) in [(4 << 8, 1), (5 << 8, 2), (6 << 8, 4), (7 << 8 | 1, 4)] {
            assert_eq!(
                interface(control).len(),
                INTERFACE.len() + 2 * count,
                "{control:#x}"
            );
        }
        // ICC_AP1R0_EL1 is S3_0_C12_C9_0.
        assert_eq!(*interface(4 << 8).last().unwrap(), 0xc648);
    }
}
