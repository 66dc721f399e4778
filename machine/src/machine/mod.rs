//! A machine: built from a [`Spec`], run to an [`Outcome`].
//!
//! This is the only module that knows all parts: RAM, kernel, accelerator, buses, devices.

mod build;
mod generation;
mod handle;
mod registers;
mod serial;
pub mod snapshot;
mod spec;

use std::sync::Arc;

use crate::accel::{self, Vcpu};
use crate::vcpu::{self, Buses, ExitTable};
use crate::{arch, bus, memory, virtio};

pub use handle::{Handle, NamedExit};
pub use spec::{Device, Outcome, Serial, Spec};

/// Why a machine could not be built or run.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} must be {allowed}, not {given}
    Spec {
        /// The part of the specification.
        what: &'static str,
        /// What it may be.
        allowed: String,
        /// What it is.
        given: String,
    },
    /// {0}
    Memory(#[from] memory::Error),
    /// {0}
    Part(#[from] memory::PartError),
    /// {0}
    Arch(#[from] arch::Error),
    /// {0}
    Accel(#[from] accel::Error),
    /// {0}
    Snapshot(#[from] snapshot::Error),
    /// {0}
    Bus(#[from] bus::Error),
    /// the device {name}: {source}
    Device {
        /// Its name.
        name: String,
        /// Why it could not be built.
        source: virtio::Error,
    },
    /// {what}: {source}
    Io {
        /// The step.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<Box<dyn Vcpu>>,
    buses: Arc<Buses>,
    exits: Vec<Arc<ExitTable>>,
    serial: Option<serial::Feeder>,
    /// What lets processors that were saved go on.
    first: Option<Box<dyn FnOnce() + Send>>,
    handle: Handle,
}

impl Machine {
    /// A handle that controls the machine from any thread, before, while and after it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Its RAM.
    pub fn memory(&self) -> Option<memory::Memory> {
        self.handle.memory()
    }

    /// Runs the machine until it ends, and returns when nothing of it runs any more: processors and devices
    /// are stopped, backends are closed. Calls `started` when the guest has run: for what need not be there
    /// before.
    pub fn run(self, started: impl FnOnce()) -> Result<Outcome, Error> {
        let Machine {
            vcpus,
            buses,
            exits,
            serial,
            first,
            handle,
        } = self;
        let control = Arc::clone(&handle.shared.control);
        let mut threads = Vec::with_capacity(vcpus.len());
        for (number, (vcpu, exits)) in vcpus.into_iter().zip(exits).enumerate() {
            let timeline = Arc::clone(&handle.shared.timeline);
            match vcpu::start(
                number,
                vcpu,
                Arc::clone(&control),
                Arc::clone(&buses),
                exits,
                timeline,
            ) {
                Ok(thread) => threads.push(thread),
                Err(source) => control.end(Err(accel::Error::Os {
                    what: "starting a vCPU thread",
                    source,
                })),
            }
        }
        // Here, because this thread may start those of devices itself.
        if let Some(first) = first {
            first();
        }
        control.wait_for_first_exit();
        started();
        let end = control.wait();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        if let Some(serial) = serial {
            serial.stop();
        }
        handle.retire_devices();
        if let Some(instructions) = handle.instructions() {
            handle.shared.timeline.count_all(instructions);
        }
        Ok(end?)
    }
}
