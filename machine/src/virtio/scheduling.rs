//! How the host schedules the thread of a device (sched(7)).
#![allow(unsafe_code)]

use std::io;

/// Has the calling thread scheduled as one that works in batches (`SCHED_BATCH`): when it wakes, it does not
/// stop what runs on its processor.
///
/// On a host without a processor to spare, a driver that is stopped at its first notification has that one
/// request done, is interrupted for it and asks for the next one. A driver that is let go on until it waits,
/// or until its time is up, has all that it asks for done in one go. Where a processor is idle, the thread
/// runs on that one at once.
///
/// # Errors
/// What the host says. The thread is then scheduled like any other.
pub fn in_batches() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are read during the call only; the calling thread (0) is all that changes.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sched_batch_applies_to_the_calling_thread_only() {
        // SAFETY: asks for a number.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let others = policy();
        let own = std::thread::spawn(move || {
            in_batches().unwrap();
            policy()
        });
        assert_eq!(own.join().unwrap(), libc::SCHED_BATCH);
        assert_eq!(policy(), others);
    }
}
