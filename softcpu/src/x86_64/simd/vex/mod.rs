//! AVX, AVX2, FMA and F16C: instructions with a VEX prefix on vector registers.
//!
//! A register is one or two lanes of 128 bits (`[u128; N]`), and most instructions are the value function of
//! their SSE counterpart on each lane. A handler is made for one width and for a register or a memory operand,
//! so that nothing is decided when it runs. Every instruction zeroes what its destination has above its width.

mod convert;
mod elements;
mod float;
mod forms;
mod fused;
mod gather;
mod int;
mod moves;
mod operand;
mod select;
mod shuffle;

pub(crate) use select::select;
