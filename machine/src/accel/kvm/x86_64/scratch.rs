//! The first steps of a kernel, as a short routine in 64-bit kernel mode with paging.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::accel::kvm::scratch::Routine;
use crate::accel::{Error, Exit};
use crate::arch::Boot;
use crate::arch::x86_64::{CODE_SELECTOR, boot_state_at};
use crate::memory::{Bytes, GuestAddress, Memory, PAGE, allocate};

/// RAM of the scratch machine: what the boot tables need, and the places below.
const RAM: u64 = 2 << 20;
const CODE: u64 = 0x1_0000;
const IDT: u64 = 0x1_1000;
const DATA: u64 = 0x1_2000;
const STACK: u64 = 0x1_4000;
/// Where in `DATA` the routine counts breakpoints.
const BREAKPOINTS: u64 = DATA + 64;

/// The routine reports each step that it begins on this port, and a wrong result on the next.
const STEP_PORT: u32 = 0x80;
const WRONG_PORT: u32 = 0x81;
/// Steps, in order. The timed loop runs once for each of the last steps but one; the last step means the end.
const STEPS: [&str; 8] = [
    "the first instruction",
    "lock cmpxchg16b",
    "int3 through the IDT",
    "popcnt",
    "the first timed loop",
    "the second timed loop",
    "the third timed loop",
    "the end",
];
const FIRST_LOOP: usize = 4;
const END: usize = STEPS.len() - 1;
/// Rounds of the timed loop, two instructions each: 0.1 ms on hardware, 60 ms where each is emulated.
const ROUNDS: u32 = 100_000;

/// The routine in a memory of its own.
pub(in crate::accel::kvm) fn routine() -> Result<Routine, Error> {
    let memory = allocate(&[(0, RAM)])?;
    let mut boot = boot_state_at(&memory, CODE)?;
    boot.idt = (IDT, 4 * 16 - 1);
    boot.rsp = STACK;
    write_routine(&memory)?;
    Ok(Routine {
        memory,
        boot: Boot::X86_64(boot),
        steps: &STEPS,
        first_loop: FIRST_LOOP,
        instructions: 2 * u64::from(ROUNDS),
        step,
    })
}

/// The step that an exit reports.
fn step(exit: &Exit<'_>) -> Option<usize> {
    match exit {
        Exit::PortOut { port, data } if u32::from(*port) == STEP_PORT => Some(usize::from(data[0])),
        _ => None,
    }
}

/// Writes the routine's code and its interrupt table with one gate, for breakpoints.
fn write_routine(memory: &Memory) -> Result<(), Error> {
    let (code, handler) = assemble().map_err(Error::Assemble)?;
    if code.len() as u64 > PAGE {
        return Err(Error::TooMany {
            what: "bytes of code for a page",
            count: code.len(),
        });
    }
    let selector = u64::from(CODE_SELECTOR);
    let gate = [
        handler & 0xffff | selector << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48,
        handler >> 32,
    ];
    let put = |bytes: &[u8], at: u64| memory.write_slice(bytes, GuestAddress(at)).map_err(Error::Ram);
    put(&code, CODE)?;
    put(&gate[0].to_le_bytes(), IDT + 3 * 16)?;
    put(&gate[1].to_le_bytes(), IDT + 3 * 16 + 8)
}

/// The routine and the address of its breakpoint handler.
fn assemble() -> Result<(Vec<u8>, u64), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut wrong = a.create_label();
    let mut handler = a.create_label();
    let mut step = 0;
    let mut next = |a: &mut CodeAssembler| {
        step += 1;
        a.mov(eax, step)?;
        a.out(STEP_PORT, al)
    };

    next(&mut a)?; // compares 0:0 with memory, which is zero, and stores 2:1
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(ebx, 1)?;
    a.mov(ecx, 2)?;
    a.mov(rdi, DATA)?;
    a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
    a.jne(wrong)?;
    a.cmp(qword_ptr(rdi), 1)?;
    a.jne(wrong)?;
    a.cmp(qword_ptr(rdi + 8), 2)?;
    a.jne(wrong)?;

    next(&mut a)?;
    a.int3()?;
    a.mov(rdi, BREAKPOINTS)?;
    a.cmp(qword_ptr(rdi), 1)?;
    a.jne(wrong)?;

    next(&mut a)?;
    a.mov(eax, 0xf0f0_f0f1u32)?;
    a.popcnt(eax, eax)?;
    a.cmp(eax, 17)?;
    a.jne(wrong)?;

    for _ in FIRST_LOOP..END {
        next(&mut a)?;
        a.mov(ecx, ROUNDS)?;
        let mut round = a.create_label();
        a.set_label(&mut round)?;
        a.dec(ecx)?;
        a.jne(round)?;
    }
    next(&mut a)?;

    a.set_label(&mut wrong)?;
    a.out(WRONG_PORT, al)?;
    a.hlt()?;

    a.set_label(&mut handler)?;
    a.push(rdi)?;
    a.mov(rdi, BREAKPOINTS)?;
    a.inc(qword_ptr(rdi))?;
    a.pop(rdi)?;
    a.iretq()?;

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(CODE, options)?;
    let handler = result.label_ip(&handler)?;
    Ok((result.inner.code_buffer, handler))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routine_announces_every_step() {
        let (code, handler) = assemble().unwrap();
        assert!((CODE..CODE + code.len() as u64).contains(&handler));
        let outs = code.windows(2).filter(|pair| pair[..] == [0xe6, 0x80]).count();
        assert_eq!(outs, END);
    }

    #[test]
    fn only_the_port_of_the_steps_reports_one() {
        let out = |port| Exit::PortOut { port, data: &[3] };
        assert_eq!(step(&out(0x80)), Some(3));
        assert_eq!(step(&out(0x81)), None);
    }
}
