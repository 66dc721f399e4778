//! A device's negotiation as data, and a device that goes on from it.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::{Core, QueueRegisters, RunState, Shared, status};
use crate::memory::Memory;
use crate::state::Refused;
use crate::virtio::state::{CoreState, QueueIndices};
use crate::virtio::{Queue, Unsaved};

impl QueueRegisters {
    /// The same of a queue that was saved while it was served.
    fn build_at(
        &self,
        at: QueueIndices,
        max_size: u16,
        event_idx: bool,
        memory: &Memory,
    ) -> Result<Queue, Refused> {
        let built = self.build(max_size, event_idx, memory);
        let mut queue = built.map_err(|_| Refused::Invalid("the place of a queue"))?;
        let taken = at.next_avail.wrapping_sub(at.next_used);
        Refused::unless(taken <= queue.size(), "the indices of a queue")?;
        queue.set_next_avail(at.next_avail);
        queue.set_next_used(at.next_used);
        Ok(queue)
    }
}

impl Core {
    /// What a snapshot needs of the device and its driver, while the machine is paused.
    ///
    /// # Errors
    /// When the device is running, or in no state that can be saved.
    pub(in crate::virtio) fn save(&self) -> Result<CoreState, Unsaved> {
        let Core {
            device,
            traits,
            memory: _,
            shared,
            connect: _,
            doorbells: _,
            driver_features,
            queues,
            run_state,
            gate: _,
        } = self;
        let broken = shared.status.load(Ordering::SeqCst) & status::NEEDS_RESET != 0;
        let running = match run_state {
            RunState::Idle => None,
            // What is left of its queues is of no use to anyone: it serves none until its driver resets it.
            RunState::Paused(_) | RunState::Restored(_) if broken => None,
            RunState::Running => return Err(Unsaved::Running),
            RunState::Paused(stopped) | RunState::Restored(stopped) => {
                let indices = stopped.iter().map(|queue| QueueIndices {
                    next_avail: queue.next_avail(),
                    next_used: queue.next_used(),
                });
                Some(indices.collect::<Vec<_>>())
            }
        };
        if running.as_ref().is_some_and(|all| all.len() != queues.len()) {
            return Err(Unsaved::Lost);
        }
        let Shared {
            line: _,
            device_id: _,
            status,
            interrupt_status,
            generation,
            // How often it is logged is this process's business.
            failures: _,
        } = &**shared;
        Ok(CoreState {
            id: traits.id,
            driver_features: *driver_features,
            status: status.load(Ordering::SeqCst),
            interrupt_status: interrupt_status.load(Ordering::SeqCst),
            generation: generation.load(Ordering::SeqCst),
            queues: queues.clone(),
            running,
            device: device.save()?,
        })
    }

    /// Goes on from a saved state, in a machine whose RAM is restored already. The device serves its queues
    /// after the next [`resume`](Core::resume).
    ///
    /// # Errors
    /// When the state is none of this device's; nothing is changed then.
    pub(in crate::virtio) fn restore(&mut self, state: &CoreState) -> Result<(), Refused> {
        state.check(self.traits.id, self.device_features(), self.queues.len())?;
        let event_idx = state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let all = state.queues.iter().zip(self.traits.queue_sizes);
        let built = |indices: &Vec<QueueIndices>| {
            let build = |((registers, &max), &at): ((&QueueRegisters, _), _)| {
                registers.build_at(at, max, event_idx, &self.memory)
            };
            all.zip(indices).map(build).collect::<Result<Vec<_>, _>>()
        };
        let running = state.running.as_ref().map(built).transpose()?;
        self.device.restore(&state.device)?;
        let CoreState {
            id: _,
            driver_features,
            status,
            interrupt_status,
            generation,
            queues,
            running: _,
            device: _,
        } = state;
        self.driver_features = *driver_features;
        self.queues.clone_from(queues);
        self.shared.status.store(*status, Ordering::SeqCst);
        self.shared
            .interrupt_status
            .store(*interrupt_status, Ordering::SeqCst);
        self.shared.generation.store(*generation, Ordering::SeqCst);
        self.run_state = running.map_or(RunState::Idle, RunState::Restored);
        Ok(())
    }
}
