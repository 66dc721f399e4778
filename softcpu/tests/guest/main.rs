//! Small guests, assembled by hand, that look at one concept each: paging, exceptions, interrupts, changing code, modes, time.

mod apic;
mod changing_code;
mod counting;
mod debug;
mod exceptions;
mod hints;
#[allow(unsafe_code)]
mod machine;
mod modes;
mod paging;
mod processors;
mod unknown;
