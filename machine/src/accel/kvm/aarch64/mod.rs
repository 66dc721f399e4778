//! The part of the KVM accelerator that depends on Arm processors.

mod gic;
mod scratch;
mod state;

use std::mem::offset_of;
use std::sync::OnceLock;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG,
    KVM_REG_SIZE_U64, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{Error, failed};
use crate::accel::CpuModel;
use crate::arch::aarch64::mpidr;
use crate::arch::{Boot, Controller};
use crate::memory::Memory;

pub(super) use scratch::routine;

/// What to do where there is no `/dev/kvm`.
pub(super) const ABSENT: &str = "the kernel has no KVM here: \
    on hardware, boot it at EL2; in a virtual machine, ask for nested virtualization";

/// MPIDR_EL1 as a register of KVM: op0 3, op1 0, CRn 0, CRm 0, op2 5.
const MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | 3 << 14 | 5;
/// Its affinity fields (Arm ARM, MPIDR_EL1).
const AFFINITY: u64 = 0xff_00ff_ffff;

/// What all processors of a machine have in common.
pub(super) struct Template {
    init: kvm_vcpu_init,
    cpus: u8,
    /// The interrupt controller, once all processors are there.
    gic: OnceLock<gic::Gic>,
}

impl Template {
    /// The host's processor, with PSCI carried out by KVM.
    pub(super) fn new(_: &Kvm, vm: &VmFd, cpus: u8, _: Option<CpuModel>) -> Result<Self, Error> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        Ok(Template {
            init,
            cpus,
            gic: OnceLock::new(),
        })
    }

    /// Makes the new vCPU number `id` one of them.
    pub(super) fn apply(&self, fd: &VcpuFd, id: u8) -> Result<(), Error> {
        let mut init = self.init;
        if id > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        fd.vcpu_init(&init).map_err(failed("KVM_ARM_VCPU_INIT"))?;
        let mut bytes = [0; 8];
        fd.get_one_reg(MPIDR_EL1, &mut bytes)
            .map_err(failed("KVM_GET_ONE_REG of MPIDR_EL1"))?;
        let affinity = u64::from_le_bytes(bytes) & AFFINITY;
        if affinity != mpidr(id) {
            return Err(Error::Affinity {
                cpu: id,
                found: affinity,
                expected: mpidr(id),
            });
        }
        Ok(())
    }

    /// All vCPUs are there, for which the interrupt controller waits.
    pub(super) fn complete(&self, vm: &VmFd) -> Result<Controller, Error> {
        let gic = gic::create(vm, self.cpus)?;
        let controller = gic.controller();
        // Called once.
        let _ = self.gic.set(gic);
        Ok(controller)
    }

    fn gic(&self) -> Result<&gic::Gic, Error> {
        self.gic.get().ok_or(Error::Unsaved("it is not complete"))
    }
}

/// There is no way to tell the guest that the processor was held.
pub(super) fn stood_still(_: &VcpuFd) {}

/// Sets the registers for the kernel's entry.
pub(super) fn boot(fd: &VcpuFd, boot: &Boot) -> Result<(), Error> {
    let Boot::Aarch64(boot) = boot else {
        return Err(Error::ForeignBoot);
    };
    for (offset, value) in [
        (offset_of!(user_pt_regs, pc), boot.pc),
        (offset_of!(user_pt_regs, regs), boot.x0),
    ] {
        fd.set_one_reg(core(offset), &value.to_le_bytes())
            .map_err(failed("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}

/// The 64-bit core register at `offset` of `user_pt_regs`: KVM counts 32-bit words of `kvm_regs`.
fn core(offset: usize) -> u64 {
    let word = (offset_of!(kvm_regs, regs) + offset) / size_of::<u32>();
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | word as u64
}

/// Describes the internal error with which `KVM_RUN` has just come back on CPU `id`.
pub(super) fn internal_error(id: u8, fd: &mut VcpuFd, _: &Memory) -> Error {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which this member is valid.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let mut pc = [0; 8];
    let place = match fd.get_one_reg(core(offset_of!(user_pt_regs, pc)), &mut pc) {
        Ok(_) => format!("{:#x}", u64::from_le_bytes(pc)),
        Err(_) => "an unknown address".to_owned(),
    };
    Error::Incomplete {
        cpu: id,
        report: format!("met internal error {suberror} at {place}"),
    }
}
