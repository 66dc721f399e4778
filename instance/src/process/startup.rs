//! What a program that runs instances does first, in place of Rust's own start-up: that spends as many system
//! calls as making the machine does, and gives every thread a second stack for the signal that tells of an
//! overflow. The threads of a confined process may make no such calls, nor those by which the C library makes
//! a further heap.
//!
//! Such a program has `#![no_main]` and a C `main`, which calls [`prepare`].
#![allow(unsafe_code)]

use std::ffi::c_int;

/// Bytes by which the heap grows: more than a launch needs, so that it grows once.
#[cfg(target_env = "gnu")]
const HEAP_STEP: c_int = 1 << 20;

/// Prepares the process; `false` when one of its standard streams is closed and nothing can stand in for it.
/// No other thread may have been started.
pub fn prepare() -> bool {
    if !standard_streams_are_open() {
        return false;
    }
    // SAFETY: ignoring a signal runs no code of ours. A peer that hangs up is an error of that write and
    // nothing more.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    set_up_heap();
    true
}

/// Makes sure that descriptors 0 to 2 are taken, so that no file of ours is mistaken for one of them. Writing
/// to a stream that was closed stays an error, as it is for other programs: what stands in for it can only be
/// read.
fn standard_streams_are_open() -> bool {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: `streams` is an array of as many entries as is said.
    let polled = unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    let closed = |stream: &libc::pollfd| stream.revents & libc::POLLNVAL != 0;
    polled >= 0
        && streams.iter().filter(|stream| closed(stream)).all(|_| {
            // SAFETY: the path is a C string. The lowest free descriptor is the one that is closed.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) >= 0 }
        })
}

/// One heap for all threads: a few of them allocate, and a heap each would cost memory and system calls at
/// their start.
fn set_up_heap() {
    // SAFETY: no thread but this one exists.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, HEAP_STEP);
    }
}
