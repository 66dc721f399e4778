//! The interrupt controller in the kernel: a GICv3, or a GICv2 where the host's own is one that offers no
//! more (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::accel::Error;
use crate::accel::kvm::failed;
use crate::arch::Controller;
use crate::arch::aarch64::layout;

/// Addresses of a GIC's parts, by KVM's numbers for them.
const V3: [(u32, u64); 2] = [
    (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GICV3_REDISTRIBUTORS),
];
const V2: [(u32, u64); 2] = [
    (KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
    (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GICV2_CPU_INTERFACE),
];

/// Makes the controller of a machine whose `cpus` vCPUs are there. The kernel keeps the device as long as the
/// machine.
pub(super) fn create(vm: &VmFd, cpus: u8) -> Result<Controller, Error> {
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
            part,
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
    set(&device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)?;
    Ok(controller)
}

fn device(vm: &VmFd, kind: u32) -> Result<DeviceFd, kvm_ioctls::Error> {
    vm.create_device(&mut kvm_create_device {
        type_: kind,
        fd: 0,
        flags: 0,
    })
}

/// Sets an attribute whose value lies at the address `addr` of ours; 0 for those without a value.
fn set(device: &DeviceFd, group: u32, attr: u32, addr: u64) -> Result<(), Error> {
    let attr = kvm_device_attr {
        flags: 0,
        group,
        attr: attr.into(),
        addr,
    };
    device
        .set_device_attr(&attr)
        .map_err(failed("KVM_SET_DEVICE_ATTR of the GIC"))
}
