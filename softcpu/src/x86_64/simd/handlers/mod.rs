//! From an instruction's code to the function that executes it.

use crate::x86_64::cpu::Handler;

mod convert;
mod elements;
mod float;
mod forms;
mod int;
mod mmx;
mod moves;
mod shuffle;
mod state;
mod text;

use iced_x86::Code;

/// The handler of an MMX or SSE instruction; `memory` says that one of its operands is in memory. Nothing for
/// other instructions.
pub fn handler(code: Code, memory: bool) -> Option<Handler> {
    let tables = [
        moves::handler,
        int::handler,
        shuffle::handler,
        elements::handler,
        float::handler,
        convert::handler,
        mmx::handler,
        text::handler,
    ];
    tables
        .iter()
        .find_map(|table| table(code, memory))
        .or_else(|| state::handler(code))
}
