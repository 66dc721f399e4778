//! Getting a processor's thread out of a system call: a signal whose handler does what the thread waits for.
#![allow(unsafe_code)]
// Only direct execution waits for something else than the mailbox.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use std::io;

/// The signal. It has no other purpose.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// The calling thread, for [`send`].
pub(crate) fn this_thread() -> i32 {
    // SAFETY: has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends the signal to a thread of this process.
pub(crate) fn send(thread: i32) {
    // SAFETY: takes numbers only. A thread that has ended is an error of no consequence.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
}

/// Gives the signal its handler, which must do nothing but what is safe in one.
pub(crate) fn install(handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is valid: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: `action` lives until the call returns; the old one is not asked for.
    match unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A timer that sends the signal to the thread that made it.
pub(crate) struct Timer(libc::timer_t);

// SAFETY: a timer's name may be used by any thread of its process.
unsafe impl Send for Timer {}

impl Timer {
    /// A timer that is not armed.
    pub fn new() -> io::Result<Timer> {
        // SAFETY: plain numbers and a union of them, for which zeros are valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = this_thread();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both live until the call returns.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } {
            0 => Ok(Timer(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Lets it go off once in `nanoseconds`, which are more than none.
    pub fn arm(&self, nanoseconds: u64) {
        // SAFETY: numbers only, for which zeros are valid.
        let mut time: libc::itimerspec = unsafe { std::mem::zeroed() };
        time.it_value.tv_sec = (nanoseconds / 1_000_000_000) as libc::time_t;
        time.it_value.tv_nsec = (nanoseconds % 1_000_000_000).max(1) as libc::c_long;
        // SAFETY: the timer is ours, and `time` lives until the call returns.
        unsafe { libc::timer_settime(self.0, 0, &raw const time, std::ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}
