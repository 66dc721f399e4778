//! The x86-64 instruction set: a processor of x86-64-v2 or v3 with x87, an APIC, and KVM's paravirtual clock.
//!
//! From the lowest layer to the highest:
//!
//! | files | what |
//! |---|---|
//! | `state`, `features`, `flags`, `op`, `float`, `memory_type` | registers by name, the instruction set's extensions, status flags, decoded operations, floating point; plain values |
//! | `apic`, `debug`, `msr`, `exception`, `x87`, `simd::mxcsr` | the registers of each part |
//! | `platform` | interrupt messages, and which processor they reach |
//! | `cpu` | the processor: all of the above, and its caches |
//! | `exception::raise`, `access`, `paging`, `mmu` | faults, operands, page tables, translation |
//! | `apic::processor`, `debug::processor`, `msr::processor`, `time`, `pvclock`, `exception::deliver`, `exception::protected` | each part at work |
//! | `exec`, `simd`, `x87::handlers` | what each instruction does |
//! | `select`, `decode`, `decode_block`, `blocks` | from bytes to blocks of operations |
//! | `direct` | programs on the host's processor |
//! | `power_on`, `reset`, `flat`, `arch_state`, `profile`, `run` | how a processor begins, is saved, and runs |

pub mod access;
pub(crate) mod apic;
mod arch_state;
pub(crate) mod blocks;
pub(crate) mod cpu;
pub(crate) mod cpuid;
pub(crate) mod debug;
pub(crate) mod decode;
pub(crate) mod decode_block;
#[cfg_attr(not(target_arch = "x86_64"), path = "direct_elsewhere.rs")]
pub mod direct;
pub mod exception;
pub(crate) mod exec;
pub mod features;
pub mod flags;
pub mod flat;
pub mod float;
pub(crate) mod memory_type;
pub(crate) mod mmu;
pub(crate) mod msr;
pub mod op;
pub(crate) mod paging;
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
pub(crate) mod xstate;

pub use arch_state::{ArchState, OtherProcessor, RestoreError};
pub use cpu::Cpu;
pub use features::Features;
pub use paging::code as fault_code;
pub use platform::{EndOfInterrupt, Message, Platform};
pub use run::Exit;
pub use state::{Segment, Table};
