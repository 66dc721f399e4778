//! The paravirtual clock of KVM: what a guest reads instead of a timer (Linux,
//! Documentation/virt/kvm/x86/msr.rst).

use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::clock::Clock;
use crate::x86_64::cpu::Cpu;

impl Cpu {
    /// `struct pvclock_vcpu_time_info` whose relation is simple: the TSC counts nanoseconds, so the
    /// relation never changes and one write is enough.
    pub(crate) fn write_system_time(&mut self, at: u64) {
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

    /// Tells the guest that this processor was stopped from outside (PVCLOCK_GUEST_STOPPED): its watchdogs
    /// then start anew. Where instructions are time, its time stood still as well, and it notices nothing.
    pub fn stood_still(&mut self) {
        if self.platform.processors.clock == Clock::Instructions {
            return;
        }
        const FLAGS: u64 = 29;
        const GUEST_STOPPED: u8 = 1 << 1;
        let at = self.msrs.system_time;
        let mut flags = [0];
        if at & 1 != 0 && self.ram.read((at & !1) + FLAGS, &mut flags) {
            self.ram.write((at & !1) + FLAGS, &[flags[0] | GUEST_STOPPED]);
        }
    }

    /// `struct pvclock_wall_clock`: when the machine's clock was zero.
    pub(crate) fn write_wall_clock(&mut self, at: u64) {
        // Where instructions are time, every boot is at the same moment: 2026-01-01.
        const REPEATABLE: u64 = 1_767_225_600;
        let (seconds, nanoseconds) = match self.platform.processors.clock {
            Clock::Instructions => (REPEATABLE, 0),
            Clock::Host => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let boot = since.saturating_sub(self.platform.elapsed());
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
