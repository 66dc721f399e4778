//! A processor in software: it interprets x86-64, and with RAM and a bus it runs whole operating systems.
//!
//! On an x86-64 host that lets it, programs run on the host's processor instead ([`x86_64::direct`]).
//!
//! It may use the standard library, a decoder (`iced-x86`) and `libc`, and nothing of this project: it does
//! not know devices, boot protocols or command lines. Those who use it give it [`Ram`], a [`Bus`] and a
//! thread for each processor, and call [`Cpu::run`]; interrupts come in by [`Platform`] from any thread. A
//! [`Clock`] that counts instructions makes a machine of one processor repeat itself exactly. [`Cpu::save`]
//! gives its [`ArchState`] for a snapshot.
//!
//! # Layers
//!
//! | folder | what | may use |
//! |---|---|---|
//! | [`core`] | what a processor of any instruction set needs: RAM and accesses to it, translations, decoded blocks, mailboxes, clock, profile | nothing of `x86_64` |
//! | [`x86_64`] | the instruction set, and the loop that runs it | `core` |
//!
//! Another instruction set is a folder beside `x86_64`, with a loop of its own: `core` gives it the parts.
//! What the parts hold of it is a type parameter (the operations of a block) or a number (the mode in which
//! code is fetched), so that nothing is looked up at run time.
//!
//! No file is in a circle of imports; `tests/layers.rs` holds the crate to that. Data is below what works on
//! it: registers, then the processor that has them all, then accesses to memory, then instructions, then the
//! loop.
//!
//! # Where to begin
//!
//! - The loop: `x86_64/run.rs`, and `x86_64/blocks.rs` for where its blocks come from.
//! - An instruction, from bytes to its effect: `x86_64/decode_block.rs`, `x86_64/select/`, `x86_64/exec/`.
//! - A load, from its address to RAM: `x86_64/access.rs`, `x86_64/mmu.rs`, [`core::ram_access`]. The last one
//!   also says what processors see of each other's accesses.
//! - Code that changes while it runs: `core/code_page.rs`, `core/unsettled.rs`.
//! - A program on the host's processor: [`x86_64::direct`], and `docs/softcpu.md`.
//! - Tests: `tests/guest` has one concept of the processor a file, `tests/differential` compares instructions
//!   with the host's.

pub mod core;
pub mod x86_64;

pub use crate::core::bus::{Bus, BusResult};
pub use crate::core::clock::Clock;
pub use crate::core::counters::Counters;
pub use crate::core::profile::Profile;
pub use crate::core::ram::{Ram, RegionSpec};
pub use x86_64::{
    ArchState, Cpu, EndOfInterrupt, Exit, Message, OtherProcessor, Platform, Segment, Table, fault_code,
};
