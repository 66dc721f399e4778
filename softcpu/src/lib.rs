//! An x86-64 processor in software. It knows memory and a bus, and nothing else.

pub mod float;
pub mod simd;
pub mod x87;
