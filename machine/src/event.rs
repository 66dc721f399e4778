//! Epoll with typed tokens, and worker threads that hand back their state.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use vmm_sys_util::epoll::EventSet;

use crate::sandbox::{self, Kind};

/// Events taken from the kernel in one call. More stay in the kernel's list and come with the next call.
const BATCH: usize = 32;

/// What a file descriptor stands for in one [`Poller`]; usually a small enum beside the loop that uses it.
pub trait Token: Copy {
    /// The number that travels through the kernel.
    fn into_raw(self) -> u64;
    /// The token again; `None` for a number that [`into_raw`](Token::into_raw) never made.
    fn from_raw(raw: u64) -> Option<Self>;
}

impl Token for u64 {
    fn into_raw(self) -> u64 {
        self
    }
    fn from_raw(raw: u64) -> Option<Self> {
        Some(raw)
    }
}

/// An epoll instance whose events carry tokens of type `T`.
#[derive(Debug)]
pub struct Poller<T> {
    epoll: Epoll,
    token: PhantomData<fn() -> T>,
}

impl<T: Token> Poller<T> {
    /// An epoll instance that watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Poller {
            epoll: Epoll::new()?,
            token: PhantomData,
        })
    }

    /// Watches `fd`. Closing it ends the watch.
    pub fn add(&self, fd: &impl AsRawFd, events: EventSet, token: T) -> io::Result<()> {
        self.control(
            ControlOperation::Add,
            fd,
            EpollEvent::new(events, token.into_raw()),
        )
    }

    /// Changes what is awaited from a watched `fd`.
    pub fn modify(&self, fd: &impl AsRawFd, events: EventSet, token: T) -> io::Result<()> {
        self.control(
            ControlOperation::Modify,
            fd,
            EpollEvent::new(events, token.into_raw()),
        )
    }

    /// Watches `fd` no longer.
    pub fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, EpollEvent::default())
    }

    fn control(&self, operation: ControlOperation, fd: &impl AsRawFd, event: EpollEvent) -> io::Result<()> {
        self.epoll.ctl(operation, fd.as_raw_fd(), event)
    }

    /// Waits until something is ready or `timeout` (rounded up to milliseconds) has passed, and replaces the
    /// content of `ready` with it. A signal ends the wait early with nothing ready.
    pub fn wait(&self, ready: &mut Vec<(T, EventSet)>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let millis = match timeout {
            Some(timeout) => i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
            None => -1,
        };
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(millis, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        ready.extend(events[..count].iter().filter_map(|event| {
            Some((
                T::from_raw(event.data())?,
                EventSet::from_bits_truncate(event.events()),
            ))
        }));
        Ok(())
    }
}

/// A thread that runs until it is asked to stop and then returns what it owned.
#[derive(Debug)]
pub struct WorkerThread<S> {
    stop: EventFd,
    thread: JoinHandle<S>,
}

impl<S: Send + 'static> WorkerThread<S> {
    /// Starts `run` in a thread of `kind` called `name` (Linux shows the first 15 bytes). `run` must return
    /// soon after the event that it is given becomes readable.
    pub fn spawn(
        name: &str,
        kind: Kind,
        run: impl FnOnce(EventFd) -> S + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let seen = stop.try_clone()?;
        let thread = sandbox::spawn(name, kind, move || run(seen))?;
        Ok(WorkerThread { stop, thread })
    }

    /// Asks the thread to stop, waits for it and returns its state. A panic of the thread goes on in the
    /// caller.
    pub fn stop(self) -> S {
        let WorkerThread { stop, thread } = self;
        // The counter can only be full when it is already readable, which is all that is wanted.
        let _ = stop.write(1);
        match thread.join() {
            Ok(state) => state,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Which {
        Stop,
        Work,
    }

    impl Token for Which {
        fn into_raw(self) -> u64 {
            self as u64
        }
        fn from_raw(raw: u64) -> Option<Self> {
            [Which::Stop, Which::Work]
                .into_iter()
                .find(|token| *token as u64 == raw)
        }
    }

    #[test]
    fn a_stopped_worker_returns_what_it_counted() {
        let work = EventFd::new(EFD_NONBLOCK).unwrap();
        let seen = work.try_clone().unwrap();
        let (reached, wait) = std::sync::mpsc::channel();
        let worker = WorkerThread::spawn("test", Kind::Device, move |stop| {
            let poller = Poller::new().unwrap();
            poller.add(&stop, EventSet::IN, Which::Stop).unwrap();
            poller.add(&seen, EventSet::IN, Which::Work).unwrap();
            let mut total = 0;
            let mut ready = Vec::new();
            loop {
                poller.wait(&mut ready, None).unwrap();
                for &(token, events) in &ready {
                    assert_eq!(events, EventSet::IN);
                    match token {
                        Which::Stop => return total,
                        Which::Work => total += seen.read().unwrap(),
                    }
                }
                reached.send(total).unwrap();
            }
        })
        .unwrap();
        work.write(3).unwrap();
        assert_eq!(wait.recv().unwrap(), 3);
        work.write(4).unwrap();
        assert_eq!(wait.recv().unwrap(), 7);
        assert_eq!(worker.stop(), 7);
    }

    #[test]
    fn waiting_ends_with_the_timeout() {
        let poller = Poller::<u64>::new().unwrap();
        let mut ready = vec![(1, EventSet::IN)];
        poller.wait(&mut ready, Some(Duration::from_micros(1))).unwrap();
        assert!(ready.is_empty());
    }

    #[test]
    fn a_removed_descriptor_is_silent() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let poller = Poller::new().unwrap();
        poller.add(&event, EventSet::IN, 7u64).unwrap();
        event.write(1).unwrap();
        let mut ready = Vec::new();
        poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert_eq!(ready, [(7, EventSet::IN)]);
        poller.remove(&event).unwrap();
        poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(ready.is_empty());
    }
}
