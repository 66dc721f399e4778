//! The loop that every virtio device runs in its thread: doorbells, the device's own descriptors, stop.

use std::sync::Arc;
use std::time::Duration;

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::determinism::{Attached, Determinism, Trigger, WorkerGate};
use super::ring::{QueueError, Ring};
use super::{Activation, DeviceInterrupt, Error, Queue, Unsaved, scheduling};
use crate::event::{EventSet, Poller, Token, WorkerThread};
use crate::memory::Memory;
use crate::sandbox::Kind;

/// Rounds that a worker in step with the processor serves on one trigger. What is left then comes with the
/// next one: a source that never runs dry must not hold the processor.
const MAX_ROUNDS: usize = 64;

/// What wakes a device's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The transport wants the queues back.
    Stop,
    /// The driver rang the doorbell of this one of the service's queues.
    Queue(u16),
    /// One of the device's own descriptors is ready; the number is the device's.
    Source(u32),
}

impl Token for Wake {
    fn into_raw(self) -> u64 {
        match self {
            Wake::Stop => 0,
            Wake::Queue(index) => 1 << 32 | u64::from(index),
            Wake::Source(id) => 2 << 32 | u64::from(id),
        }
    }

    fn from_raw(raw: u64) -> Option<Self> {
        match (raw >> 32, raw as u32) {
            (0, 0) => Some(Wake::Stop),
            (1, index) => Some(Wake::Queue(u16::try_from(index).ok()?)),
            (2, id) => Some(Wake::Source(id)),
            _ => None,
        }
    }
}

/// All that a [`Service`] works with.
pub struct Context {
    /// Guest RAM.
    pub memory: Memory,
    /// The features that both sides agreed on.
    pub features: u64,
    /// Queues by index; one that the driver left disabled is here too, not ready, and never rings.
    pub rings: Vec<Ring>,
    /// Notifies the driver.
    pub interrupt: Arc<dyn DeviceInterrupt>,
    /// Which threads of the host the processor waits for.
    pub determinism: Determinism,
    /// Whether what came from outside may be taken now. Always, but in step with the processor.
    pub outside: bool,
    /// Where a service watches descriptors of its own, under [`Wake::Source`].
    pub poller: Poller<Wake>,
}

/// What a device does with its queues. Every call is in the worker's thread; an error ends the service until
/// the driver resets the device, and nothing else.
pub trait Service: Send + 'static {
    /// Whether the worker leaves the processor to the guest until that has asked for all it wants; see
    /// [`scheduling`]. Only for a device whose driver does something else until it is interrupted: one that
    /// spins until its request is done, as the console's does, would spin until its time is up.
    const BATCH_SCHEDULED: bool = false;

    /// Called once when the queues begin to be served, before any other call: watch own descriptors here.
    fn begin(&mut self, _context: &mut Context) -> Result<(), QueueError> {
        Ok(())
    }
    /// The driver rang queue `index`, which is ready.
    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError>;
    /// The descriptor watched as [`Wake::Source`]`(id)` is ready.
    fn source(&mut self, _context: &mut Context, _id: u32, _events: EventSet) -> Result<(), QueueError> {
        Ok(())
    }
    /// How long the worker may sleep at most; asked before each sleep.
    fn timeout(&mut self) -> Option<Duration> {
        None
    }
    /// Called after each sleep, whatever ended it, and after its events were served.
    fn tick(&mut self, _context: &mut Context) -> Result<(), QueueError> {
        Ok(())
    }
    /// Whether the host processes that the service is connected to have taken all that it has given them.
    /// Asked only in step with the processor.
    fn settled(&self) -> bool {
        true
    }
    /// Called once when the queues are about to be handed back: nothing may stay in flight, no descriptor
    /// watched.
    fn end(&mut self, _context: &mut Context) {}
}

/// A service that is either stopped or running in a thread of its own.
pub enum Engine<S: Service> {
    /// Stopped.
    Idle(S),
    /// Running.
    Running(WorkerThread<(S, Vec<Queue>)>),
    /// The thread could not be made, and took the service with it.
    Lost,
}

impl<S: Service> Engine<S> {
    /// Runs the service in a thread of `kind` called `name`.
    ///
    /// # Errors
    /// When the host has no descriptor or thread left, or the service is running already.
    pub fn start(&mut self, name: &str, kind: Kind, active: Activation) -> Result<(), Error> {
        self.start_from(0, name, kind, active)
    }

    /// The same for a service that has but some of its device's queues, from number `first` on. To the
    /// service they are numbered from 0.
    ///
    /// # Errors
    /// As [`start`](Engine::start).
    pub(crate) fn start_from(
        &mut self,
        first: u16,
        name: &str,
        kind: Kind,
        active: Activation,
    ) -> Result<(), Error> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            gate,
        } = active;
        let poller = Poller::new().map_err(Error::start("epoll_create"))?;
        let rings: Vec<Ring> = (first..)
            .zip(queues)
            .map(|(index, (queue, doorbell))| Ring::new(queue, doorbell, index))
            .collect();
        for ring in rings.iter().filter(|ring| ring.queue.ready()) {
            poller
                .add(&ring.doorbell, EventSet::IN, Wake::Queue(ring.index - first))
                .map_err(Error::start("epoll_ctl"))?;
        }
        let context = Context {
            memory,
            features,
            rings,
            interrupt,
            determinism: gate
                .as_ref()
                .map(|gate| gate.determinism().clone())
                .unwrap_or_default(),
            outside: gate.is_none(),
            poller,
        };
        let attached = gate.as_ref().map(WorkerGate::attach);
        match std::mem::replace(self, Engine::Lost) {
            Engine::Idle(service) => {
                let worker =
                    WorkerThread::spawn(name, kind, move |stop| run(service, context, attached, &stop));
                *self = Engine::Running(worker.map_err(Error::start("thread"))?);
                Ok(())
            }
            other => {
                *self = other;
                Err(Error::Lost)
            }
        }
    }

    /// The service, while it is at rest.
    ///
    /// # Errors
    /// When it runs, or is lost.
    pub fn service(&self) -> Result<&S, Unsaved> {
        match self {
            Engine::Idle(service) => Ok(service),
            Engine::Running(_) => Err(Unsaved::Running),
            Engine::Lost => Err(Unsaved::Lost),
        }
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// When it runs, or is lost.
    pub fn service_mut(&mut self) -> Result<&mut S, Unsaved> {
        match self {
            Engine::Idle(service) => Ok(service),
            Engine::Running(_) => Err(Unsaved::Running),
            Engine::Lost => Err(Unsaved::Lost),
        }
    }

    /// Stops the service and hands its queues back; none when it was not running.
    pub fn stop(&mut self) -> Vec<Queue> {
        match std::mem::replace(self, Engine::Lost) {
            Engine::Running(worker) => {
                let (service, queues) = worker.stop();
                *self = Engine::Idle(service);
                queues
            }
            other => {
                *self = other;
                Vec::new()
            }
        }
    }
}

/// The worker's thread.
fn run<S: Service>(
    mut service: S,
    mut context: Context,
    attached: Option<Attached>,
    stop: &EventFd,
) -> (S, Vec<Queue>) {
    let served = match &attached {
        None => serve(&mut service, &mut context, stop),
        Some(Attached(gate)) => serve_in_step(&mut service, &mut context, gate, stop),
    };
    if let Err(broken) = served {
        context.interrupt.needs_reset(&broken);
        drop(attached);
        wait_for_stop(stop);
    }
    service.end(&mut context);
    (
        service,
        context.rings.into_iter().map(|ring| ring.queue).collect(),
    )
}

/// Serves until `stop` is readable.
fn serve<S: Service>(service: &mut S, context: &mut Context, stop: &EventFd) -> Result<(), QueueError> {
    if S::BATCH_SCHEDULED
        && let Err(error) = scheduling::in_batches()
    {
        tracing::debug!("the host schedules a device's thread like any other: {error}");
    }
    context.poller.add(stop, EventSet::IN, Wake::Stop)?;
    service.begin(context)?;
    let mut ready = Vec::new();
    loop {
        context.poller.wait(&mut ready, service.timeout())?;
        for &(wake, events) in &ready {
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Queue(index) => {
                    let index = usize::from(index);
                    // Empties the doorbell; an error says that it was empty.
                    let _ = context.rings[index].doorbell.read();
                    service.queue(context, index)?;
                }
                Wake::Source(id) => service.source(context, id, events)?,
            }
        }
        service.tick(context)?;
    }
}

/// Serves while its gate is open, until `stop` is readable.
fn serve_in_step<S: Service>(
    service: &mut S,
    context: &mut Context,
    gate: &WorkerGate,
    stop: &EventFd,
) -> Result<(), QueueError> {
    const BATON: u64 = 1;
    let outer = Poller::<u64>::new()?;
    outer.add(stop, EventSet::IN, 0)?;
    outer.add(gate.wake(), EventSet::IN, BATON)?;
    service.begin(context)?;
    let mut woken = Vec::new();
    // What came from outside and waits for the next poll.
    let mut outside = Vec::new();
    loop {
        outer.wait(&mut woken, None)?;
        if woken.iter().any(|&(token, _)| token != BATON) {
            return Ok(());
        }
        if let Some(trigger) = gate.take() {
            if trigger == Trigger::Poll {
                context.determinism.wait(|| service.settled());
            }
            serve_occasion(service, context, trigger, &mut outside)?;
            gate.give_back();
        }
    }
}

/// Serves all that there is to serve on this trigger.
fn serve_occasion<S: Service>(
    service: &mut S,
    context: &mut Context,
    trigger: Trigger,
    outside: &mut Vec<(u32, EventSet)>,
) -> Result<(), QueueError> {
    let mut ready = Vec::new();
    context.outside = trigger == Trigger::Poll;
    for _ in 0..MAX_ROUNDS {
        context.poller.wait(&mut ready, Some(Duration::ZERO))?;
        let before = outside.len();
        for &(wake, events) in &ready {
            match wake {
                Wake::Stop => {}
                Wake::Queue(index) => {
                    let index = usize::from(index);
                    let _ = context.rings[index].doorbell.read();
                    service.queue(context, index)?;
                }
                Wake::Source(id) => match outside.iter_mut().find(|(waits, _)| *waits == id) {
                    Some((_, waiting)) => *waiting |= events,
                    None => outside.push((id, events)),
                },
            }
        }
        let mut progress = ready.iter().any(|(wake, _)| matches!(wake, Wake::Queue(_)));
        if trigger == Trigger::Poll {
            progress |= outside.len() > before || !outside.is_empty();
            for (id, events) in std::mem::take(outside) {
                service.source(context, id, events)?;
            }
        }
        service.tick(context)?;
        if !progress && service.timeout() != Some(Duration::ZERO) {
            break;
        }
    }
    Ok(())
}

/// A failed device does nothing but wait for its reset.
fn wait_for_stop(stop: &EventFd) {
    let Ok(poller) = Poller::<u64>::new() else { return };
    if poller.add(stop, EventSet::IN, 0).is_err() {
        return;
    }
    let mut ready = Vec::new();
    while ready.is_empty() && poller.wait(&mut ready, None).is_ok() {}
}
