//! The interrupt controller in the kernel: a GICv3, or a GICv2 where the host's own is one that offers no
//! more (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::accel::kvm::failed;
use crate::accel::{Error, GicV3Cpu, KvmArmVm};
use crate::arch::Controller;
use crate::arch::aarch64::{gicv3, layout, mpidr};
use crate::state::{Mismatch, Refused};

/// Addresses of a GIC's parts, by KVM's numbers for them.
const V3: [(u32, u64); 2] = [
    (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GICV3_REDISTRIBUTORS),
];
const V2: [(u32, u64); 2] = [
    (KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GICV2_CPU_INTERFACE),
];

/// Where an attribute has the affinity of the processor that it is of.
const AFFINITY_SHIFT: u32 = 32;

/// The controller of a machine.
pub(super) struct Gic {
    device: DeviceFd,
    controller: Controller,
    cpus: u8,
}

impl Gic {
    /// What it is to the guest.
    pub(super) fn controller(&self) -> Controller {
        self.controller
    }

    /// What a snapshot needs, while no processor runs.
    pub(super) fn save(&self) -> Result<KvmArmVm, Error> {
        self.check_saved()?;
        let cpus = (0..self.cpus).map(|cpu| {
            let redistributor = gicv3::redistributor().into_iter().map(|at| of(cpu, at));
            let interface = gicv3::interface(self.control(cpu)?).into_iter();
            let interface =
                interface.map(|register| self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of(cpu, register)));
            Ok(GicV3Cpu {
                redistributor: self.get_words(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, redistributor)?,
                interface: interface.collect::<Result<_, Error>>()?,
            })
        });
        Ok(KvmArmVm {
            distributor: self.get_words(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, gicv3::distributor())?,
            cpus: cpus.collect::<Result<_, Error>>()?,
        })
    }

    /// Goes on from what was saved, before any processor runs. Interrupts that were raised before are as they
    /// were then.
    pub(super) fn restore(&self, state: &KvmArmVm) -> Result<(), Error> {
        self.check_saved()?;
        let KvmArmVm { distributor, cpus } = state;
        let (shared, private) = (gicv3::distributor(), gicv3::redistributor());
        let same = distributor.len() == shared.len() && cpus.len() == usize::from(self.cpus);
        Refused::unless(same, "the registers of the interrupt controller")?;
        for (cpu, state) in (0..).zip(cpus) {
            let here = self.control(cpu)?;
            let interface = gicv3::interface(here);
            let same = state.redistributor.len() == private.len() && state.interface.len() == interface.len();
            let made = |control: u64| format!("{:#x}", control & gicv3::ICC_CTLR_MADE);
            if let Some(control) = state.interface.get(gicv3::ICC_CTLR_PLACE) {
                let what = "interrupt controller's make (ICC_CTLR_EL1)";
                Mismatch::unless_equal(what, made(*control), made(here)).map_err(Refused::from)?;
            }
            Refused::unless(same, "the registers of a processor's interrupt controller")?;
        }
        for (at, value) in shared.into_iter().zip(distributor) {
            self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, at, u64::from(*value))?;
        }
        for (
            cpu,
            GicV3Cpu {
                redistributor,
                interface,
            },
        ) in (0..).zip(cpus)
        {
            for (at, value) in private.iter().zip(redistributor) {
                self.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of(cpu, *at), u64::from(*value))?;
            }
            for (register, value) in gicv3::interface(self.control(cpu)?).into_iter().zip(interface) {
                self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of(cpu, register), *value)?;
            }
        }
        Ok(())
    }

    fn check_saved(&self) -> Result<(), Error> {
        match self.controller {
            Controller::GicV3 => Ok(()),
            _ => Err(Error::Unsaved("a machine with a GICv2 cannot be saved yet")),
        }
    }

    /// ICC_CTLR_EL1 of a processor.
    fn control(&self, cpu: u8) -> Result<u64, Error> {
        self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of(cpu, gicv3::ICC_CTLR_EL1))
    }

    /// Reads a register. Those of a processor's interface have 64 bits, the others the lower 32 of them.
    fn get(&self, group: u32, attr: u64) -> Result<u64, Error> {
        let mut value = 0u64;
        let mut attr = kvm_device_attr {
            flags: 0,
            group,
            attr,
            addr: &raw mut value as u64,
        };
        // SAFETY: the kernel writes the 4 or 8 bytes of a register; `value` has 8 and lives until the call
        // returns.
        unsafe { self.device.get_device_attr(&mut attr) }
            .map_err(failed("KVM_GET_DEVICE_ATTR of the GIC"))?;
        Ok(value)
    }

    /// Reads registers of 32 bits.
    fn get_words(&self, group: u32, registers: impl IntoIterator<Item = u64>) -> Result<Vec<u32>, Error> {
        let get = |register| Ok(self.get(group, register)? as u32);
        registers.into_iter().map(get).collect()
    }

    /// Writes one.
    fn set(&self, group: u32, attr: u64, value: u64) -> Result<(), Error> {
        set(&self.device, group, attr, &raw const value as u64)
    }
}

/// The attribute of a processor's register.
fn of(cpu: u8, register: u64) -> u64 {
    mpidr(cpu) << AFFINITY_SHIFT | register
}

/// Makes the controller of a machine whose `cpus` vCPUs are there.
pub(super) fn create(vm: &VmFd, cpus: u8) -> Result<Gic, Error> {
    let (device, addresses, controller) = match device(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        Ok(device) => (device, V3, Controller::GicV3),
        Err(error) if error.errno() == libc::ENODEV && cpus > layout::GICV2_MAX_CPUS => {
            return Err(Error::GicV2 {
                cpus,
                max: layout::GICV2_MAX_CPUS,
            });
        }
        Err(error) if error.errno() == libc::ENODEV => {
            let v2 = device(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2);
            (
                v2.map_err(failed("KVM_CREATE_DEVICE of a GIC"))?,
                V2,
                Controller::GicV2,
            )
        }
        Err(error) => return Err(failed("KVM_CREATE_DEVICE of a GICv3")(error)),
    };
    for (part, address) in addresses {
        set(
            &device,
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            part.into(),
            &raw const address as u64,
        )?;
    }
    let interrupts = layout::FIRST_SPI + layout::SPIS;
    set(
        &device,
        KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
        0,
        &raw const interrupts as u64,
    )?;
    let init = KVM_DEV_ARM_VGIC_CTRL_INIT.into();
    set(&device, KVM_DEV_ARM_VGIC_GRP_CTRL, init, 0)?;
    Ok(Gic {
        device,
        controller,
        cpus,
    })
}

fn device(vm: &VmFd, kind: u32) -> Result<DeviceFd, kvm_ioctls::Error> {
    vm.create_device(&mut kvm_create_device {
        type_: kind,
        fd: 0,
        flags: 0,
    })
}

/// Sets an attribute whose value lies at the address `addr` of ours; 0 for those without a value.
fn set(device: &DeviceFd, group: u32, attr: u64, addr: u64) -> Result<(), Error> {
    let attr = kvm_device_attr {
        flags: 0,
        group,
        attr,
        addr,
    };
    device
        .set_device_attr(&attr)
        .map_err(failed("KVM_SET_DEVICE_ATTR of the GIC"))
}
