//! Where a guest's kernel spends its instructions: the processor's counts with function names, as a table, as
//! folded stacks and as a flame graph.

mod elf;
mod flame;
mod kallsyms;
mod report;
mod symbols;

pub use flame::draw;
pub use report::{Function, Report};
pub use symbols::{Error, Symbols};
