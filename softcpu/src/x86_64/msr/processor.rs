//! RDMSR and WRMSR.

use super::{PASSIVE, number};
use crate::x86_64::cpu::Cpu;
use crate::x86_64::exception::canonical;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{efer, seg};

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
            number::ARCH_CAPABILITIES => super::ARCH_CAPABILITIES,
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
