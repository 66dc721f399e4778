//! The part of the KVM accelerator that depends on x86 processors.

mod cpuid;
mod level;
mod report;
mod scratch;
mod state;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{Error, failed};
use crate::accel::CpuModel;
use crate::arch::x86_64::{Segment, layout};
use crate::arch::{Boot, Controller};

pub(super) use report::internal_error;
pub(super) use scratch::routine;

/// What to do where there is no `/dev/kvm`.
pub(super) const ABSENT: &str = "the kernel has no KVM here: load kvm_intel or kvm_amd";

/// Model-specific registers (Intel SDM volume 4) and what firmware would have set them to: fast string
/// operations on; memory types on, write-back by default. Linux turns the page attribute table off when it
/// finds them off.
const MSRS: [(u32, u64); 2] = [(IA32_MISC_ENABLE, 1), (IA32_MTRR_DEF_TYPE, 1 << 11 | 6)];
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_APIC_BASE: enabled, and this is the bootstrap processor.
const APIC_BASE: u64 = layout::LAPIC | 1 << 11 | 1 << 8;

/// The interrupt controllers, in the kernel: local APICs, IOAPIC, and the old pair that ACPI says is not
/// there. No timer chip: the guest has the TSC deadline timer and the paravirtual clock.
fn create_interrupt_chip(vm: &VmFd) -> Result<(), Error> {
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))
}

/// What all processors of a machine have in common.
pub(super) struct Template {
    cpuid: kvm_bindings::CpuId,
    msrs: Msrs,
    xcrs: Option<kvm_xcrs>,
    /// The registers that a snapshot asks for: what KVM says that it saves, and what it forgets to say.
    saved: Vec<u32>,
}

impl Template {
    /// The host's processor as far as KVM can virtualize it, cut down to `model`, with our topology. Makes the interrupt
    /// controllers too, which must be there before any vCPU.
    pub(super) fn new(kvm: &Kvm, vm: &VmFd, cpus: u8, model: Option<CpuModel>) -> Result<Self, Error> {
        create_interrupt_chip(vm)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let offered = level::restrict(supported.as_slice(), model);
        let entries = MSRS.map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        });
        let listed = kvm
            .get_msr_index_list()
            .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Template {
            xcrs: cpuid::extended_state(supported.as_slice()).map(enabled),
            saved: state::msrs(listed.as_slice()),
            cpuid: cpuid::template(&offered, cpus)?,
            msrs: Msrs::from_entries(&entries).map_err(|_| Error::TooMany {
                what: "MSRs",
                count: MSRS.len(),
            })?,
        })
    }

    /// Makes the new vCPU number `id` one of them.
    pub(super) fn apply(&self, fd: &VcpuFd, id: u8) -> Result<(), Error> {
        let mut cpuid = self.cpuid.clone();
        cpuid::set_id(cpuid.as_mut_slice(), id);
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        match fd.set_msrs(&self.msrs).map_err(failed("KVM_SET_MSRS"))? {
            count if count == MSRS.len() => Ok(()),
            count => Err(Error::Msr(MSRS[count].0)),
        }
    }

    /// All vCPUs are there. Nothing is missing.
    pub(super) fn complete(&self, _: &VmFd) -> Result<Controller, Error> {
        Ok(Controller::Apic)
    }
}

/// XCR0 with all of `state` enabled, which is what kernels make of it, before the guest's kernel does.
///
/// KVM learns of the guest's XCR0 by intercepting XSETBV, and lets the size in CPUID leaf 13 follow it. A host
/// whose processor does not intercept it (QEMU's emulation of AMD-V) leaves KVM with the value at reset: the
/// size is then that of the x87 and SSE state alone, Linux 6 gives XSAVE up and Linux 7 panics, and KVM loads
/// the old XCR0 again at the next entry.
fn enabled(state: u64) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    // Register 0 is XCR0.
    xcrs.xcrs[0].value = state;
    xcrs
}

/// Tells a guest with KVM's clock that the processor was held.
pub(super) fn stood_still(fd: &VcpuFd) {
    // A guest that has not enabled the clock has no such watchdogs.
    let _ = fd.kvmclock_ctrl();
}

/// Sets the registers for the kernel's entry.
pub(super) fn boot(fd: &VcpuFd, boot: &Boot) -> Result<(), Error> {
    let Boot::X86_64(boot) = boot else {
        return Err(Error::ForeignBoot);
    };
    let data = segment(boot.ds);
    let sregs = kvm_sregs {
        cs: segment(boot.cs),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(boot.tr),
        ldt: kvm_segment {
            unusable: 1,
            ..kvm_segment::default()
        },
        gdt: table(boot.gdt),
        idt: table(boot.idt),
        cr0: boot.cr0,
        cr3: boot.cr3,
        cr4: boot.cr4,
        efer: boot.efer,
        apic_base: APIC_BASE,
        ..kvm_sregs::default()
    };
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: boot.rip,
        rsi: boot.rsi,
        rsp: boot.rsp,
        rflags: boot.rflags,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

fn segment(segment: Segment) -> kvm_segment {
    let bits = |shift: u16, count: u16| ((segment.access >> shift) & ((1 << count) - 1)) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: bits(0, 4),
        s: bits(4, 1),
        dpl: bits(5, 2),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: 0,
        padding: 0,
    }
}

fn table((base, limit): (u64, u16)) -> kvm_dtable {
    kvm_dtable {
        base,
        limit,
        padding: [0; 3],
    }
}
