//! What a snapshot holds of processors and of what the accelerator has beside them. Plain data, the same on
//! every host: a state of an accelerator that this host does not have is decoded, looked at and refused.

use serde::{Deserialize, Serialize};

use super::soft::SoftVmState;

/// A processor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum VcpuState {
    /// Of the software accelerator.
    Soft(Box<softcpu::ArchState>),
    /// Of KVM on x86.
    KvmX86(Box<KvmX86Vcpu>),
    /// Of KVM on Arm.
    KvmArm(KvmArmVcpu),
}

/// Interrupt controllers and clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum VmState {
    /// Of the software accelerator.
    Soft(SoftVmState),
    /// Of KVM on x86.
    KvmX86(KvmX86Vm),
    /// Of KVM on Arm.
    KvmArm(KvmArmVm),
}

/// Structures of the KVM API as their bytes, named as there. KVM checks them when they are set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KvmX86Vcpu {
    /// `kvm_mp_state`.
    pub mp_state: Vec<u8>,
    /// `kvm_regs`.
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    pub sregs: Vec<u8>,
    /// `kvm_xsave`.
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`.
    pub xcrs: Vec<u8>,
    /// `kvm_debugregs`.
    pub debugregs: Vec<u8>,
    /// `kvm_lapic_state`.
    pub lapic: Vec<u8>,
    /// `kvm_vcpu_events`.
    pub events: Vec<u8>,
    /// Model-specific registers: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
}

/// What KVM on x86 has beside processors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KvmX86Vm {
    /// `kvm_irqchip` of both PICs and the IOAPIC.
    pub irqchips: Vec<Vec<u8>>,
    /// Nanoseconds of kvm-clock.
    pub clock: u64,
    /// What CPUID says on processor 0: function, index, flags, EAX, EBX, ECX, EDX.
    pub cpuid: Vec<[u32; 7]>,
}

/// A processor of KVM on Arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KvmArmVcpu {
    /// `kvm_mp_state`: whether it runs or waits to be started.
    pub mp_state: u32,
    /// The registers of `KVM_GET_REG_LIST`, in its order: id (`KVM_REG_ARM64_*`) and value. Among them are the
    /// timers and the counter, from whose value the guest's time goes on.
    pub registers: Vec<(u64, Vec<u8>)>,
    /// Whether an SError is pending, and its syndrome where it has one (`kvm_vcpu_events`).
    pub serror: Option<Option<u64>>,
    /// Whether an external abort is pending.
    pub external_abort: bool,
}

/// What KVM on Arm has beside processors: a GICv3. Which registers these are, in which order, says
/// [`gicv3`](crate::arch::aarch64::gicv3).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KvmArmVm {
    /// The distributor's registers.
    pub distributor: Vec<u32>,
    /// What each processor has of it.
    pub cpus: Vec<GicV3Cpu>,
}

/// What one processor has of a GICv3.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GicV3Cpu {
    /// Its redistributor's registers.
    pub redistributor: Vec<u32>,
    /// Its interface's.
    pub interface: Vec<u64>,
}

/// Why a state of another accelerator is refused.
pub(super) const FOREIGN: super::Error =
    super::Error::Refused(crate::state::Refused::Invalid("the accelerator of a processor"));
