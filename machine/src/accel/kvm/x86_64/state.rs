//! Saving and restoring what KVM has of an x86 machine. The order of the calls is that of Linux,
//! Documentation/virt/kvm/api.rst, where it matters: registers before the time stamp counter's deadline, the
//! local APIC before what is pending.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_msr_entry, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Template, cpuid, failed};
use crate::accel::state::FOREIGN;
use crate::accel::{Error, KvmX86Vcpu, KvmX86Vm, VcpuState, VmState};
use crate::state::{Mismatch, Refused};

/// The time stamp counter, and its deadline, which counts from it.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Memory type ranges (Intel SDM volume 3, §12.11.2), which KVM keeps and, before Linux 6.11, does not list.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];
/// Registers of one call; KVM takes 256 at most.
const CHUNK: usize = 128;
/// Parts of a million by which the frequencies of two hosts' time stamp counters may differ: that of a clock
/// that is measured, and less than what a guest notices.
const TSC_TOLERANCE: u64 = 250;

/// The registers to save, those of `listed` and more, each once.
pub(super) fn msrs(listed: &[u32]) -> Vec<u32> {
    let more = MTRRS.into_iter().flatten().filter(|msr| !listed.contains(msr));
    listed.iter().copied().chain(more).collect()
}

/// The bytes of one of the KVM API's structures.
fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    let len = size_of::<T>();
    // SAFETY: the structures of the KVM API are plain numbers without padding that is not a field of its own,
    // which the kernel or `Default` has filled; the slice lives no longer than `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), len) }.to_vec()
}

/// One of the KVM API's structures from its bytes.
///
/// # Safety
/// Any bytes are a `T`.
unsafe fn from_bytes<T>(bytes: &[u8], what: &'static str) -> Result<T, Refused> {
    Refused::unless(bytes.len() == size_of::<T>(), what)?;
    // SAFETY: there are as many bytes as a `T` has, and the caller says that any are one.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl Template {
    pub(in super::super) fn save_vcpu(&self, fd: &VcpuFd) -> Result<VcpuState, Error> {
        // Asking for this one has KVM take what was sent to the local APIC: it comes first.
        let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let xsave = fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        let region = xsave.region.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(VcpuState::KvmX86(Box::new(KvmX86Vcpu {
            mp_state: bytes_of(&mp_state),
            regs: bytes_of(&fd.get_regs().map_err(failed("KVM_GET_REGS"))?),
            sregs: bytes_of(&fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?),
            xsave: region,
            xcrs: bytes_of(&fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?),
            debugregs: bytes_of(&fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?),
            lapic: bytes_of(&fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?),
            msrs: self.save_msrs(fd)?,
            events: bytes_of(&fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?),
            tsc_khz: fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?,
        })))
    }

    /// KVM stops at a register that it lists and that this processor does not have: that one is left out.
    fn save_msrs(&self, fd: &VcpuFd) -> Result<Vec<(u32, u64)>, Error> {
        let mut saved = Vec::with_capacity(self.saved.len());
        let mut rest = &self.saved[..];
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            let mut msrs = entries(chunk.iter().map(|msr| (*msr, 0)))?;
            let count = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
            let got = &msrs.as_slice()[..count.min(chunk.len())];
            saved.extend(got.iter().map(|entry| (entry.index, entry.data)));
            let skipped = usize::from(got.len() < chunk.len());
            rest = &rest[got.len() + skipped..];
        }
        Ok(saved)
    }

    pub(in super::super) fn restore_vcpu(&self, fd: &VcpuFd, state: &VcpuState) -> Result<(), Error> {
        let VcpuState::KvmX86(state) = state else {
            return Err(FOREIGN);
        };
        let KvmX86Vcpu {
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debugregs,
            lapic,
            events,
            msrs,
            tsc_khz,
        } = &**state;
        let here = fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
        let (saved, this) = (u64::from(*tsc_khz), u64::from(here));
        if saved.abs_diff(this) * 1_000_000 > this * TSC_TOLERANCE {
            Mismatch::unless_equal("time stamp counter's frequency in kHz", *tsc_khz, here)
                .map_err(Refused::from)?;
        }
        // SAFETY: all of these structures are numbers only.
        let (mp_state, regs, sregs, xsave, xcrs, debugregs, lapic, events) = unsafe {
            (
                from_bytes(mp_state, "kvm_mp_state")?,
                from_bytes(regs, "kvm_regs")?,
                from_bytes(sregs, "kvm_sregs")?,
                from_bytes(xsave, "kvm_xsave")?,
                from_bytes::<kvm_xcrs>(xcrs, "kvm_xcrs")?,
                from_bytes(debugregs, "kvm_debugregs")?,
                from_bytes(lapic, "kvm_lapic_state")?,
                from_bytes(events, "kvm_vcpu_events")?,
            )
        };
        fd.set_mp_state(mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
        fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        // SAFETY: KVM reads as many bytes as `KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)` says, which are those of the
        // structure unless this process has asked for more state for its guests (arch_prctl), and it has not.
        unsafe { fd.set_xsave(&xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
        // A host without XSAVE has none, and does not even take none.
        if xcrs.nr_xcrs > 0 {
            fd.set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&debugregs)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
        self.restore_msrs(fd, msrs)?;
        fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    fn restore_msrs(&self, fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), Error> {
        let known = msrs.iter().all(|(msr, _)| self.saved.contains(msr));
        Refused::unless(known, "the list of model-specific registers")?;
        let deadline = |(msr, _): &&(u32, u64)| *msr == IA32_TSC_DEADLINE;
        let (last, first): (Vec<_>, Vec<_>) = msrs.iter().partition(deadline);
        for part in [first, last] {
            let mut rest: &[&(u32, u64)] = &part;
            while !rest.is_empty() {
                let chunk = &rest[..rest.len().min(CHUNK)];
                let msrs = entries(chunk.iter().map(|entry| **entry))?;
                let count = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
                if let Some((msr, value)) = chunk.get(count) {
                    // One that only reports, and is what it was, need not be set.
                    let mut now = entries([(*msr, 0)])?;
                    let got = fd.get_msrs(&mut now).map_err(failed("KVM_GET_MSRS"))?;
                    if got != 1 || now.as_slice()[0].data != *value {
                        return Err(Error::Msr(*msr));
                    }
                }
                rest = &rest[(count + 1).min(chunk.len())..];
            }
        }
        Ok(())
    }

    pub(in super::super) fn save(&self, vm: &VmFd) -> Result<VmState, Error> {
        let irqchip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            Ok(bytes_of(&chip))
        };
        Ok(VmState::KvmX86(KvmX86Vm {
            irqchips: CHIPS.into_iter().map(irqchip).collect::<Result<_, Error>>()?,
            clock: vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?.clock,
            cpuid: self.cpuid(),
        }))
    }

    pub(in super::super) fn restore(&self, vm: &VmFd, state: &VmState) -> Result<(), Error> {
        let VmState::KvmX86(KvmX86Vm {
            irqchips,
            clock,
            cpuid,
        }) = state
        else {
            return Err(FOREIGN);
        };
        if *cpuid != self.cpuid() {
            let same = Mismatch::unless_equal("processor", "another model, or of another KVM", "this host's");
            same.map_err(Refused::from)?;
        }
        Refused::unless(
            irqchips.len() == CHIPS.len(),
            "the number of interrupt controllers",
        )?;
        for (chip_id, bytes) in CHIPS.into_iter().zip(irqchips) {
            // SAFETY: the structure is numbers only, and a union of such.
            let mut chip: kvm_irqchip = unsafe { from_bytes(bytes, "kvm_irqchip") }?;
            Refused::unless(chip.chip_id == chip_id, "the order of interrupt controllers")?;
            if chip_id != KVM_IRQCHIP_IOAPIC {
                silence(&mut chip);
            }
            vm.set_irqchip(&chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        // Without flags the guest's clock goes on from here, however long ago that was.
        let clock = kvm_clock_data {
            clock: *clock,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }

    /// What CPUID says on processor 0, without what depends on the host's processor that was asked.
    fn cpuid(&self) -> Vec<[u32; 7]> {
        let mut entries = self.cpuid.clone();
        cpuid::set_id(entries.as_mut_slice(), 0);
        let row = |entry: &kvm_cpuid_entry2| {
            [
                entry.function,
                entry.index,
                entry.flags,
                entry.eax,
                entry.ebx,
                entry.ecx,
                entry.edx,
            ]
        };
        entries.as_slice().iter().map(row).collect()
    }
}

/// Masks a PIC that no kernel has initialised. KVM routes every line to it as well as to the IOAPIC, and has it
/// unmasked after reset: what is raised before the guest has set up its local APIC, as the notice of a new
/// generation is, would come as vector 3 of all vectors, a breakpoint.
fn silence(chip: &mut kvm_irqchip) {
    // SAFETY: the caller says that it is one of the PICs, for which this member is valid.
    let pic = unsafe { &mut chip.chip.pic };
    if pic.irq_base == 0 {
        pic.imr = u8::MAX;
    }
}

/// The chips whose state KVM has.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

fn entries(msrs: impl IntoIterator<Item = (u32, u64)>) -> Result<Msrs, Error> {
    let entries: Vec<_> = msrs
        .into_iter()
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| Error::TooMany {
        what: "MSRs",
        count: entries.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_saved_once() {
        let all = msrs(&[0x10, 0x277, 0x2ff]);
        assert_eq!(all[..3], [0x10, 0x277, 0x2ff]);
        assert_eq!(all.len(), 3 + 16 + 1 + 2 + 8);
    }

    #[test]
    fn structures_of_another_length_are_refused() {
        let regs = kvm_bindings::kvm_regs {
            rip: 7,
            ..kvm_bindings::kvm_regs::default()
        };
        let bytes = bytes_of(&regs);
        // SAFETY: these are numbers only.
        let decode = |bytes: &[u8]| unsafe { from_bytes::<kvm_bindings::kvm_regs>(bytes, "kvm_regs") };
        assert_eq!(decode(&bytes).unwrap(), regs);
        assert!(decode(&bytes[1..]).is_err());
    }
}
