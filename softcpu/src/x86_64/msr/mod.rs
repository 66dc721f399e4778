//! Model-specific registers (Intel SDM vol. 4, chapter 2).

mod processor;

use std::collections::BTreeMap;

use crate::x86_64::exception::canonical;
use crate::x86_64::memory_type::MemoryTypes;

/// No speculation to mitigate: RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// Registers without effect: number, value at reset, and the bits that can be written, where any write is
/// allowed.
const PASSIVE: &[(u32, u64, Option<u64>)] = &[
    (PLATFORM_ID, 0, None),
    // IBRS, STIBP, SSBD.
    (SPEC_CTRL, 0, Some(7)),
    (BIOS_SIGN_ID, 0, Some(u64::MAX)),
    // Fast string operations, and no performance monitoring. Limits of CPUID and of NX are not for the guest
    // to set.
    (
        MISC_ENABLE,
        FAST_STRINGS | NO_BTS | NO_PEBS,
        Some(FAST_STRINGS | NO_BTS | NO_PEBS),
    ),
    // Locked.
    (FEATURE_CONTROL, 1, None),
    // CPUID does not fault.
    (MISC_FEATURES_ENABLES, 0, Some(0)),
];
const FAST_STRINGS: u64 = 1 << 0;
const NO_BTS: u64 = 1 << 11;
const NO_PEBS: u64 = 1 << 12;

/// The registers that have no better place.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    cstar: u64,
    memory_types: MemoryTypes,
    pub system_time: u64,
    wall_clock: u64,
    passive: BTreeMap<u32, u64>,
}

impl Msrs {
    /// Whether each has a value that WRMSR takes, and no other is there.
    pub fn is_valid(&self) -> bool {
        let Msrs {
            star: _,
            lstar,
            fmask,
            kernel_gs_base,
            tsc_aux,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            cstar,
            memory_types,
            system_time: _,
            wall_clock: _,
            passive,
        } = self;
        let addresses = [lstar, kernel_gs_base, sysenter_esp, sysenter_eip, cstar];
        let known = |(number, value): (&u32, &u64)| {
            PASSIVE
                .iter()
                .any(|(msr, reset, writable)| msr == number && value & !(writable.unwrap_or(0) | reset) == 0)
        };
        addresses.into_iter().all(|address| canonical(*address))
            && [fmask, tsc_aux, sysenter_cs]
                .into_iter()
                .all(|word| word >> 32 == 0)
            && memory_types.is_valid()
            && passive.len() == PASSIVE.len()
            && passive.iter().all(known)
    }

    pub fn new() -> Msrs {
        Msrs {
            star: 0,
            lstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cstar: 0,
            memory_types: MemoryTypes::new(),
            system_time: 0,
            wall_clock: 0,
            passive: PASSIVE
                .iter()
                .map(|(number, value, _)| (*number, *value))
                .collect(),
        }
    }
}

use number::{BIOS_SIGN_ID, FEATURE_CONTROL, MISC_ENABLE, MISC_FEATURES_ENABLES, PLATFORM_ID, SPEC_CTRL};

mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC: u32 = 0x800;
    pub const X2APIC_END: u32 = 0x8ff;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}
