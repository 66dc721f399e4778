//! Debugging: single steps, INT1, breakpoints on instructions, data and ports, the debug registers themselves
//! (Intel SDM vol. 3, chapter 18).

mod code;
mod data;
mod registers;
mod steps;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions};

use crate::machine::{DATA, KERNEL, Machine, USER, USER_CODE64, USER_SS, USER_STACK, assembled};

/// Where the handler of #DB is, and what it writes down: its next record's address, then the records.
const HANDLER: u64 = KERNEL + 0x3000;
const LOG: u64 = DATA + 0x8000;
const RECORDS: u64 = LOG + 8;

/// Flags.
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
/// Bits of DR6.
const BD: u64 = 1 << 13;
const BS: u64 = 1 << 14;
/// Bits of DR6 and DR7 that are always one.
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_FIXED: u64 = 0x400;
/// General detect, in DR7.
const GD: u64 = 1 << 13;
/// Kinds of breakpoints.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// One debug exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hit {
    rip: u64,
    /// DR6 without what is always one.
    why: u64,
    rflags: u64,
    dr7: u64,
}

/// A machine whose #DB handler writes down what it finds, clears DR6, and resumes past a breakpoint.
fn debugged() -> Machine {
    let mut machine = Machine::new();
    machine.set_gate(1, HANDLER, 0, 0);
    machine.set_word(LOG, RECORDS);
    machine.assemble(HANDLER, 64, |a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.mov(rbx, qword_ptr(LOG))?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(rax, qword_ptr(rsp + 32))?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.mov(rax, dr7)?;
        a.mov(qword_ptr(rbx + 24), rax)?;
        a.add(rbx, 32)?;
        a.mov(qword_ptr(LOG), rbx)?;
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        a.bts(qword_ptr(rsp + 32), 16)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.iretq()
    });
    machine
}

/// What the handler wrote down.
fn hits(machine: &Machine) -> Vec<Hit> {
    let end = machine.word(LOG);
    (RECORDS..end)
        .step_by(32)
        .map(|at| Hit {
            rip: machine.word(at),
            why: machine.word(at + 8) & !DR6_FIXED,
            rflags: machine.word(at + 16),
            dr7: machine.word(at + 24),
        })
        .collect()
}

fn addresses(machine: &Machine) -> Vec<u64> {
    hits(machine).iter().map(|hit| hit.rip).collect()
}

/// Where the instructions of a piece of code lie, and where it ends.
fn places(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u64> {
    let code = assembled(at, 64, write);
    let mut places: Vec<u64> = Decoder::with_ip(64, &code, at, DecoderOptions::NONE)
        .iter()
        .map(|instruction| instruction.ip())
        .collect();
    places.push(at + code.len() as u64);
    places
}

/// Enters user code with these flags.
fn enter_with(a: &mut CodeAssembler, flags: u64) -> Result<(), IcedError> {
    a.push(i32::from(USER_SS))?;
    a.push(USER_STACK as i32)?;
    a.push(flags as i32)?;
    a.push(i32::from(USER_CODE64))?;
    a.push(USER as i32)?;
    a.iretq()
}

/// DR7 with breakpoint `n` enabled.
fn enabled(n: u64, kind: u64, len: u64) -> u64 {
    let code = match len {
        1 => 0,
        2 => 1,
        4 => 3,
        _ => 2,
    };
    1 << (2 * n) | kind << (16 + 4 * n) | code << (18 + 4 * n)
}

/// Sets breakpoint 0 and leaves RAX as zero.
fn set_breakpoint(a: &mut CodeAssembler, at: u64, dr7_value: u64) -> Result<(), IcedError> {
    a.mov(rax, at)?;
    a.mov(dr0, rax)?;
    a.mov(eax, dr7_value as u32)?;
    a.mov(dr7, rax)?;
    a.xor(eax, eax)
}
