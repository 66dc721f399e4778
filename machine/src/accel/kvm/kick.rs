//! Stopping a vCPU that runs in its own thread: a flag that KVM looks at on entry, and a signal that makes it
//! exit.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::accel::{Error, Kick};

/// The signal's only purpose is to end `KVM_RUN` with EINTR.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// What a kick needs to reach, for as long as the vCPU lives.
struct Target {
    /// `immediate_exit` in the vCPU's shared page: KVM returns at once while it is not zero.
    flag: *const AtomicU8,
    /// The thread inside `KVM_RUN`, when there is one.
    thread: Option<libc::pthread_t>,
}

// SAFETY: the pointer goes to memory that is shared with the kernel and only accessed atomically; the owner
// of that memory takes the target away (`Kicker::retire`) before unmapping it.
unsafe impl Send for Target {}

/// Makes one vCPU leave `KVM_RUN`.
pub(super) struct Kicker {
    /// A leaf: nothing else is locked while it is held.
    target: Mutex<Option<Target>>,
}

impl Kicker {
    /// A kicker for the vCPU whose `immediate_exit` byte is at `flag`, which stays valid until
    /// [`retire`](Kicker::retire).
    pub(super) fn new(flag: *mut u8) -> Result<Arc<Self>, Error> {
        install_handler()?;
        let target = Target {
            flag: flag.cast(),
            thread: None,
        };
        Ok(Arc::new(Kicker {
            target: Mutex::new(Some(target)),
        }))
    }

    /// The calling thread is about to run the vCPU.
    pub(super) fn enter(&self) {
        self.set_thread(Some(current_thread()));
    }

    /// The calling thread has stopped running the vCPU: it may end, so it must get no more signals.
    pub(super) fn leave(&self) {
        self.set_thread(None);
    }

    fn set_thread(&self, thread: Option<libc::pthread_t>) {
        if let Some(target) = &mut *self.lock() {
            target.thread = thread;
        }
    }

    /// Whether there was a kick since the last call.
    pub(super) fn take(&self) -> bool {
        self.lock()
            .as_ref()
            .is_some_and(|target| flag(target).swap(0, Ordering::SeqCst) != 0)
    }

    /// The vCPU is going away: later kicks do nothing.
    pub(super) fn retire(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        let target = self.lock();
        let Some(target) = &*target else { return };
        flag(target).store(1, Ordering::SeqCst);
        if let Some(thread) = target.thread {
            // SAFETY: a thread registers itself before it runs the vCPU and unregisters before it can end,
            // both under the lock that is held here.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}

fn flag(target: &Target) -> &AtomicU8 {
    // SAFETY: the target is there, so its vCPU is: the shared page is mapped.
    unsafe { &*target.flag }
}

fn current_thread() -> libc::pthread_t {
    // SAFETY: has no preconditions.
    unsafe { libc::pthread_self() }
}

/// Gives the signal a handler that does nothing. Without one it would end the process.
fn install_handler() -> Result<(), Error> {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: an all-zero `sigaction` is valid: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` is initialized, and the handler is async-signal-safe: it does nothing.
        if unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) } != 0 {
            result = Err(Error::Os {
                what: "sigaction for stopping vCPUs",
                source: io::Error::last_os_error(),
            });
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_the_run_is_not_lost_and_one_after_the_end_is_harmless() {
        let mut byte = 0;
        let kicker = Kicker::new(&mut byte).unwrap();
        assert!(!kicker.take());
        kicker.kick();
        kicker.kick();
        assert!(kicker.take());
        assert!(!kicker.take());
        kicker.retire();
        kicker.kick();
        assert!(!kicker.take());
    }

    #[test]
    fn a_kick_interrupts_the_thread_that_runs() {
        let mut byte = 0;
        let kicker = Kicker::new(&mut byte).unwrap();
        let inside = Arc::clone(&kicker);
        let (ready, wait) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            inside.enter();
            ready.send(()).unwrap();
            while !inside.take() {
                // SAFETY: an empty set of descriptors; only a signal or the timeout ends it.
                unsafe { libc::poll(std::ptr::null_mut(), 0, 10_000) };
            }
            inside.leave();
        });
        wait.recv().unwrap();
        let start = std::time::Instant::now();
        kicker.kick();
        thread.join().unwrap();
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }
}
