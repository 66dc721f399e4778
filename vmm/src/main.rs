//! The `vmm` command.
//!
//! The C library calls this `main` directly. Rust's start-up code would make as many system calls as the
//! construction of the machine: it reads the limits of the stack, and gives every thread an alternate signal
//! stack to report a stack overflow. Without it an overflow still ends the process by SIGSEGV, without a
//! message. The rest of the start-up code is repeated here.
#![no_main]
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

/// Bytes by which the heap grows: more than a launch needs, so that it grows once.
#[cfg(target_env = "gnu")]
const HEAP_STEP: c_int = 1 << 20;

// SAFETY: no other symbol of this program has this name, and the C library calls it once with these
// arguments.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    let timeline = machine::timeline::Timeline::start();
    if !standard_streams_are_open() {
        return 125;
    }
    // SAFETY: ignoring a signal runs no code of ours. A peer that hangs up is an error of that write and
    // nothing more.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    set_up_heap();
    // Writes out what standard output holds back, as returning would not.
    std::process::exit(vmm::cli::main(timeline).into())
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
