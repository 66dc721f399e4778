//! Model-specific registers, those of the paravirtual clock among them.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::exception::canonical;
use crate::op::{Flow, Stop};
use crate::state::{Cpu, efer, seg};

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

/// Registers without effect that remember what was written: number and value at reset.
const REMEMBERED: &[(u32, u64)] = &[
    (0x17, 0),
    (0x48, 0),
    (0x8b, 0),
    // Fast string operations, and no performance monitoring.
    (0x1a0, 1 | 1 << 11 | 1 << 12),
    (0x277, 0x0007_0406_0007_0406),
    (0x2ff, 0xc06),
    (0x33, 0),
    (0x3a, 1),
    (0x140, 0),
    (0xc000_0083, 0),
];

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
    system_time: u64,
    wall_clock: u64,
    remembered: BTreeMap<u32, u64>,
}

impl Msrs {
    pub fn new() -> Msrs {
        let mut remembered: BTreeMap<u32, u64> = REMEMBERED.iter().copied().collect();
        // Memory type ranges: eight variable pairs and the fixed ones.
        remembered.extend((0x200..0x210).map(|number| (number, 0)));
        let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..0x270);
        remembered.extend(fixed.map(|number| (number, 0x0606_0606_0606_0606)));
        Msrs {
            star: 0,
            lstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            system_time: 0,
            wall_clock: 0,
            remembered,
        }
    }
}

mod number {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const PRED_CMD: u32 = 0x49;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC: u32 = 0x800;
    pub const X2APIC_END: u32 = 0x8ff;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
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
            MTRR_CAP => 0x508,
            SYSENTER_CS => self.msrs.sysenter_cs,
            SYSENTER_ESP => self.msrs.sysenter_esp,
            SYSENTER_EIP => self.msrs.sysenter_eip,
            DEBUGCTL => self.debug.control(),
            number::ARCH_CAPABILITIES => self::ARCH_CAPABILITIES,
            TSC_DEADLINE => self.tsc_deadline(),
            X2APIC..=X2APIC_END if self.apic.base & 1 << 10 != 0 => self.read_apic(msr - X2APIC, ahead),
            KVM_WALL_CLOCK => self.msrs.wall_clock,
            KVM_SYSTEM_TIME => self.msrs.system_time,
            EFER => self.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            FMASK => self.msrs.fmask,
            FS_BASE => self.seg_base[seg::FS],
            GS_BASE => self.seg_base[seg::GS],
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            number::TSC_AUX => self.msrs.tsc_aux,
            _ => match self.msrs.remembered.get(&msr) {
                Some(value) => *value,
                None => return self.general_protection(0),
            },
        })
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64, ahead: u64) -> Flow {
        use number::*;
        if matches!(
            msr,
            LSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE | SYSENTER_ESP | SYSENTER_EIP
        ) && !canonical(value)
        {
            return self.general_protection(0);
        }
        match msr {
            TSC => self.time.offset = value.wrapping_sub(self.now(ahead)),
            TSC_ADJUST => self.time.offset = value,
            APIC_BASE => self.set_apic_base(value),
            PRED_CMD | FLUSH_CMD => {}
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = value,
            SYSENTER_EIP => self.msrs.sysenter_eip = value,
            DEBUGCTL => {
                if !self.debug.set_control(value) {
                    return self.general_protection(0);
                }
            }
            TSC_DEADLINE => self.set_tsc_deadline(value),
            X2APIC..=X2APIC_END if self.apic.base & 1 << 10 != 0 => {
                self.write_apic(msr - X2APIC, value, ahead)
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
            FMASK => self.msrs.fmask = value & 0xffff_ffff,
            FS_BASE => self.set_base(seg::FS, value),
            GS_BASE => self.set_base(seg::GS, value),
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            number::TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            _ => match self.msrs.remembered.get_mut(&msr) {
                Some(remembered) => *remembered = value,
                None => return self.general_protection(0),
            },
        }
        Ok(())
    }

    fn set_base(&mut self, number: usize, value: u64) {
        self.seg_base[number] = value;
        self.seg[number].base = value;
    }

    fn write_efer(&mut self, value: u64) -> Flow {
        let paging = self.cr0 & crate::state::cr0::PG != 0;
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

    /// `struct pvclock_vcpu_time_info` (Linux, Documentation/virt/kvm/x86/msr.rst): the TSC counts nanoseconds, so the
    /// relation never changes and one write is enough.
    fn write_system_time(&mut self, at: u64) {
        let mut info = [0; 32];
        info[0..4].copy_from_slice(&2u32.to_le_bytes());
        info[8..16].copy_from_slice(&self.time.offset.to_le_bytes());
        // system_time stays 0: nanoseconds = ((tsc - timestamp) << 1) * 2^31 / 2^32.
        info[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        info[28] = 1;
        // PVCLOCK_TSC_STABLE_BIT
        info[29] = 1;
        self.ram.write(at, &info);
    }

    /// `struct pvclock_wall_clock`: when the machine's clock was zero.
    fn write_wall_clock(&mut self, at: u64) {
        // Where instructions are time, every boot is at the same moment: 2026-01-01.
        const REPEATABLE: u64 = 1_767_225_600;
        let (seconds, nanoseconds) = match self.platform.clock {
            Clock::Instructions => (REPEATABLE, 0),
            Clock::Host => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let boot = since.saturating_sub(self.platform.start.elapsed());
                (boot.as_secs(), boot.subsec_nanos())
            }
        };
        let mut info = [0; 12];
        info[0..4].copy_from_slice(&2u32.to_le_bytes());
        info[4..8].copy_from_slice(&(seconds as u32).to_le_bytes());
        info[8..12].copy_from_slice(&nanoseconds.to_le_bytes());
        self.ram.write(at, &info);
    }
}
