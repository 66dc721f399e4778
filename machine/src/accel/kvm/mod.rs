//! Hardware virtualization through Linux's KVM: interrupt controllers and doorbells live in the kernel.
//!
//! [`create`] makes its ioctls in an order that matters: memory slots, interrupt chip, vCPUs, and only then
//! doorbells. Each of the first three replaces or scans what the doorbells would already be registered in.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod kick;
pub mod probe;
mod scratch;
mod stats;
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[cfg(target_arch = "aarch64")]
use self::aarch64 as arch;
use self::stats::Stats;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as arch;
use super::{CpuModel, Created, Error, Vm, VmState};
use crate::irq::Interrupt;
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory};

pub use kvm_ioctls::Kvm;
#[cfg(target_arch = "x86_64")]
pub(super) use scratch::try_out_in;

/// The kernel's side of a machine.
struct KvmVm {
    fd: VmFd,
    /// What all of its processors have in common.
    template: arch::Template,
    /// Those of the machine and of its processors, where they were asked for.
    statistics: Vec<Stats>,
    /// What the memory slots point at: must live as long as any vCPU can run.
    _memory: Memory,
}

/// An error of the step `what`; for `map_err`.
fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Os {
        what,
        source: error.into(),
    }
}

/// Opens KVM.
pub fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(|error| Error::Unavailable {
        accelerator: "KVM",
        source: io::Error::from(error),
        remedy: match error.errno() {
            libc::ENOENT => arch::ABSENT,
            libc::EACCES | libc::EPERM => "add yourself to the group kvm",
            _ => "look into the kernel's log for what KVM lacks",
        },
    })
}

/// Makes a machine with `memory` and `cpus` processors; with `statistics`, its own and theirs can be read, as
/// far as the kernel has them.
pub fn create(
    kvm: &Kvm,
    memory: &Memory,
    cpus: u8,
    statistics: bool,
    model: Option<CpuModel>,
) -> Result<Created, Error> {
    let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a live mapping that `KvmVm` keeps alive, and every vCPU keeps `KvmVm` alive.
        // Guest RAM is only ever accessed as volatile memory, so that the guest may change it at any time.
        unsafe { fd.set_user_memory_region(slot) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    }
    let template = arch::Template::new(kvm, &fd, cpus, model)?;
    let fds = (0..cpus)
        .map(|id| {
            let vcpu = fd.create_vcpu(u64::from(id)).map_err(failed("KVM_CREATE_VCPU"))?;
            template.apply(&vcpu, id)?;
            Ok(vcpu)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let vm = Arc::new(KvmVm {
        statistics: if statistics {
            open_statistics(&fd, &fds)
        } else {
            Vec::new()
        },
        fd,
        template,
        _memory: Arc::clone(memory),
    });
    let vcpus = (0..cpus)
        .zip(fds)
        .map(|(id, fd)| Ok(Box::new(vcpu::KvmVcpu::new(id, fd, Arc::clone(&vm))?) as _))
        .collect::<Result<Vec<_>, Error>>()?;
    let controller = vm.template.complete(&vm.fd)?;
    Ok(Created {
        vm,
        vcpus,
        controller,
    })
}

/// Nothing depends on them: a kernel that has none (before Linux 5.14) leaves the list shorter.
fn open_statistics(vm: &VmFd, vcpus: &[VcpuFd]) -> Vec<Stats> {
    let of_vcpus = vcpus.iter().map(Stats::open);
    std::iter::once(Stats::open(vm))
        .chain(of_vcpus)
        .filter_map(|opened| {
            opened
                .inspect_err(|error| tracing::debug!("KVM gives no statistics: {error}"))
                .ok()
        })
        .collect()
}

impl Vm for KvmVm {
    fn save(&self) -> Result<VmState, Error> {
        self.template.save(&self.fd)
    }

    fn restore(&self, state: &VmState) -> Result<(), Error> {
        self.template.restore(&self.fd, state)
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let mut sums = Vec::new();
        for stats in &self.statistics {
            if let Err(error) = stats.add_to(&mut sums) {
                tracing::debug!("KVM's statistics cannot be read: {error}");
            }
        }
        sums
    }

    fn interrupt(&self, gsi: u32) -> Result<Arc<dyn Interrupt>, Error> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| Error::Os {
            what: "eventfd2 for an interrupt",
            source,
        })?;
        self.fd.register_irqfd(&event, gsi).map_err(failed("KVM_IRQFD"))?;
        Ok(Arc::new(Irqfd(event)))
    }

    fn doorbell(&self, event: &EventFd, addr: u64, value: u32) -> Result<bool, Error> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), value)
            .map_err(failed("KVM_IOEVENTFD"))?;
        Ok(true)
    }
}

/// An event that the kernel turns into an edge on an interrupt line.
struct Irqfd(EventFd);

impl Interrupt for Irqfd {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
