//! The `vmm` command.
//!
//! The C library calls `main` here itself; [`instance::process::startup`] says why.
#![no_main]
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

// SAFETY: no other symbol of this program has this name, and the C library calls it once with these
// arguments.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    let timeline = machine::timeline::Timeline::start();
    if !instance::process::startup::prepare() {
        return 125;
    }
    // Writes out what standard output holds back, as returning would not.
    std::process::exit(vmm::cli::main(timeline).into())
}
