//! A vCPU: `KVM_RUN` again and again, each exit handed on as data.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuFd;

use super::kick::Kicker;
use super::{KvmVm, arch};
use crate::accel::{Error, Exit, ExitHandler, Kick, Stop, Vcpu, VcpuState};
use crate::arch::Boot;
use crate::bus::Action;
use crate::sandbox::Kind;

/// One virtual processor of KVM.
pub(super) struct KvmVcpu {
    id: u8,
    fd: VcpuFd,
    kicker: Arc<Kicker>,
    /// Keeps guest RAM mapped while this can run.
    vm: Arc<KvmVm>,
}

impl KvmVcpu {
    pub(super) fn new(id: u8, mut fd: VcpuFd, vm: Arc<KvmVm>) -> Result<Self, Error> {
        let kicker = Kicker::new(&raw mut fd.get_kvm_run().immediate_exit)?;
        Ok(KvmVcpu { id, fd, kicker, vm })
    }

    /// Runs until one exit has been served. `Break` says why to stop.
    fn step(&mut self, handler: &mut dyn ExitHandler) -> ControlFlow<Result<Stop, Error>> {
        // The exit is decoded below from the shared page, because the crate's own decoding drops the width of
        // port I/O.
        if let Err(error) = self.fd.run().map(drop) {
            return match error.errno() {
                libc::EINTR if self.kicker.take() => Break(Ok(Stop::Kicked)),
                libc::EINTR | libc::EAGAIN => Continue(()),
                _ => Break(Err(Error::Run {
                    cpu: self.id,
                    source: error.into(),
                })),
            };
        }
        let run = self.fd.get_kvm_run();
        let action = match run.exit_reason {
            KVM_EXIT_IO => port_io(run, handler),
            KVM_EXIT_MMIO => mmio(run, handler),
            KVM_EXIT_SHUTDOWN => return Break(Ok(Stop::TripleFault)),
            KVM_EXIT_SYSTEM_EVENT => system_event(run, handler),
            KVM_EXIT_INTERNAL_ERROR => {
                return Break(Err(arch::internal_error(self.id, &mut self.fd, &self.vm._memory)));
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says which member of the union is valid.
                let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                return Break(Err(Error::EntryRefused { cpu: self.id, reason }));
            }
            reason => return Break(Err(Error::UnknownExit { cpu: self.id, reason })),
        };
        match action {
            Action::None => Continue(()),
            action => Break(Ok(Stop::Action(action))),
        }
    }
}

impl Vcpu for KvmVcpu {
    fn boot(&mut self, boot: &Boot) -> Result<(), Error> {
        arch::boot(&self.fd, boot)
    }

    fn run(&mut self, handler: &mut dyn ExitHandler) -> Result<Stop, Error> {
        self.kicker.enter();
        let stop = loop {
            if let Break(stop) = self.step(handler) {
                break stop;
            }
        };
        self.kicker.leave();
        stop
    }

    fn stood_still(&mut self) {
        arch::stood_still(&self.fd);
    }

    fn save(&self) -> Result<VcpuState, Error> {
        // The last `KVM_RUN` came back for a kick, and so has finished what it had begun of an exit before.
        self.vm.template.save_vcpu(&self.fd)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.vm.template.restore_vcpu(&self.fd, state)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker) as _
    }

    fn thread(&self) -> Kind {
        Kind::Kvm
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.retire();
    }
}

/// Port I/O, split into single accesses: a string instruction brings `count` of them at once.
fn port_io(run: &mut kvm_run, handler: &mut dyn ExitHandler) -> Action {
    let start: *mut kvm_run = run;
    // SAFETY: the exit reason says which member of the union is valid.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (width, count) = (usize::from(io.size), io.count as usize);
    // SAFETY: the kernel puts `count` accesses of `size` bytes at `data_offset` from the start of its shared
    // mapping, all inside the mapping and behind `kvm_run`; nobody else refers to them while the vCPU does
    // not run.
    let data = unsafe {
        std::slice::from_raw_parts_mut(start.cast::<u8>().add(io.data_offset as usize), width * count)
    };
    for data in data.chunks_exact_mut(width) {
        let exit = if u32::from(io.direction) == KVM_EXIT_IO_IN {
            Exit::PortIn { port: io.port, data }
        } else {
            Exit::PortOut { port: io.port, data }
        };
        match handler.exit(exit) {
            Action::None => {}
            action => return action,
        }
    }
    Action::None
}

fn mmio(run: &mut kvm_run, handler: &mut dyn ExitHandler) -> Action {
    // SAFETY: the exit reason says which member of the union is valid.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let (addr, len) = (mmio.phys_addr, (mmio.len as usize).min(mmio.data.len()));
    let data = &mut mmio.data[..len];
    handler.exit(match mmio.is_write {
        0 => Exit::MmioRead { addr, data },
        _ => Exit::MmioWrite { addr, data },
    })
}

fn system_event(run: &mut kvm_run, handler: &mut dyn ExitHandler) -> Action {
    // SAFETY: the exit reason says which member of the union is valid.
    let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
    handler.exit(Exit::System(match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Action::Shutdown,
        KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH => Action::Reset,
        _ => Action::None,
    }))
}
