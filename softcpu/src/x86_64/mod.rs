//! The x86-64 instruction set.

pub mod access;
pub(crate) mod apic;
mod arch_state;
pub(crate) mod blocks;
pub(crate) mod cpu;
pub(crate) mod cpuid;
pub(crate) mod debug;
pub(crate) mod decode;
pub(crate) mod decode_block;
pub mod exception;
pub(crate) mod exec;
pub mod flags;
pub mod float;
pub(crate) mod memory_type;
pub(crate) mod mmu;
pub(crate) mod msr;
pub mod op;
pub(crate) mod platform;
pub(crate) mod power_on;
pub(crate) mod profile;
pub(crate) mod pvclock;
pub(crate) mod reset;
pub(crate) mod run;
pub(crate) mod select;
pub mod simd;
pub mod state;
pub(crate) mod time;
pub mod x87;

pub use arch_state::{ArchState, OtherProcessor};
pub use cpu::Cpu;
pub use mmu::code as fault_code;
pub use platform::{EndOfInterrupt, Message, Platform};
pub use run::Exit;
pub use state::{Segment, Table};
