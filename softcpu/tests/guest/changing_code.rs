//! Code that changes: what runs is what memory holds, whoever wrote it (Intel SDM vol. 3, 11.6).

use std::sync::Arc;

use iced_x86::code_asm::*;
use softcpu::state::reg;
use softcpu::{Clock, Cpu};

use crate::machine::{DATA, Devices, End, KERNEL, Machine, assembled, dma, done};

/// A function `mov eax, VALUE; ret`; its value is at its second byte.
const FUNCTION: u64 = KERNEL + 0x1000;

fn function(machine: &mut Machine, at: u64, value: u32) {
    machine.assemble(at, 64, |a| {
        a.mov(eax, value)?;
        a.ret()
    });
}

#[test]
fn a_store_to_the_instruction_ahead_counts_at_once() {
    let mut machine = Machine::new();
    // The second byte of the `mov ebx` is changed by the store before it, in the same block.
    let store = assembled(KERNEL, 64, |a| a.mov(byte_ptr(KERNEL), 7)).len() as u64;
    machine.kernel(|a| {
        a.mov(byte_ptr(KERNEL + store + 1), 7)?;
        a.mov(ebx, 1)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RBX], 7);
}

#[test]
fn a_loop_that_changes_itself_each_time_round_adds_up() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 10)?;
        a.set_label(&mut again)?;
        let add = assembled(KERNEL, 64, |b| {
            b.xor(ebx, ebx)?;
            b.mov(ecx, 10)
        });
        // `add ebx, imm32` begins here; its immediate is its last four bytes.
        a.add(ebx, 0x1000_0001)?;
        a.inc(dword_ptr(KERNEL + add.len() as u64 + 2))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    });
    machine.done();
    let expected = (0..10).fold(0u32, |sum, n| sum.wrapping_add(0x1000_0001 + n));
    assert_eq!(machine.cpu.gpr[reg::RBX], u64::from(expected));
}

#[test]
fn a_function_on_another_page_is_changed_between_calls() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.kernel(|a| {
        a.call(FUNCTION)?;
        a.mov(ebx, eax)?;
        a.mov(dword_ptr(FUNCTION + 1), 2)?;
        a.call(FUNCTION)?;
        a.mov(ecx, eax)?;
        done(a)
    });
    machine.done();
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RCX]), (1, 2));
}

#[test]
fn an_instruction_across_two_pages_is_changed_in_either() {
    for part in [1, 4] {
        let mut machine = Machine::new();
        // Its immediate's bytes are on both sides of the page's end.
        let at = FUNCTION + 0x1000 - 3;
        function(&mut machine, at, 0x0101_0101);
        machine.kernel(|a| {
            a.call(at)?;
            a.mov(ebx, eax)?;
            a.mov(byte_ptr(at + part), 2)?;
            a.call(at)?;
            done(a)
        });
        machine.done();
        assert_eq!(machine.cpu.gpr[reg::RBX], 0x0101_0101);
        assert_eq!(machine.cpu.gpr[reg::RAX], 0x0101_0101 + (1 << (8 * (part - 1))));
    }
}

#[test]
fn what_a_device_writes_runs_once_the_page_is_mapped_again() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.devices.dma = Some((FUNCTION + 1, vec![9, 0, 0, 0]));
    machine.kernel(|a| {
        a.call(FUNCTION)?;
        a.mov(ebx, eax)?;
        dma(a)?;
        a.invlpg(ptr(FUNCTION))?;
        a.call(FUNCTION)?;
        done(a)
    });
    machine.done();
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RAX]), (1, 9));
}

#[test]
fn a_page_that_was_code_and_becomes_data_is_just_memory() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.call(FUNCTION)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.add(qword_ptr(FUNCTION + 0x800), 3)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.call(FUNCTION)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.word(FUNCTION + 0x800), 3000);
    assert_eq!(machine.cpu.gpr[reg::RAX], 1);
}

#[test]
fn what_another_processor_writes_runs_here() {
    let mut machine = Machine::with(Clock::Host, 2);
    function(&mut machine, FUNCTION, 1);
    // This one calls until the answer changes.
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.call(FUNCTION)?;
        a.mov(ebx, eax)?;
        a.mov(dword_ptr(DATA), 1)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        a.cmp(eax, 1)?;
        a.je(again)?;
        done(a)
    });
    // The other one, in real mode, stores once this one has called.
    let other = 0x5_0000u64;
    let code = assembled(other, 16, |a| {
        let mut again = a.create_label();
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.set_label(&mut again)?;
        a.cmp(dword_ptr(0), 0)?;
        a.je(again)?;
        a.mov(ax, (FUNCTION >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(1), 2)?;
        done(a)
    });
    assert!(machine.ram.write(other, &code));
    let mut second = Cpu::new(Arc::clone(&machine.ram), Arc::clone(&machine.platform), 1).unwrap();
    machine.platform.deliver(softcpu::Message {
        destination: 1,
        logical: false,
        mode: 6,
        vector: (other >> 12) as u8,
    });
    let end = std::thread::scope(|scope| {
        scope.spawn(move || second.run(&mut Devices::default()));
        machine.run()
    });
    assert_eq!(end, End::Done);
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RAX]), (1, 2));
}
