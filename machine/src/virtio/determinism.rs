//! Devices synchronous with the processor, for machines whose runs are all the same.
//!
//! A worker's thread runs only while its [`WorkerGate`] is open, and the processor waits meanwhile. So a
//! device has completed its requests when the store to its doorbell returns, whatever the host's scheduler
//! does. Input from outside waits until the processor polls its devices, at a fixed instruction count. Before
//! it goes on it waits for the host's threads that are preparing an answer to the guest, which
//! [`Determinism`] counts.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long the host may take to answer before the guest goes on without it: a host process that neither
/// reads nor answers must not hold the machine forever.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether the host is done.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// What a worker is to do when its gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The guest has rung a doorbell: its queues are served, and nothing from outside is taken.
    Doorbell,
    /// The processor polls: what came from outside is brought in.
    Poll,
}

/// Lets either the processor's thread or one worker's run.
#[derive(Debug)]
pub struct WorkerGate {
    wake: EventFd,
    /// A leaf.
    state: Mutex<State>,
    changed: Condvar,
    determinism: Determinism,
}

#[derive(Debug, Default)]
struct State {
    /// A worker is there to take it.
    attached: bool,
    passed: Option<Trigger>,
}

impl WorkerGate {
    /// The gate of one device of a machine with this `determinism`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(determinism: Determinism) -> io::Result<Arc<WorkerGate>> {
        Ok(Arc::new(WorkerGate {
            wake: EventFd::new(EFD_NONBLOCK)?,
            state: Mutex::default(),
            changed: Condvar::new(),
            determinism,
        }))
    }

    /// Lets the worker run and waits until it is done. Nothing happens while there is no worker.
    pub fn pass(&self, trigger: Trigger) {
        let mut state = self.lock();
        if !state.attached {
            return;
        }
        state.passed = Some(trigger);
        // The counter can only be full when it is readable already.
        let _ = self.wake.write(1);
        while state.attached && state.passed.is_some() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker is about to be there. To be called before the guest goes on.
    pub(super) fn attach(self: &Arc<Self>) -> Attached {
        *self.lock() = State {
            attached: true,
            passed: None,
        };
        Attached(Arc::clone(self))
    }

    /// Readable when the gate is open.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// What to do, if the gate is open.
    pub(super) fn take(&self) -> Option<Trigger> {
        // Empties the counter; an error says that it was empty.
        let _ = self.wake.read();
        self.lock().passed
    }

    /// Closes the gate: the processor goes on.
    pub(super) fn give_back(&self) {
        self.lock().passed = None;
        self.changed.notify_all();
    }

    /// That of the machine.
    pub(super) fn determinism(&self) -> &Determinism {
        &self.determinism
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker at its gate: once this is dropped, nobody waits for the worker any more.
pub(super) struct Attached(pub(super) Arc<WorkerGate>);

impl Drop for Attached {
    fn drop(&mut self) {
        *self.0.lock() = State::default();
        self.0.changed.notify_all();
    }
}

/// Counts the threads of the host that work on an answer for the guest, for which the processor waits. The
/// default is not enabled: all calls do nothing.
#[derive(Debug, Clone, Default)]
pub struct Determinism(Option<Arc<Mutex<Host>>>);

/// How often a thread is set to work by the guest's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// By the first.
    Once,
    /// By each.
    Always,
}

#[derive(Debug, Default)]
struct Host {
    /// Threads at work.
    at_work: u32,
    /// Ports of the host. Each entry is a thread that a stream from the guest sets to work: the first stream
    /// only, or each.
    services: Vec<(u32, Times)>,
    /// A late answer was logged.
    late: bool,
}

impl Determinism {
    /// One that is enabled.
    pub fn enabled() -> Determinism {
        Determinism(Some(Arc::default()))
    }

    /// Whether every run is to be the same.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// A thread of the host begins to work when the guest opens a stream to the host's `port`, and then is to
    /// [`give`](Determinism::give).
    pub fn expect(&self, port: u32, times: Times) {
        self.change(|host| host.services.push((port, times)));
    }

    /// The guest opens a stream to the host's `port`, by `open`, which returns nothing where that fails. Whoever
    /// accepts it can only [`give`](Determinism::give) once its work is counted.
    pub(super) fn opening<T>(&self, port: u32, open: impl FnOnce() -> Option<T>) -> Option<T> {
        let Some(host) = &self.0 else { return open() };
        let mut host = lock(host);
        let opened = open()?;
        let here = |&&(served, _): &&(u32, Times)| served == port;
        host.at_work += host.services.iter().filter(here).count() as u32;
        host.services.retain(|&service| service != (port, Times::Once));
        Some(opened)
    }

    /// A thread of the host begins to work.
    pub fn take(&self) {
        self.change(|host| host.at_work += 1);
    }

    /// A thread of the host is done for now.
    pub fn give(&self) {
        self.change(|host| host.at_work = host.at_work.saturating_sub(1));
    }

    /// Waits until `fd` can be read. The calling thread, which is at work, is not while it waits.
    pub fn readable(&self, fd: &impl AsFd) {
        if !self.is_enabled() {
            return;
        }
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            return;
        }
        self.give();
        // An error is the reader's to find.
        while matches!(poll(&mut fds, PollTimeout::NONE), Err(nix::errno::Errno::EINTR)) {}
        self.take();
    }

    /// Waits until no thread of the host is at work and `settled` says that none is about to begin.
    pub(super) fn wait(&self, settled: impl Fn() -> bool) {
        let Some(host) = &self.0 else { return };
        let start = Instant::now();
        // In this order: who has taken what it was sent says so before it is found to have taken it.
        while !(settled() && lock(host).at_work == 0) {
            if start.elapsed() > TIMEOUT {
                if !std::mem::replace(&mut lock(host).late, true) {
                    tracing::warn!(
                        "the host has not answered the guest within {} s: this run will not repeat exactly",
                        TIMEOUT.as_secs()
                    );
                }
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Host)) {
        if let Some(host) = &self.0 {
            change(&mut lock(host));
        }
    }
}

fn lock(host: &Mutex<Host>) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn nobody_waits_for_a_worker_that_is_not_there() {
        let gate = WorkerGate::new(Determinism::default()).unwrap();
        gate.pass(Trigger::Doorbell);
        let attached = gate.attach();
        let passer = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || gate.pass(Trigger::Poll))
        };
        while gate.take().is_none() {
            std::thread::yield_now();
        }
        assert!(!passer.is_finished());
        drop(attached);
        passer.join().unwrap();
    }

    #[test]
    fn the_guest_waits_for_those_that_its_stream_sets_to_work() {
        let determinism = Determinism::enabled();
        determinism.expect(7, Times::Once);
        determinism.expect(7, Times::Always);
        let opened = |port| determinism.opening(port, || Some(()));
        opened(8);
        assert_eq!(
            determinism.opening(7, || None::<()>),
            None,
            "nobody has accepted it"
        );
        determinism.wait(|| true);
        opened(7);
        opened(7);
        determinism.give();
        let done = Arc::new(AtomicBool::new(false));
        let waiter = {
            let (determinism, done) = (determinism.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                determinism.wait(|| true);
                assert!(done.load(Ordering::SeqCst));
            })
        };
        determinism.give();
        std::thread::sleep(Duration::from_millis(5));
        done.store(true, Ordering::SeqCst);
        determinism.give();
        waiter.join().unwrap();
    }

    #[test]
    fn who_accepts_a_stream_at_once_is_counted_before_it_is_done() {
        let determinism = Determinism::enabled();
        determinism.expect(7, Times::Always);
        let (accepted, accept) = std::sync::mpsc::channel();
        let acceptor = {
            let determinism = determinism.clone();
            std::thread::spawn(move || {
                accept.recv().unwrap();
                determinism.give();
            })
        };
        determinism.opening(7, || {
            accepted.send(()).unwrap();
            // Time in which it would be done, if it could.
            std::thread::sleep(Duration::from_millis(20));
            Some(())
        });
        acceptor.join().unwrap();
        assert_eq!(lock(determinism.0.as_ref().unwrap()).at_work, 0);
    }

    #[test]
    fn a_reader_is_at_work_only_while_it_has_something_to_read() {
        let determinism = Determinism::enabled();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        determinism.take();
        let reader = {
            let determinism = determinism.clone();
            std::thread::spawn(move || {
                determinism.readable(&far);
                let mut byte = [0];
                far.read_exact(&mut byte).unwrap();
                determinism.give();
                byte[0]
            })
        };
        determinism.wait(|| true);
        near.write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap(), b'x');
        determinism.wait(|| true);
    }
}
