//! Small guests, assembled by hand, that look at one concept each: paging, exceptions, interrupts, changing
//! code, modes, time.

mod access;
mod alignment;
mod apic;
mod changing_code;
mod clock;
mod counting;
mod debug;
#[allow(unsafe_code)]
mod direct;
mod emulator;
mod events;
mod exceptions;
mod features;
mod hints;
mod idt;
mod kvmclock;
mod litmus;
#[allow(unsafe_code)]
mod machine;
mod modes;
mod paging;
mod processors;
mod protected;
mod refusals;
mod snapshot;
mod umip;
mod unknown;
mod vectors;
mod xstate;
