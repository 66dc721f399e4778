//! One software processor behind the accelerator's traits.

use std::sync::{Arc, Mutex, PoisonError};

use softcpu::x86_64::state::seg;
use softcpu::{BusResult, Cpu, Platform, RestoreError, Segment, Table};

use crate::accel::state::FOREIGN;
use crate::accel::{Error, Exit, ExitHandler, Kick, Profiling, Stop, Vcpu, VcpuState};
use crate::arch::Boot;
use crate::arch::x86_64::layout;
use crate::bus::{Action, BusDevice};
use crate::devices::ioapic::{IoApic, Registers};
use crate::memory::Memory;
use crate::sandbox::Kind;
use crate::state::Refused;

pub(super) struct SoftVcpu {
    cpu: Cpu,
    id: u32,
    platform: Arc<Platform>,
    ioapic: Arc<Mutex<Registers>>,
    profile: Option<Arc<Profiling>>,
    /// Keeps guest RAM mapped while `cpu` holds addresses in it; dropped after it.
    _memory: Memory,
}

impl SoftVcpu {
    pub fn new(
        cpu: Cpu,
        id: u32,
        platform: Arc<Platform>,
        ioapic: Arc<Mutex<Registers>>,
        memory: Memory,
    ) -> Self {
        SoftVcpu {
            cpu,
            id,
            platform,
            ioapic,
            profile: None,
            _memory: memory,
        }
    }

    /// The same, with a profile that goes to `sink` in the end.
    pub(crate) fn profiled(mut self, sink: Option<Arc<Profiling>>) -> Self {
        if let Some(profile) = &sink {
            self.cpu.start_profile(Arc::clone(&profile.functions));
        }
        self.profile = sink;
        self
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        if let Some(sink) = &self.profile {
            *sink.result.lock().unwrap_or_else(PoisonError::into_inner) = self.cpu.take_profile();
        }
    }
}

impl Vcpu for SoftVcpu {
    fn boot(&mut self, boot: &Boot) -> Result<(), Error> {
        let Boot::X86_64(boot) = boot else {
            return Err(Error::ForeignBoot);
        };
        let cpu = &mut self.cpu;
        cpu.set_control(boot.cr0, boot.cr3, boot.cr4, boot.efer);
        for number in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            cpu.set_segment(number, boot.ds);
        }
        cpu.set_segment(seg::CS, boot.cs);
        cpu.set_system_segments(Segment::default(), boot.tr);
        let table = |(base, limit)| Table { base, limit };
        cpu.set_tables(table(boot.gdt), table(boot.idt));
        cpu.set_rflags(boot.rflags);
        cpu.gpr[softcpu::x86_64::state::reg::RSI] = boot.rsi;
        cpu.gpr[softcpu::x86_64::state::reg::RSP] = boot.rsp;
        cpu.rip = boot.rip;
        cpu.unpark();
        Ok(())
    }

    fn run(&mut self, handler: &mut dyn ExitHandler) -> Result<Stop, Error> {
        let mut bus = Adapter {
            handler,
            ioapic: &self.ioapic,
            action: Action::None,
        };
        let exit = self.cpu.run(&mut bus);
        Ok(match exit {
            softcpu::Exit::Stopped => Stop::Action(bus.action),
            softcpu::Exit::Kicked => Stop::Kicked,
            softcpu::Exit::Shutdown => Stop::TripleFault,
        })
    }

    fn thread(&self) -> Kind {
        match self.cpu.runs_directly() {
            true => Kind::Direct,
            false => Kind::Soft,
        }
    }

    fn stood_still(&mut self) {
        self.cpu.stood_still();
    }

    fn save(&self) -> Result<VcpuState, Error> {
        Ok(VcpuState::Soft(Box::new(self.cpu.save())))
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        let VcpuState::Soft(state) = state else {
            return Err(FOREIGN);
        };
        self.cpu.restore(state).map_err(|error| match error {
            RestoreError::OtherProcessor(_) => Refused::Invalid("the number of a processor").into(),
            RestoreError::Invalid(what) => Refused::Invalid(what).into(),
        })
    }

    fn give_back(&mut self) {
        self.cpu.give_back();
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Kicker {
            platform: Arc::clone(&self.platform),
            id: self.id,
        })
    }
}

struct Kicker {
    platform: Arc<Platform>,
    id: u32,
}

impl Kick for Kicker {
    fn kick(&self) {
        self.platform.kick(self.id);
    }
}

/// Turns accesses into exits; the IOAPIC, which under KVM is the kernel's, answers here.
struct Adapter<'a> {
    handler: &'a mut dyn ExitHandler,
    ioapic: &'a Mutex<Registers>,
    action: Action,
}

impl Adapter<'_> {
    fn serve(&mut self, exit: Exit<'_>) -> BusResult {
        match self.handler.exit(exit) {
            Action::None => BusResult::Continue,
            action => {
                self.action = action;
                BusResult::Stop
            }
        }
    }

    fn ioapic_offset(addr: u64) -> Option<u64> {
        let offset = addr.wrapping_sub(layout::IOAPIC);
        (offset < IoApic::SIZE).then_some(offset)
    }
}

impl softcpu::Bus for Adapter<'_> {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        match Self::ioapic_offset(addr) {
            Some(offset) => lock(self.ioapic).read(offset, data),
            None => {
                self.serve(Exit::MmioRead { addr, data });
            }
        }
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> BusResult {
        match Self::ioapic_offset(addr) {
            Some(offset) => {
                lock(self.ioapic).write(offset, data);
                BusResult::Continue
            }
            None => self.serve(Exit::MmioWrite { addr, data }),
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.serve(Exit::PortIn { port, data });
    }

    fn port_write(&mut self, port: u16, data: &[u8]) -> BusResult {
        self.serve(Exit::PortOut { port, data })
    }

    fn poll(&mut self) {
        self.serve(Exit::Poll);
    }

    fn unimplemented(&mut self, what: &str, rip: u64) {
        tracing::warn!("the software processor lacks {what}, which the guest used at {rip:#x}");
    }
}

/// A device whose user panicked is still a device.
fn lock(registers: &Mutex<Registers>) -> std::sync::MutexGuard<'_, Registers> {
    registers.lock().unwrap_or_else(PoisonError::into_inner)
}
