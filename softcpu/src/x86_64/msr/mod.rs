//! Model-specific registers (Intel SDM vol. 4, chapter 2).

use std::collections::BTreeMap;

use crate::x86_64::exception::canonical;
use crate::x86_64::memory_type::MemoryTypes;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{Cpu, efer, seg};

/// No speculation to mitigate: RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
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

/// Registers without effect: number, value at reset, and the bits that can be written, where any write is allowed.
const PASSIVE: &[(u32, u64, Option<u64>)] = &[
    (PLATFORM_ID, 0, None),
    // IBRS, STIBP, SSBD.
    (SPEC_CTRL, 0, Some(7)),
    (BIOS_SIGN_ID, 0, Some(u64::MAX)),
    // Fast string operations, and no performance monitoring. Limits of CPUID and of NX are not for the guest to set.
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
#[derive(Debug)]
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

impl Cpu {
    /// RDMSR, `ahead` instructions after the last block boundary.
    pub(crate) fn read_msr(&mut self, msr: u32, ahead: u64) -> Result<u64, Stop> {
        use number::*;
        Ok(match msr {
            TSC => self.tsc(ahead),
            TSC_ADJUST => self.time.offset,
            APIC_BASE => self.apic.base,
            SYSENTER_CS => self.msrs.sysenter_cs,
            SYSENTER_ESP => self.msrs.sysenter_esp,
            SYSENTER_EIP => self.msrs.sysenter_eip,
            DEBUGCTL => self.debug.control(),
            number::ARCH_CAPABILITIES => self::ARCH_CAPABILITIES,
            TSC_DEADLINE => self.tsc_deadline(),
            X2APIC..=X2APIC_END if self.apic.is_x2apic() => self.read_x2apic(msr - X2APIC, ahead)?,
            KVM_WALL_CLOCK => self.msrs.wall_clock,
            KVM_SYSTEM_TIME => self.msrs.system_time,
            EFER => self.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            CSTAR => self.msrs.cstar,
            FMASK => self.msrs.fmask,
            FS_BASE => self.seg_base[seg::FS],
            GS_BASE => self.seg_base[seg::GS],
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            number::TSC_AUX => self.msrs.tsc_aux,
            _ => {
                let passive = self.msrs.passive.get(&msr).copied();
                match passive.or_else(|| self.msrs.memory_types.read(msr)) {
                    Some(value) => value,
                    None => return self.general_protection(0),
                }
            }
        })
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64, ahead: u64) -> Flow {
        use number::*;
        let allowed = match msr {
            // Addresses.
            LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE | SYSENTER_ESP | SYSENTER_EIP => {
                canonical(value)
            }
            FMASK | number::TSC_AUX => value >> 32 == 0,
            PRED_CMD => value & !1 == 0,
            _ => true,
        };
        if !allowed {
            return self.general_protection(0);
        }
        match msr {
            TSC => self.time.offset = value.wrapping_sub(self.now(ahead)),
            TSC_ADJUST => self.time.offset = value,
            APIC_BASE => self.set_apic_base(value)?,
            PRED_CMD => {}
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = value,
            SYSENTER_EIP => self.msrs.sysenter_eip = value,
            TSC_DEADLINE => self.set_tsc_deadline(value),
            X2APIC..=X2APIC_END if self.apic.is_x2apic() => {
                self.write_x2apic(msr - X2APIC, value, ahead)?;
            }
            KVM_WALL_CLOCK => {
                self.msrs.wall_clock = value;
                self.write_wall_clock(value);
            }
            KVM_SYSTEM_TIME => {
                self.msrs.system_time = value;
                if value & 1 != 0 {
                    self.write_system_time(value & !1);
                }
            }
            EFER => self.write_efer(value)?,
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = value,
            CSTAR => self.msrs.cstar = value,
            FMASK => self.msrs.fmask = value,
            FS_BASE => self.set_base(seg::FS, value),
            GS_BASE => self.set_base(seg::GS, value),
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            number::TSC_AUX => self.msrs.tsc_aux = value,
            _ => return self.write_passive(msr, value),
        }
        Ok(())
    }

    fn write_passive(&mut self, msr: u32, value: u64) -> Flow {
        let done = match PASSIVE.iter().find(|(number, ..)| *number == msr) {
            Some((_, _, writable)) => {
                let fits = writable.is_some_and(|bits| value & !bits == 0);
                if fits {
                    self.msrs.passive.insert(msr, value);
                }
                fits
            }
            None if msr == number::DEBUGCTL => self.debug.set_control(value),
            None => self.msrs.memory_types.write(msr, value),
        };
        if done { Ok(()) } else { self.general_protection(0) }
    }

    fn set_base(&mut self, number: usize, value: u64) {
        self.seg_base[number] = value;
        self.seg[number].base = value;
    }

    fn write_efer(&mut self, value: u64) -> Flow {
        let paging = self.cr0 & crate::x86_64::state::cr0::PG != 0;
        if value & !efer::KNOWN != 0 || (paging && (value ^ self.efer) & efer::LME != 0) {
            return self.general_protection(0);
        }
        let changed = self.efer ^ value;
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.tlb.flush_all();
        }
        Ok(())
    }
}
