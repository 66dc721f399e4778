//! The program `vmm`: its arguments, what it prints, and the terminal.
//!
//! What it does to instances is the crate [`instance`]'s; how a machine works is the crate [`machine`]'s.
//! This crate may use all others and nobody uses it, so everything that only a person at a command line needs
//! stands here. Begin with [`cli`].

pub mod cli;
pub mod profile;
