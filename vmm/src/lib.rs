//! The program `vmm`: its arguments, what it prints, and the terminal.
//!
//! Operations on instances are in the crate [`instance`], the hypervisor is in [`machine`]. This crate may
//! use all others, and no other crate uses it, so it has the code that only a command line needs. Begin with
//! [`cli`].

pub mod cli;
pub mod profile;
