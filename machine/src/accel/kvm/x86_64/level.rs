//! A host's CPUID cut down to a level of x86-64: programs find no instruction set beyond it. What only systems
//! use (PCID, INVPCID, speculation control …) stays.
//!
//! Hardware does not enforce it, as it does not for any other hypervisor: a program that does not ask CPUID
//! can still execute what the host has.

use kvm_bindings::kvm_cpuid_entry2;

use crate::accel::CpuModel;

const ALL: u32 = !0;
/// State components of XCR0: x87, SSE, AVX.
const COMPONENTS: u32 = 0b111;
/// Bytes of an XSAVE area with them.
const AREA: u32 = 832;
/// Leaves that are about extensions beyond either level: processor trace, AMX, AVX10.
const BEYOND: [u32; 4] = [0x14, 0x1d, 0x1e, 0x24];

/// Leaf and subleaf; which bits of EAX, EBX, ECX and EDX stay.
type Mask = (u32, u32, [u32; 4]);

/// Bits that are taken away: PCLMULQDQ and AES; HLE, RTM, MPX, AVX-512, ADX, PT, SHA; SSE4A, XOP, FMA4, TBM.
const V3: [Mask; 5] = [
    (0x1, 0, [ALL, ALL, !(1 << 1 | 1 << 25), ALL]),
    // Of leaf 7, ECX: UMIP, five-level paging and RDPID stay; of EDX what is about fast strings and speculation.
    // No further subleaf.
    (
        0x7,
        0,
        [
            0,
            !(1 << 4 | 1 << 11 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 21 | 0x3f << 25 | 3 << 30),
            1 << 2 | 1 << 16 | 1 << 22,
            1 << 4 | 1 << 10 | 0xfc00_0000,
        ],
    ),
    (0xd, 0, [COMPONENTS, ALL, 0, 0]),
    // XSAVEOPT, XSAVEC, and XGETBV of what is in use, but not XSAVES.
    (0xd, 1, [0b111, ALL, 0, 0]),
    (
        0x8000_0001,
        0,
        [ALL, ALL, !(1 << 6 | 1 << 11 | 1 << 16 | 1 << 21), ALL],
    ),
];

/// Bits that v2 loses as well: FMA, MOVBE, XSAVE, OSXSAVE, AVX, F16C; BMI1, AVX2, BMI2; RDPID; LZCNT.
const V2: [Mask; 3] = [
    (
        0x1,
        0,
        [
            ALL,
            ALL,
            !(1 << 12 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29),
            ALL,
        ],
    ),
    (0x7, 0, [ALL, !(1 << 3 | 1 << 5 | 1 << 8), !(1 << 22), ALL]),
    (0x8000_0001, 0, [ALL, ALL, !(1 << 5), ALL]),
];

/// What KVM supports, without what is beyond the model.
pub(super) fn restrict(supported: &[kvm_cpuid_entry2], model: Option<CpuModel>) -> Vec<kvm_cpuid_entry2> {
    let masks: Vec<&Mask> = match model {
        None | Some(CpuModel::Host) => return supported.to_vec(),
        Some(CpuModel::V3) => V3.iter().collect(),
        Some(CpuModel::V2) => V3.iter().chain(&V2).collect(),
    };
    let xsave = model == Some(CpuModel::V3);
    let there = |entry: &&kvm_cpuid_entry2| match entry.function {
        0x7 => entry.index == 0,
        0xd => xsave && entry.index <= 2,
        leaf => !BEYOND.contains(&leaf),
    };
    let cut = |entry: &kvm_cpuid_entry2| {
        let mut entry = *entry;
        for (_, _, [eax, ebx, ecx, edx]) in masks
            .iter()
            .filter(|(leaf, subleaf, _)| (*leaf, *subleaf) == (entry.function, entry.index))
        {
            entry.eax &= eax;
            entry.ebx &= ebx;
            entry.ecx &= ecx;
            entry.edx &= edx;
        }
        if (entry.function, entry.index) == (0xd, 0) {
            entry.ecx = AREA;
            entry.ebx = entry.ebx.min(AREA);
        }
        entry
    };
    supported.iter().filter(there).map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::kvm::x86_64::cpuid::tests::entry;

    /// A host that has everything.
    fn host() -> Vec<kvm_cpuid_entry2> {
        [
            (0x1, 0),
            (0x7, 0),
            (0x7, 1),
            (0xd, 0),
            (0xd, 1),
            (0xd, 2),
            (0xd, 5),
            (0x1d, 0),
            (0x8000_0001, 0),
            (0x8000_0007, 0),
        ]
        .map(|(leaf, subleaf)| entry(leaf, subleaf, [ALL; 4]))
        .to_vec()
    }

    fn cut(model: Option<CpuModel>) -> Vec<kvm_cpuid_entry2> {
        restrict(&host(), model)
    }

    fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let found = entries
            .iter()
            .find(|e| (e.function, e.index) == (leaf, subleaf))?;
        Some([found.eax, found.ebx, found.ecx, found.edx])
    }

    #[test]
    fn the_hosts_own_processor_is_as_it_is() {
        assert_eq!(cut(None), host());
        assert_eq!(cut(Some(CpuModel::Host)), host());
    }

    #[test]
    fn v3_has_avx2_and_nothing_beyond() {
        let v3 = cut(Some(CpuModel::V3));
        let [_, _, ecx, _] = find(&v3, 1, 0).unwrap();
        assert_eq!(ecx & (1 << 12 | 1 << 28 | 1 << 26), 1 << 12 | 1 << 28 | 1 << 26);
        assert_eq!(ecx & (1 << 25 | 1 << 1), 0, "AES, PCLMULQDQ");
        let [eax, ebx, ecx, _] = find(&v3, 7, 0).unwrap();
        assert_eq!(
            (eax, ebx >> 5 & 1, ebx >> 16 & 1),
            (0, 1, 0),
            "AVX2 without AVX-512"
        );
        assert_eq!(ebx >> 10 & 1, 1, "INVPCID stays");
        assert_eq!(ecx >> 1 & 1, 0, "VBMI");
        assert_eq!(find(&v3, 0xd, 0).unwrap(), [7, 832, 832, 0]);
        assert_eq!(find(&v3, 0xd, 1).unwrap()[0], 7);
        assert!(find(&v3, 0xd, 2).is_some());
        for (leaf, subleaf) in [(7, 1), (0xd, 5), (0x1d, 0)] {
            assert_eq!(find(&v3, leaf, subleaf), None, "{leaf:#x}.{subleaf}");
        }
        assert_eq!(
            find(&v3, 0x8000_0001, 0).unwrap()[2] >> 5 & 3,
            1,
            "LZCNT without SSE4A"
        );
        assert_eq!(find(&v3, 0x8000_0007, 0).unwrap(), [ALL; 4]);
    }

    #[test]
    fn v2_has_no_xsave() {
        let v2 = cut(Some(CpuModel::V2));
        let [_, _, ecx, _] = find(&v2, 1, 0).unwrap();
        assert_eq!(
            ecx & (1 << 12 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29),
            0
        );
        assert_eq!(ecx & (1 << 20 | 1 << 23), 1 << 20 | 1 << 23, "SSE4.2, POPCNT");
        let [_, ebx, ecx, _] = find(&v2, 7, 0).unwrap();
        assert_eq!((ebx & (1 << 3 | 1 << 5 | 1 << 8), ecx >> 22 & 1), (0, 0));
        assert!(v2.iter().all(|entry| entry.function != 0xd));
    }

    /// The two accelerators mean the same by a level.
    #[test]
    fn what_v2_loses_is_what_the_software_processor_lacks() {
        let (v3, v2) = (cut(Some(CpuModel::V3)), cut(Some(CpuModel::V2)));
        let lost = |leaf: u32| {
            let (a, b) = (find(&v3, leaf, 0).unwrap(), find(&v2, leaf, 0).unwrap());
            std::array::from_fn::<u32, 4, _>(|i| a[i] & !b[i])
        };
        assert_eq!(lost(1)[2].count_ones(), 6);
        assert_eq!(lost(7), [0, 1 << 3 | 1 << 5 | 1 << 8, 1 << 22, 0]);
        assert_eq!(lost(0x8000_0001), [0, 0, 1 << 5, 0]);
    }
}
