//! The guest's CPUID: the host's processor as KVM offers it, with the topology of this machine.
//!
//! One package, one thread per core, all cores share the last cache. Leaves are from the Intel SDM volume 2
//! ("CPUID") and AMD's APM volume 3 appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::accel::Error;

/// Version information: APIC id, logical processor count, features.
const VERSION: u32 = 0x1;
/// Extended state that XSAVE knows.
const EXTENDED_STATE: u32 = 0xd;
/// Intel's deterministic cache parameters.
const CACHES: u32 = 0x4;
/// Extended topology enumeration, and its second version.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
/// AMD: features, sizes, cache topology, processor topology.
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Bits of leaf 1.
const ECX_XSAVE: u32 = 1 << 26;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Bit of AMD's feature leaf: leaf 1's logical processors are cores.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// CPUID of a machine with `cpus` processors from what KVM supports; [`set_id`] completes it for each
/// processor.
pub(super) fn template(supported: &[kvm_cpuid_entry2], cpus: u8) -> Result<CpuId, Error> {
    let cpus = u32::from(cpus);
    let max_leaf = supported
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    let amd = supported
        .iter()
        .any(|entry| entry.function == 0 && entry.ecx == u32::from_le_bytes(*b"cAMD"));
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            VERSION => {
                // KVM emulates the deadline timer whether or not the host has one, but leaves saying so to
                // us.
                entry.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                entry.ebx = field(entry.ebx, 16, 8, cpus);
                entry.edx = if cpus > 1 {
                    entry.edx | EDX_HTT
                } else {
                    entry.edx & !EDX_HTT
                };
            }
            CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                entry.eax = field(entry.eax, 14, 12, sharing(level, cpus) - 1);
                entry.eax = field(entry.eax, 26, 6, cpus - 1);
            }
            AMD_FEATURES if amd && cpus > 1 => entry.ecx |= ECX_CMP_LEGACY,
            AMD_FEATURES => entry.ecx &= !ECX_CMP_LEGACY,
            AMD_SIZES if amd => {
                entry.ecx = field(entry.ecx, 0, 8, cpus - 1);
                entry.ecx = field(entry.ecx, 12, 4, id_bits(cpus));
            }
            AMD_CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                entry.eax = field(entry.eax, 14, 12, sharing(level, cpus) - 1);
            }
            _ => {}
        }
    }
    for leaf in [TOPOLOGY, TOPOLOGY_V2]
        .into_iter()
        .filter(|leaf| *leaf <= max_leaf)
    {
        entries.extend(topology(leaf, cpus));
    }
    CpuId::from_entries(&entries).map_err(|_| Error::TooMany {
        what: "CPUID entries",
        count: entries.len(),
    })
}

/// Writes the processor's own number where CPUID shows it.
pub(super) fn set_id(entries: &mut [kvm_cpuid_entry2], id: u8) {
    let id = u32::from(id);
    for entry in entries {
        match entry.function {
            VERSION => entry.ebx = field(entry.ebx, 24, 8, id),
            TOPOLOGY | TOPOLOGY_V2 => entry.edx = id,
            // Extended APIC id; core number and one thread per core; node 0 of one.
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
}

/// All components of the extended state that XCR0 can enable on a processor with these `entries`; `None` for
/// one without XSAVE.
pub(super) fn extended_state(entries: &[kvm_cpuid_entry2]) -> Option<u64> {
    let find = |function| {
        entries
            .iter()
            .find(move |entry| (entry.function, entry.index) == (function, 0))
    };
    find(VERSION).filter(|entry| entry.ecx & ECX_XSAVE != 0)?;
    let state = find(EXTENDED_STATE)?;
    Some(whole(u64::from(state.edx) << 32 | u64::from(state.eax)))
}

/// `state` without components of which some are missing. XSETBV, and so KVM, takes some components together
/// only (SDM volume 1, 13.3), and Linux 5.17 to 6.3 report one half of AMX's without the permission for the other.
fn whole(state: u64) -> u64 {
    /// What is taken together, and what it requires.
    const GROUPS: [(u64, u64); 3] = [
        // MPX: bounds, their configuration.
        (0b11 << 3, 0),
        // AVX-512: masks, upper halves, upper registers; AVX.
        (0b111 << 5, 1 << 2),
        // AMX: configuration, tiles.
        (0b11 << 17, 0),
    ];
    GROUPS.iter().fold(state, |state, (group, required)| {
        match state & (group | required) == group | required {
            true => state,
            false => state & !group,
        }
    })
}

/// Subleaves of a topology leaf: threads (one per core), cores, end.
fn topology(leaf: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits(cpus), cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

/// How many processors share a cache of `level`: a core's own up to level 2, all of them beyond.
fn sharing(level: u32, cpus: u32) -> u32 {
    if level >= 3 { cpus } else { 1 }
}

/// Bits that the APIC ids of `cpus` processors take.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// `register` with `value` in the `bits` bits from `shift` on.
fn field(register: u32, shift: u32, bits: u32, value: u32) -> u32 {
    let mask = ((1 << bits) - 1) << shift;
    register & !mask | (value << shift) & mask
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn find(entries: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index))
            .unwrap()
    }

    fn host(vendor: &[u8; 4]) -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, 0, [0x1f, 0, u32::from_le_bytes(*vendor), 0]),
            entry(1, 0, [0, 0x0710_0800, 0, EDX_HTT]),
            entry(4, 0, [0xfc00_4121, 0, 0, 0]),
            entry(4, 3, [0xfc0f_c163, 0, 0, 0]),
            entry(0xb, 0, [1, 2, 0x100, 7]),
            entry(0x8000_0001, 0, [0, 0, ECX_CMP_LEGACY, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x700f, 0]),
            entry(0x8000_001d, 3, [0x1c163, 0, 0, 0]),
            entry(0x8000_001e, 0, [7, 0x107, 3, 0]),
        ]
    }

    #[test]
    fn four_cores_have_ids_that_fit_their_topology() {
        let mut cpuid = template(&host(b"cAMD"), 4).unwrap();
        set_id(cpuid.as_mut_slice(), 3);
        let leaf1 = find(&cpuid, 1, 0);
        assert_eq!(leaf1.ebx, 0x0304_0800);
        assert_eq!(leaf1.ecx, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(leaf1.edx, EDX_HTT);
        for leaf in [0xb, 0x1f] {
            assert_eq!(find(&cpuid, leaf, 0).ebx, 1);
            let cores = find(&cpuid, leaf, 1);
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 3));
            assert_eq!(find(&cpuid, leaf, 2).ecx >> 8, 0);
        }
        assert_eq!(find(&cpuid, 4, 0).eax, 0x0c00_0121, "own level 1");
        assert_eq!(find(&cpuid, 4, 3).eax, 0x0c00_c163, "shared level 3");
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, ECX_CMP_LEGACY);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x2003);
        assert_eq!(find(&cpuid, 0x8000_001d, 3).eax, 0xc163);
        let node = find(&cpuid, 0x8000_001e, 0);
        assert_eq!((node.eax, node.ebx, node.ecx), (3, 3, 0));
    }

    #[test]
    fn one_processor_has_no_siblings() {
        let mut cpuid = template(&host(b"ntel"), 1).unwrap();
        set_id(cpuid.as_mut_slice(), 0);
        assert_eq!(find(&cpuid, 1, 0).ebx, 0x0001_0800);
        assert_eq!(find(&cpuid, 1, 0).edx & EDX_HTT, 0);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x700f, "not AMD's meaning");
    }

    #[test]
    fn extended_state_is_that_of_leaf_13_where_there_is_xsave() {
        let xsave = entry(1, 0, [0, 0, ECX_XSAVE, 0]);
        // Subleaf 1 has other meanings.
        let (features, state) = (entry(0xd, 1, [0xf, 0, 0, 0]), entry(0xd, 0, [0x21f, 0, 0, 4]));
        assert_eq!(extended_state(&[xsave, features, state]), Some(4 << 32 | 0x21f));
        assert_eq!(extended_state(&[entry(1, 0, [0; 4]), state]), None);
        assert_eq!(extended_state(&[xsave]), None);
    }

    #[test]
    fn components_are_enabled_together_or_not_at_all() {
        for (reported, enabled) in [
            (0x7, 0x7),
            (0xe7, 0xe7),
            (0x6_02e7, 0x6_02e7),
            (0x2_02e7, 0x02e7),
            (0x1f, 0x1f),
            (0x0f, 0x07),
            (0xe3, 0x03),
            (0x67, 0x07),
        ] {
            assert_eq!(whole(reported), enabled, "{reported:#x}");
        }
    }

    #[test]
    fn a_leaf_beyond_the_maximum_is_not_invented() {
        let mut host = host(b"ntel");
        host[0].eax = 0xd;
        let cpuid = template(&host, 32).unwrap();
        assert_eq!(find(&cpuid, 0xb, 1).eax, 5);
        assert!(cpuid.as_slice().iter().all(|e| e.function != 0x1f));
    }
}
