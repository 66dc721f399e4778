//! A processor in software: an x86-64 interpreter that, with RAM and a bus, runs whole operating systems.
//!
//! On an x86-64 host that allows it, programs run on the host's processor instead ([`x86_64::direct`]).
//!
//! It may use the standard library, a decoder (`iced-x86`), `libc` and `serde`, and nothing of this project: it does
//! not know devices, boot protocols or command lines. Its user supplies [`Ram`], a [`Bus`] and a
//! thread for each processor, and calls [`Cpu::run`]; interrupts come through [`Platform`] from any thread.
//! With a [`Clock`] that counts instructions, all runs of a machine with one processor are the same.
//! [`Cpu::save`] returns its [`ArchState`] for a snapshot.
//!
//! # Layers
//!
//! | folder | what | may use |
//! |---|---|---|
//! | [`core`] | what a processor of any instruction set needs: RAM and accesses to it, translations, decoded blocks, mailboxes, clock, profile | nothing of `x86_64` |
//! | [`x86_64`] | the instruction set, and the loop that runs it | `core` |
//!
//! Another instruction set would be a folder next to `x86_64`, with a loop of its own, built from `core`.
//! `core` depends on the instruction set through a type parameter (the operations of a block) and a number
//! (the mode in which code is fetched), without dynamic dispatch.
//!
//! The imports of files have no cycles; `tests/layers.rs` checks that. Data is below the code that uses
//! it: registers, then the processor that has them all, then accesses to memory, then instructions, then the
//! loop.
//!
//! # Where to begin
//!
//! - The loop: `x86_64/run.rs`, and `x86_64/blocks.rs` for where its blocks come from.
//! - An instruction, from bytes to its effect: `x86_64/decode_block.rs`, `x86_64/select/`, `x86_64/exec/`.
//! - A load, from its address to RAM: `x86_64/access.rs`, `x86_64/mmu.rs`, [`core::ram_access`]. The last one
//!   also states the memory model.
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
    ArchState, Cpu, EndOfInterrupt, Exit, Features, Message, OtherProcessor, Platform, RestoreError, Segment,
    Table, fault_code,
};
