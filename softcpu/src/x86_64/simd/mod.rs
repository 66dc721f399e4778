//! MMX, SSE up to SSE4.2, and (in `vex`) AVX, AVX2, FMA and F16C: value functions by concept, and the handlers
//! that connect them to operands.
//!
//! A value function knows registers only as numbers (`u128`, or `u64` for MMX), so that it can be tested
//! alone.

pub mod arith_int;
pub mod convert;
pub mod element;
pub mod float;
pub mod handlers;
pub mod lanes;
pub mod masks;
pub mod mxcsr;
pub mod operand;
pub mod shift;
pub mod shuffle;
pub mod string;
#[cfg(test)]
mod tests;
pub(crate) mod vex;
