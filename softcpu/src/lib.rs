//! An x86-64 processor in software. It knows memory and a bus, and nothing else.

pub mod access;
mod address_map;
mod apic;
mod block;
pub mod bus;
mod clock;
mod cpu;
mod cpuid;
mod debug;
mod decode;
pub mod exception;
mod exec;
pub mod flags;
pub mod float;
mod mmu;
mod msr;
pub mod op;
mod profile;
pub mod ram;
mod reset;
mod run;
mod select;
mod shared;
pub mod simd;
pub mod state;
mod tlb;
pub mod x87;

pub use bus::{Answer, Bus};
pub use clock::Clock;
pub use mmu::code as fault_code;
pub use profile::Profile;
pub use ram::{Ram, RegionSpec};
pub use run::Exit;
pub use shared::{EndOfInterrupt, Message, Platform};
pub use state::{Cpu, Segment, Table};
