//! An x86-64 processor in software. It knows memory and a bus, and nothing else.

pub mod core;
pub mod x86_64;

pub use crate::core::bus::{Answer, Bus};
pub use crate::core::clock::Clock;
pub use crate::core::counters::Counters;
pub use crate::core::profile::Profile;
pub use crate::core::ram::{Ram, RegionSpec};
pub use x86_64::{
    ArchState, Cpu, EndOfInterrupt, Exit, Message, OtherProcessor, Platform, Segment, Table, fault_code,
};
