//! The generation of a virtual machine: 16 bytes in RAM that are others whenever the guest goes on from a
//! snapshot, and an interrupt that says so (Microsoft, "Virtual Machine Generation ID"; Linux,
//! `drivers/virt/vmgenid.c`). By it two guests that went on from the same snapshot have different randomness.
//!
//! The guest finds it by ACPI as a device with the compatible id `VM_Gen_Counter`, notified by a generic event
//! device (ACPI 6.5 §5.6.9), or in its device tree as `microsoft,vmgenid`.

use std::sync::Arc;

use super::Error;
use crate::accel::Vm;
use crate::arch::{self, Layout};
use crate::entropy;
use crate::irq::Interrupt;
use crate::memory::{Bytes, GuestAddress, Memory};

/// Where it is, and whether every run is to have the same.
pub(super) struct Generation {
    layout: &'static Layout,
    repeatable: bool,
}

impl Generation {
    pub(super) fn new(layout: &'static Layout, repeatable: bool) -> Generation {
        Generation { layout, repeatable }
    }

    /// Gives a guest that boots its first one.
    pub(super) fn begin(&self, memory: &Memory) -> Result<(), Error> {
        let first = if self.repeatable {
            [0; 16]
        } else {
            entropy::bytes()
        };
        self.write(memory, first)
    }

    /// Gives a guest that goes on from a snapshot another one, and returns the line to raise when its devices
    /// do; without one the guest does not notice.
    pub(super) fn renew(
        &self,
        memory: &Memory,
        vm: &dyn Vm,
        new: Option<[u8; 16]>,
    ) -> Result<Option<Arc<dyn Interrupt>>, Error> {
        let Some(new) = new else { return Ok(None) };
        self.write(memory, new)?;
        Ok(Some(vm.interrupt(self.layout.generation_gsi)?))
    }

    fn write(&self, memory: &Memory, id: [u8; 16]) -> Result<(), Error> {
        let at = GuestAddress(self.layout.generation);
        let written = memory.write_slice(&id, at);
        Ok(written.map_err(|source| arch::Error::Write {
            what: "the generation id",
            source,
        })?)
    }
}
