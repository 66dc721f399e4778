//! Handlers, by concept. Each is a function over the processor and the operation's data, specialised by width
//! and kind of operand, so that nothing is decided twice.
//!
//! A handler does everything that can fault before it changes anything that shows.

pub(crate) mod arith;
pub(crate) mod atomic;
pub(crate) mod bits;
pub(crate) mod bmi;
pub(crate) mod branch;
pub(crate) mod chain;
pub(crate) mod decimal;
pub(crate) mod far;
pub(crate) mod fast_call;
pub(crate) mod flag;
pub(crate) mod fuse;
pub(crate) mod misc;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod segment;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
