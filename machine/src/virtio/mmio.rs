//! The memory-mapped transport, version 2: registers only (VIRTIO 1.3 §4.2). What they mean is decided in
//! [`core`](super::core).

use std::sync::Arc;

use super::core::{Core, IoeventfdRegistrar};
use super::determinism::WorkerGate;
use super::state::TransportState;
use super::{Line, Unsaved, VirtioDevice};
use crate::bus::{Action, BusDevice, RegisterNames};
use crate::memory::Memory;
use crate::state::Refused;

/// Bytes of address space of one device: a page, so that each device can be mapped and protected by itself.
pub const REGION: u64 = 0x1000;

/// Register offsets (VIRTIO 1.3 §4.2.2, table 4.1), named as there.
pub mod register {
    #![allow(missing_docs)]
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// The registers' names (VIRTIO 1.3 table 4.1).
pub const REGISTERS: RegisterNames = &[
    (register::MAGIC_VALUE, "MagicValue"),
    (register::VERSION, "Version"),
    (register::DEVICE_ID, "DeviceID"),
    (register::VENDOR_ID, "VendorID"),
    (register::DEVICE_FEATURES, "DeviceFeatures"),
    (register::DEVICE_FEATURES_SEL, "DeviceFeaturesSel"),
    (register::DRIVER_FEATURES, "DriverFeatures"),
    (register::DRIVER_FEATURES_SEL, "DriverFeaturesSel"),
    (register::QUEUE_SEL, "QueueSel"),
    (register::QUEUE_SIZE_MAX, "QueueSizeMax"),
    (register::QUEUE_SIZE, "QueueSize"),
    (register::QUEUE_READY, "QueueReady"),
    (register::QUEUE_NOTIFY, "QueueNotify"),
    (register::INTERRUPT_STATUS, "InterruptStatus"),
    (register::INTERRUPT_ACK, "InterruptACK"),
    (register::STATUS, "Status"),
    (register::QUEUE_DESC_LOW, "QueueDescLow"),
    (register::QUEUE_DESC_HIGH, "QueueDescHigh"),
    (register::QUEUE_DRIVER_LOW, "QueueDriverLow"),
    (register::QUEUE_DRIVER_HIGH, "QueueDriverHigh"),
    (register::QUEUE_DEVICE_LOW, "QueueDeviceLow"),
    (register::QUEUE_DEVICE_HIGH, "QueueDeviceHigh"),
    (0x0ac, "SHMSel"),
    (register::SHM_LEN_LOW, "SHMLenLow"),
    (0x0b4, "SHMLenHigh"),
    (0x0b8, "SHMBaseLow"),
    (register::SHM_BASE_HIGH, "SHMBaseHigh"),
    (register::CONFIG_GENERATION, "ConfigGeneration"),
];

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout since VIRTIO 1.0.
const LAYOUT_VERSION: u32 = 2;
/// "KILN", little endian.
const VENDOR: u32 = 0x4e4c_494b;

/// A virtio device on the bus.
pub struct Mmio {
    core: Core,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl Mmio {
    /// Puts `device` behind registers and the interrupt `line`. `connect` is called with each doorbell, when
    /// the driver first starts the device, with the value that rings it: a 4-byte store of that value at
    /// [`QUEUE_NOTIFY`](register::QUEUE_NOTIFY). A store that arrives over the bus rings it all the same.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        line: Line,
        connect: IoeventfdRegistrar,
    ) -> Self {
        Mmio {
            core: Core::new(device, memory, line, connect),
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        }
    }

    /// Keeps the device in step with the processor from its next start on.
    pub(crate) fn keep_step(&mut self, gate: Arc<WorkerGate>) {
        self.core.keep_step(gate);
    }

    /// Stops the device for as long as the machine is paused.
    pub fn pause(&mut self) {
        self.core.pause();
    }

    /// Goes on after [`pause`](Mmio::pause).
    pub fn resume(&mut self) {
        self.core.resume();
    }

    /// What a snapshot needs of the device, while the machine is paused.
    ///
    /// # Errors
    /// When the device is running, or in no state that can be saved.
    pub fn save(&self) -> Result<TransportState, Unsaved> {
        let Mmio {
            core,
            device_features_sel,
            driver_features_sel,
            queue_sel,
        } = self;
        Ok(TransportState {
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            queue_sel: *queue_sel,
            core: core.save()?,
        })
    }

    /// Goes on from a saved state after the next [`resume`](Mmio::resume). The machine's RAM is restored
    /// already.
    ///
    /// # Errors
    /// When the state is none of this device's; nothing is changed then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), Refused> {
        let TransportState {
            device_features_sel,
            driver_features_sel,
            queue_sel,
            core,
        } = state;
        self.core.restore(core)?;
        self.device_features_sel = *device_features_sel;
        self.driver_features_sel = *driver_features_sel;
        self.queue_sel = *queue_sel;
        Ok(())
    }

    fn read_register(&self, offset: u64) -> u32 {
        use register::*;
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => LAYOUT_VERSION,
            DEVICE_ID => self.core.traits().id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => self.core.device_features() as u32,
                1 => (self.core.device_features() >> 32) as u32,
                _ => 0,
            },
            QUEUE_SIZE_MAX => self.core.queue_size_max(self.queue_sel).into(),
            QUEUE_READY => self
                .core
                .queue(self.queue_sel)
                .is_some_and(|queue| queue.ready)
                .into(),
            INTERRUPT_STATUS => self.core.interrupt_status(),
            STATUS => self.core.status(),
            // There are no shared memory regions: length and base read as all ones.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => self.core.generation(),
            // Write-only and reserved registers.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        use register::*;
        let select = self.queue_sel;
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.core.set_driver_features(self.driver_features_sel, value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_SIZE => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= self.core.queue_size_max(select) => {
                    self.core.set_queue(select, |queue| queue.size = size);
                }
                _ => self.core.fail(&format_args!(
                    "the driver asked for {value} descriptors in queue {select}"
                )),
            },
            QUEUE_READY => self.core.set_queue(select, |queue| queue.ready = value & 1 != 0),
            QUEUE_NOTIFY => self.core.notify(value),
            INTERRUPT_ACK => self.core.acknowledge(value),
            STATUS => {
                if value == 0 {
                    (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
                }
                self.core.set_status(value);
            }
            QUEUE_DESC_LOW => self
                .core
                .set_queue(select, |queue| set_low(&mut queue.descriptors, value)),
            QUEUE_DESC_HIGH => self
                .core
                .set_queue(select, |queue| set_high(&mut queue.descriptors, value)),
            QUEUE_DRIVER_LOW => self
                .core
                .set_queue(select, |queue| set_low(&mut queue.driver, value)),
            QUEUE_DRIVER_HIGH => self
                .core
                .set_queue(select, |queue| set_high(&mut queue.driver, value)),
            QUEUE_DEVICE_LOW => self
                .core
                .set_queue(select, |queue| set_low(&mut queue.device, value)),
            QUEUE_DEVICE_HIGH => self
                .core
                .set_queue(select, |queue| set_high(&mut queue.device, value)),
            // Read-only and reserved registers.
            _ => {}
        }
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

impl BusDevice for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            self.core.read_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if offset >= register::CONFIG {
            self.core.write_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
        Action::None
    }
}
