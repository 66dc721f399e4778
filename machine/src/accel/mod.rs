//! Accelerators, which run guest instructions: KVM, or our own processor in software.
//!
//! Both implement the same small pair of traits. No module above this one knows which of them runs; none
//! below it (devices, virtio) knows that they exist.

mod choose;
pub mod kvm;
mod model;
pub mod soft;
mod state;

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, Architecture, Controller};
use crate::bus::Action;
use crate::irq::Interrupt;
use crate::memory;
use crate::sandbox::Kind;
use crate::state::Refused;

pub use state::{GicV3Cpu, KvmArmVcpu, KvmArmVm, KvmX86Vcpu, KvmX86Vm, VcpuState, VmState};

pub use choose::{Accel, Chosen, Measured, Support, choose, choose_repeatable, measure, support};
pub use model::CpuModel;

/// Why the guest left its processor, as data.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Port input; the handler fills `data` (1, 2 or 4 bytes).
    PortIn {
        /// I/O port.
        port: u16,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// Port output.
    PortOut {
        /// I/O port.
        port: u16,
        /// 1, 2 or 4 bytes, little endian.
        data: &'a [u8],
    },
    /// A load from a guest-physical address that is not RAM; the handler fills `data` (1 to 8 bytes).
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// A store to a guest-physical address that is not RAM.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// 1 to 8 bytes, little endian.
        data: &'a [u8],
    },
    /// Nothing happened. Where instructions are time, this is when devices may bring in what came from
    /// outside.
    Poll,
    /// The guest asked the platform for power-off or reset (PSCI, KVM system event).
    System(Action),
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The handler answered an exit with an action other than [`Action::None`].
    Action(Action),
    /// [`Kick::kick`] was called.
    Kicked,
    /// Triple fault or its equivalent: the processor has shut down.
    TripleFault,
}

/// Serves exits. Called on the vCPU's thread.
pub trait ExitHandler {
    /// Serves one exit; anything but [`Action::None`] makes [`Vcpu::run`] return.
    fn exit(&mut self, exit: Exit<'_>) -> Action;
}

/// Asks for a profile of a machine's processor.
#[derive(Debug)]
pub struct Profiling {
    /// Where the kernel's functions begin, in order.
    pub functions: Arc<[u64]>,
    /// Takes the profile when the machine has ended.
    pub result: Mutex<Option<softcpu::Profile>>,
}

/// Makes a running vCPU come back from [`Vcpu::run`] soon, from any thread. A kick that arrives before `run`
/// makes the next `run` return at once: none is lost.
pub trait Kick: Send + Sync {
    /// Asks for it.
    fn kick(&self);
}

/// A machine's accelerator side as its constructor makes it: `create(memory, cpus)` of each accelerator.
pub struct Created {
    /// Interrupt lines and doorbells.
    pub vm: Arc<dyn Vm>,
    /// The processors by number. All but the first wait until the first starts them.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// What delivers interrupts.
    pub controller: Controller,
}

/// A virtual processor, owned by its thread.
pub trait Vcpu: Send {
    /// Sets the registers for the kernel's entry. Called for the first processor only, before its first
    /// `run`.
    fn boot(&mut self, boot: &arch::Boot) -> Result<(), Error>;
    /// Runs the guest until something stops it. HLT sleeps inside.
    fn run(&mut self, handler: &mut dyn ExitHandler) -> Result<Stop, Error>;
    /// Called before a `run` when the processor has been held: notifies the guest, where there is a way to,
    /// that its watchdogs are not to take the time for a fault of its own.
    fn stood_still(&mut self);
    /// What a snapshot needs of the processor. Called between two `run`s, on its thread, while the machine is
    /// paused.
    fn save(&self) -> Result<VcpuState, Error>;
    /// Goes on from a saved state, instead of [`boot`](Vcpu::boot).
    fn restore(&mut self, state: &VcpuState) -> Result<(), Error>;
    /// Gives back memory that holds nothing but what can be made again. Called between two `run`s, on its
    /// thread.
    fn give_back(&mut self) {}
    /// A handle that stops `run` from another thread.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// What its thread may do.
    fn thread(&self) -> Kind {
        Kind::Soft
    }
}

/// The accelerator's side of one machine. Order of calls: RAM was given to the constructor; then every vCPU;
/// then interrupt lines; doorbells at any time after (the other order measured 20 times slower under KVM).
pub trait Vm: Send + Sync {
    /// The edge-triggered line `gsi`.
    fn interrupt(&self, gsi: u32) -> Result<Arc<dyn Interrupt>, Error>;
    /// Makes a 4-byte store of `value` at `addr` signal `event` instead of leaving the guest. An accelerator
    /// that has no such short cut returns `false`; the store then reaches the device through the bus.
    fn doorbell(&self, event: &EventFd, addr: u64, value: u32) -> Result<bool, Error>;
    /// What a snapshot needs besides processors, while the machine is paused: interrupt controllers, clock.
    fn save(&self) -> Result<VmState, Error>;
    /// Goes on from a saved state, after all processors were restored and all lines made, before any
    /// processor runs.
    fn restore(&self, state: &VmState) -> Result<(), Error>;
    /// What the accelerator has counted so far, by the names that it has for it, summed over the processors.
    /// Empty where it counts nothing, or was not asked to.
    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// Instructions retired so far; `None` where they are not counted.
    fn instructions(&self) -> Option<u64> {
        None
    }
    /// Whether its processors have memory to [give back](Vcpu::give_back).
    fn gives_back(&self) -> bool {
        false
    }
}

/// What went wrong in an accelerator.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} failed: {source}
    Os {
        /// The step, by the name of its ioctl or system call.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// {accelerator} cannot be used: {source}; {remedy}
    Unavailable {
        /// The accelerator's name.
        accelerator: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
        /// What to do about it on this host.
        remedy: &'static str,
    },
    /// {guest} guests cannot run here: {why}; they need KVM on an {guest} host
    Foreign {
        /// The guest's architecture.
        guest: Architecture,
        /// Why no accelerator here runs them.
        why: String,
    },
    /// the processor model {model} is one of x86_64, and the guest is not
    Model {
        /// What was asked for.
        model: CpuModel,
    },
    /// {accelerator} cannot count instructions
    Uncounted {
        /// The accelerator's name.
        accelerator: &'static str,
    },
    /// this host's interrupt controller is a GICv2, which serves {max} CPUs, not {cpus}
    GicV2 {
        /// CPUs that the machine is to have.
        cpus: u8,
        /// CPUs that it can have here.
        max: u8,
    },
    /// CPU {cpu}: KVM_RUN failed: {source}
    Run {
        /// The CPU's number.
        cpu: u8,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// CPU {cpu}: the hardware refused to enter the guest (reason {reason:#x}), no fault of the guest's
    EntryRefused {
        /// The CPU's number.
        cpu: u8,
        /// The hardware's number for it (KVM API, `KVM_EXIT_FAIL_ENTRY`).
        reason: u64,
    },
    /// CPU {cpu}: KVM_RUN returned an unknown exit reason ({reason})
    UnknownExit {
        /// The CPU's number.
        cpu: u8,
        /// `exit_reason` of `kvm_run`.
        reason: u32,
    },
    /// CPU {cpu}: KVM {report}; this host's KVM is not complete
    Incomplete {
        /// The CPU's number.
        cpu: u8,
        /// What KVM met, and where in the guest.
        report: String,
    },
    /// KVM gives CPU {cpu} the affinity {found:#x}, not {expected:#x}
    Affinity {
        /// The CPU's number.
        cpu: u8,
        /// What it has.
        found: u64,
        /// What the guest's device tree says.
        expected: u64,
    },
    /// KVM does not let MSR {0:#x} be set
    Msr(u32),
    /// {count} {what} are too many
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// the boot state is for another processor
    ForeignBoot,
    /// there is no CPU {0}
    NoCpu(u32),
    /// the interrupt controller has no pin {0}
    NoPin(u32),
    /// guest RAM cannot be used: {0}
    Ram(#[source] vm_memory::GuestMemoryError),
    /// the test routine cannot be assembled: {0}
    Assemble(#[source] iced_x86::IcedError),
    /// the accelerator cannot save its state: {0}
    Unsaved(&'static str),
    /// {0}
    Refused(#[from] Refused),
    /// {0}
    Memory(#[from] memory::Error),
    /// {0}
    Arch(#[from] arch::Error),
}
