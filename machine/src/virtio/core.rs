//! What every virtio transport has in common: device status, features and queues, negotiated once for all
//! devices (VIRTIO 1.3 §2.1, §2.2, §3.1). A transport decodes its registers and calls this.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::determinism::{Trigger, WorkerGate};
use super::{Activation, DeviceInterrupt, DeviceTraits, Error, Line, Queue, VirtioDevice};
use crate::memory::{GuestAddress, Memory};

mod saved;

/// Device status bits (VIRTIO 1.3 §2.1).
pub mod status {
    /// The guest has noticed the device.
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive the device.
    pub(crate) const DRIVER: u32 = 2;
    /// The driver is ready; the device serves its queues.
    pub(crate) const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub(crate) const FEATURES_OK: u32 = 8;
    /// The device has met an error it cannot recover from.
    pub(crate) const NEEDS_RESET: u32 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u32 = 128;
}

/// Bits of `InterruptStatus` (VIRTIO 1.3 §4.2.2).
pub(crate) mod isr {
    /// Buffers were used.
    pub(crate) const QUEUE: u32 = 1;
    /// The configuration, or the device status, has changed.
    pub const CONFIG: u32 = 2;
}

/// Features of the transport and the rings that every device offers.
pub(crate) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Failures of one device that are logged. The guest can reset and fail a device as often as it likes, and
/// must not fill the log with it.
const MAX_LOGGED_FAILURES: u32 = 8;

/// Device state that the worker threads share with the transport. Every field stands alone, so no lock orders
/// them.
struct Shared {
    line: Line,
    device_id: u32,
    status: AtomicU32,
    interrupt_status: AtomicU32,
    generation: AtomicU32,
    failures: AtomicU32,
}

impl Shared {
    fn raise(&self, reason: u32) -> io::Result<()> {
        self.interrupt_status.fetch_or(reason, Ordering::SeqCst);
        self.line.trigger()
    }
}

impl DeviceInterrupt for Shared {
    fn queue(&self, _index: u16) -> io::Result<()> {
        self.raise(isr::QUEUE)
    }

    fn config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(isr::CONFIG)
    }

    fn needs_reset(&self, why: &dyn Display) {
        let before = self.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        if before & status::NEEDS_RESET != 0 {
            return;
        }
        if self.failures.fetch_add(1, Ordering::Relaxed) < MAX_LOGGED_FAILURES {
            tracing::warn!(device = self.device_id, "virtio device needs a reset: {why}");
        }
        // VIRTIO 1.3 §2.1.2: once DRIVER_OK is set, the device sends a configuration change notification.
        if before & status::DRIVER_OK != 0 && self.raise(isr::CONFIG).is_err() {
            tracing::debug!(
                device = self.device_id,
                "the interrupt line of a failed virtio device is gone"
            );
        }
    }
}

/// What the driver has written about one queue. The device gets a [`Queue`] made from it at `DRIVER_OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Number of descriptors.
    pub size: u16,
    /// Whether the driver has enabled the queue.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring ("driver area").
    pub driver: u64,
    /// Guest-physical address of the used ring ("device area").
    pub device: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        QueueRegisters {
            size: max_size,
            ready: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }

    /// The queue as the device will use it, or what is wrong with it.
    fn build(&self, max_size: u16, event_idx: bool, memory: &Memory) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
        queue.try_set_used_ring_address(GuestAddress(self.device))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if queue.is_valid(&**memory) {
            Ok(queue)
        } else {
            Err(virtio_queue::Error::FindMemoryRegion)
        }
    }
}

/// Makes a store of a queue's number to the transport's notification register ring its doorbell, where there
/// is a short cut; without one the store arrives at [`Core::notify`].
pub(crate) type IoeventfdRegistrar = Box<dyn FnMut(u32, &EventFd) -> io::Result<()> + Send>;

/// Whether the device serves its queues.
enum RunState {
    /// Before `DRIVER_OK`, after a reset, or failed.
    Idle,
    /// The device owns the queues.
    Running,
    /// Paused by the machine: the queues wait here.
    Paused(Vec<Queue>),
    /// The same, since a snapshot: whether the last edge on the interrupt line has arrived is not known.
    Restored(Vec<Queue>),
}

/// One device and its negotiation.
pub struct Core {
    device: Box<dyn VirtioDevice>,
    traits: DeviceTraits,
    memory: Memory,
    shared: Arc<Shared>,
    connect: IoeventfdRegistrar,
    /// One for each queue, made at the first start: a device that the guest has no driver for costs none.
    doorbells: Vec<EventFd>,
    driver_features: u64,
    queues: Vec<QueueRegisters>,
    run_state: RunState,
    gate: Option<Arc<WorkerGate>>,
}

impl Core {
    /// Puts `device` behind the interrupt `line`. `connect` is called with each queue's doorbell.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        line: Line,
        connect: IoeventfdRegistrar,
    ) -> Self {
        let traits = device.traits();
        let shared = Arc::new(Shared {
            line,
            device_id: traits.id,
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            failures: AtomicU32::new(0),
        });
        let queues = traits
            .queue_sizes
            .iter()
            .map(|&max| QueueRegisters::new(max))
            .collect();
        Core {
            device,
            traits,
            memory,
            shared,
            connect,
            doorbells: Vec::new(),
            driver_features: 0,
            queues,
            run_state: RunState::Idle,
            gate: None,
        }
    }

    /// Keeps the device in step with the processor from its next start on.
    pub(crate) fn keep_step(&mut self, gate: Arc<WorkerGate>) {
        self.gate = Some(gate);
    }

    /// What the device is.
    pub(crate) fn traits(&self) -> DeviceTraits {
        self.traits
    }

    /// All features offered.
    pub(crate) fn device_features(&self) -> u64 {
        self.traits.features | TRANSPORT_FEATURES
    }

    /// Takes 32 of the driver's feature bits: the low half for `select` 0, the high half for 1.
    pub(crate) fn set_driver_features(&mut self, select: u32, bits: u32) {
        if self.status() & status::FEATURES_OK != 0 {
            return self.fail(&"the driver changed features after FEATURES_OK");
        }
        let (shift, bits) = match select {
            0 => (0, u64::from(bits)),
            1 => (32, u64::from(bits)),
            // There are no further features; a driver may write the zeros.
            _ if bits == 0 => return,
            _ => return self.fail(&"the driver accepted features beyond the 64 that exist"),
        };
        self.driver_features = self.driver_features & !(0xffff_ffff << shift) | bits << shift;
    }

    /// The device status register.
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// Takes a write of the device status register: 0 resets; bits are only ever added otherwise.
    pub(crate) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let before = self.status();
        let set = value & !before & !status::NEEDS_RESET;
        if set & status::FEATURES_OK != 0 && !self.features_acceptable() {
            // VIRTIO 1.3 §2.2.2: the device declines by leaving FEATURES_OK clear.
            self.shared
                .status
                .fetch_or(set & !status::FEATURES_OK & !status::DRIVER_OK, Ordering::SeqCst);
            return;
        }
        self.shared.status.fetch_or(set, Ordering::SeqCst);
        if set & status::DRIVER_OK != 0 {
            if (before | set) & status::FEATURES_OK == 0 {
                return self.fail(&"the driver set DRIVER_OK before FEATURES_OK");
            }
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.device_features() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) {
        if self.status() & (status::NEEDS_RESET | status::FAILED) != 0 {
            return;
        }
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let built = self.queues.iter().zip(self.traits.queue_sizes).enumerate();
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (registers, &max)) in built {
            match registers.build(max, event_idx, &self.memory) {
                Ok(queue) => queues.push(queue),
                Err(error) => return self.fail(&format_args!("queue {index} is unusable: {error}")),
            }
        }
        self.start(queues);
    }

    fn start(&mut self, queues: Vec<Queue>) {
        let started = self
            .take_doorbells()
            .map_err(Error::start("a doorbell"))
            .and_then(|doorbells| {
                self.device.start(Activation {
                    memory: self.memory.clone(),
                    features: self.driver_features,
                    queues: queues.into_iter().zip(doorbells).collect(),
                    interrupt: self.shared.clone(),
                    gate: self.gate.clone(),
                })
            });
        match started {
            Ok(()) => self.run_state = RunState::Running,
            Err(error) => self.fail(&error),
        }
    }

    /// Another handle of each queue's doorbell. Those that are new are rung once: the driver may have rung
    /// while there was none.
    fn take_doorbells(&mut self) -> io::Result<Vec<EventFd>> {
        for index in self.doorbells.len()..self.traits.queue_sizes.len() {
            let doorbell = EventFd::new(EFD_NONBLOCK)?;
            (self.connect)(index as u32, &doorbell)?;
            doorbell.write(1)?;
            self.doorbells.push(doorbell);
        }
        self.doorbells.iter().map(EventFd::try_clone).collect()
    }

    /// Stops the device where it is, for as long as the machine is paused. Nothing is in flight afterwards.
    pub fn pause(&mut self) {
        if matches!(self.run_state, RunState::Running) {
            self.run_state = RunState::Paused(self.device.stop());
        }
    }

    /// Goes on after [`pause`](Core::pause).
    pub fn resume(&mut self) {
        let (queues, restored) = match std::mem::replace(&mut self.run_state, RunState::Idle) {
            RunState::Paused(queues) => (queues, false),
            RunState::Restored(queues) => (queues, true),
            other => {
                self.run_state = other;
                return;
            }
        };
        self.start(queues);
        // A notification that arrived but was not served before the pause must not be forgotten.
        for index in 0..self.doorbells.len() {
            self.notify(index as u32);
        }
        // Nor an interrupt that the host's kernel had not delivered when the machine was saved. A driver that
        // has had it finds nothing to do. In step with the processor none is under way.
        if restored
            && self.gate.is_none()
            && self.interrupt_status() != 0
            && let Err(error) = self.shared.line.trigger()
        {
            self.fail(&error);
        }
    }

    /// Back to the state after power-on (VIRTIO 1.3 §2.4). Every field is named, so that a new one cannot be
    /// forgotten.
    fn reset(&mut self) {
        let Core {
            device,
            traits,
            memory: _,
            shared,
            connect: _,
            doorbells,
            driver_features,
            queues,
            run_state,
            gate: _,
        } = self;
        if matches!(run_state, RunState::Running) {
            device.stop();
        }
        device.reset();
        *run_state = RunState::Idle;
        *driver_features = 0;
        for (queue, &max) in queues.iter_mut().zip(traits.queue_sizes) {
            *queue = QueueRegisters::new(max);
        }
        for doorbell in doorbells {
            // Empties it; an error says that it was empty.
            let _ = doorbell.read();
        }
        let Shared {
            line: _,
            device_id: _,
            status,
            interrupt_status,
            generation,
            failures: _,
        } = &**shared;
        generation.store(0, Ordering::SeqCst);
        interrupt_status.store(0, Ordering::SeqCst);
        status.store(0, Ordering::SeqCst);
    }

    /// The registers of queue `index`, if there is such a queue.
    pub fn queue(&self, index: u32) -> Option<QueueRegisters> {
        self.queues.get(index as usize).copied()
    }

    /// Largest size of queue `index`; 0 when there is no such queue.
    pub(crate) fn queue_size_max(&self, index: u32) -> u16 {
        self.traits.queue_sizes.get(index as usize).copied().unwrap_or(0)
    }

    /// Changes the registers of queue `index`. Only before `DRIVER_OK`, and only while the queue is disabled:
    /// anything else is the driver's mistake (VIRTIO 1.3 §4.2.2.2). Disabling a disabled queue is always
    /// allowed.
    pub(crate) fn set_queue(&mut self, index: u32, change: impl FnOnce(&mut QueueRegisters)) {
        let accepting = self.status() & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        let Some(queue) = self.queues.get_mut(index as usize) else {
            return self.fail(&format_args!(
                "the driver configured queue {index}, which does not exist"
            ));
        };
        let mut changed = *queue;
        change(&mut changed);
        if changed == *queue {
            return;
        }
        let only_disables = QueueRegisters {
            ready: true,
            ..changed
        } == *queue
            && !changed.ready;
        if !accepting || (queue.ready && !only_disables) {
            return self.fail(&format_args!(
                "the driver changed queue {index} at the wrong time"
            ));
        }
        *queue = changed;
    }

    /// Rings the doorbell of queue `index`. Ringing a queue that does not exist does nothing.
    pub(crate) fn notify(&self, index: u32) {
        if let Some(doorbell) = self.doorbells.get(index as usize) {
            // It fails only when the counter is full, and then it is rung already.
            let _ = doorbell.write(1);
            if let Some(gate) = &self.gate {
                gate.pass(Trigger::Doorbell);
            }
        }
    }

    /// The interrupt status register.
    pub(crate) fn interrupt_status(&self) -> u32 {
        self.shared.interrupt_status.load(Ordering::SeqCst)
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        self.shared.interrupt_status.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Changes whenever the configuration has (VIRTIO 1.3 §2.5).
    pub fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::SeqCst)
    }

    /// Reads configuration space.
    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// Writes configuration space. The driver may only do so once it has said that it knows the device.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status() & status::DRIVER == 0 {
            return self.fail(&"configuration space was written before DRIVER");
        }
        self.device.write_config(offset, data);
    }

    /// Marks the device as broken by its driver.
    pub fn fail(&self, why: &dyn Display) {
        self.shared.needs_reset(why);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if matches!(self.run_state, RunState::Running) {
            self.device.stop();
        }
    }
}
