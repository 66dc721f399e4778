//! The software accelerator: [`softcpu`] processors, an emulated IOAPIC, and nothing that the host must
//! provide.

mod direct;
mod vcpu;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use softcpu::{Clock, Cpu, Features, Platform, Ram, RegionSpec};
use vmm_sys_util::eventfd::EventFd;

use super::state::FOREIGN;
use super::{Created, Error, Profiling, Vcpu, Vm, VmState};
use crate::arch::Controller;
use crate::devices::ioapic::{IoApic, IoApicState};
use crate::irq::Interrupt;
use crate::memory::{GuestMemoryBackend, GuestMemoryRegion, Memory};
use crate::state::Refused;

pub use direct::{Direct, try_direct};
use softcpu::x86_64::direct::When;
use vcpu::SoftVcpu;

/// How the processors run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What time follows.
    pub clock: Clock,
    /// Where the first processor's profile goes; `None` does not profile.
    pub profile: Option<Arc<Profiling>>,
    /// Where programs run directly.
    pub direct: Option<Arc<Direct>>,
    /// What the processors have beyond x86-64-v2.
    pub features: Features,
}

/// Makes `cpus` processors that share `memory`. All but the first wait for a startup IPI.
pub fn create(options: Options, memory: &Memory, cpus: u8) -> Result<Created, Error> {
    let ram = share(memory)?;
    let platform = Platform::with_features(cpus.into(), options.clock, options.features);
    let sink = Arc::clone(&platform);
    let ioapic = IoApic::new(Box::new(move |addr, data| sink.deliver_msi(addr, data)));
    let ends = Arc::clone(&ioapic);
    platform.on_end_of_interrupt(Box::new(move |vector| ends.end_of_interrupt(vector)));

    let registers = Arc::new(Mutex::new(ioapic.registers()));
    let vcpus = (0..u32::from(cpus))
        .map(|id| {
            let mut cpu = Cpu::new(Arc::clone(&ram), Arc::clone(&platform), id).ok_or(Error::NoCpu(id))?;
            if let Some(direct) = &options.direct {
                cpu.run_directly_in(direct.take(), When::Pays);
            }
            let memory = Arc::clone(memory);
            let registers = Arc::clone(&registers);
            let profile = options.profile.clone().filter(|_| id == 0);
            let vcpu = SoftVcpu::new(cpu, id, Arc::clone(&platform), registers, memory);
            Ok(Box::new(vcpu.profiled(profile)) as Box<dyn Vcpu>)
        })
        .collect::<Result<_, Error>>()?;
    Ok(Created {
        vm: Arc::new(SoftVm { ioapic, platform }),
        vcpus,
        controller: Controller::Apic,
    })
}

/// Million instructions per second of a processor here, in the loop that KVM is measured with.
///
/// # Errors
/// When the routine around the loop does not run as it must.
#[cfg(target_arch = "x86_64")]
pub fn measure() -> Result<f64, super::kvm::probe::Unusable> {
    super::kvm::try_out_in(|memory| create(Options::default(), memory, 1)).map(|speed| speed.mips)
}

/// Guest RAM as the processors see it.
#[allow(unsafe_code)]
fn share(memory: &Memory) -> Result<Arc<Ram>, Error> {
    let regions = memory
        .iter()
        .map(|region| {
            let host = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .map_err(Error::Ram)?;
            Ok(RegionSpec {
                start: vm_memory::Address::raw_value(&region.start_addr()),
                len: region.len(),
                host,
                file: region.file_offset().map(|file| file.start()),
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    // SAFETY: the regions are page-aligned anonymous mappings into which nobody holds references: vm-memory
    // accesses them through volatile pointers only, processors as `softcpu::core::ram_access` says. Every
    // processor, which alone hold the `Ram`, also holds the `Memory` that keeps them mapped.
    Ok(Arc::new(unsafe { Ram::new(&regions) }))
}

/// What is beside the processors.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SoftVmState {
    /// Nanoseconds of the machine's time; 0 where instructions are time, and processors have it.
    elapsed: u64,
    ioapic: IoApicState,
}

/// No machine's time gets here, in nanoseconds: 73 years.
const MOST_TIME: u64 = 1 << 61;

struct SoftVm {
    ioapic: Arc<IoApic>,
    platform: Arc<Platform>,
}

impl Vm for SoftVm {
    fn interrupt(&self, gsi: u32) -> Result<Arc<dyn Interrupt>, Error> {
        let pin = self.ioapic.pin(gsi);
        pin.ok_or(Error::NoPin(gsi))
    }

    fn doorbell(&self, _event: &EventFd, _addr: u64, _value: u32) -> Result<bool, Error> {
        // A store is a function call here: the bus is no slower than a short cut.
        Ok(false)
    }

    fn save(&self) -> Result<VmState, Error> {
        let SoftVm { ioapic, platform } = self;
        let elapsed = match platform.clock() {
            Clock::Host => platform.elapsed(),
            Clock::Instructions => Duration::ZERO,
        };
        Ok(VmState::Soft(SoftVmState {
            elapsed: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            ioapic: ioapic.save(),
        }))
    }

    fn restore(&self, state: &VmState) -> Result<(), Error> {
        let VmState::Soft(SoftVmState { elapsed, ioapic }) = state else {
            return Err(FOREIGN);
        };
        Refused::unless(*elapsed < MOST_TIME, "the machine's time")?;
        self.ioapic.restore(ioapic)?;
        self.platform.set_elapsed(Duration::from_nanos(*elapsed));
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.platform.instructions())
    }

    fn gives_back(&self) -> bool {
        true
    }
}
