//! Code that changes: what runs is what memory holds, whoever wrote it (Intel SDM vol. 3, 11.6).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Clock;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, KERNEL, Machine, START, assembled, dma, done};

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
fn a_store_beside_code_decodes_nothing() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        // Beside the function, and beside the loop itself.
        a.add(qword_ptr(FUNCTION + 0x80), 3)?;
        a.mov(dword_ptr(KERNEL + 0x800), ecx)?;
        a.lock().inc(dword_ptr(FUNCTION + 0x800))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    });
    machine.done();
    let counters = machine.cpu.counters();
    assert_eq!(counters.code_stores, 0);
    assert_eq!(
        (machine.word(FUNCTION + 0x80), machine.word(FUNCTION + 0x800)),
        (3000, 1000)
    );
    // The start, the function, the rest of the loop, the loop from its start, the end.
    assert_eq!(counters.blocks_decoded, 5);
    assert_eq!(
        counters.pages_watched, 0,
        "they are watched from the first store on"
    );
}

#[test]
fn a_store_to_code_decodes_only_what_it_changes() {
    let mut machine = Machine::new();
    // The second function is in the granule of the first one, the third in the next.
    let others = [FUNCTION + 0x40, FUNCTION + 0x80];
    function(&mut machine, FUNCTION, 0);
    for at in others {
        function(&mut machine, at, 1);
    }
    let mut program = |rounds: u32| {
        machine.kernel(|a| {
            let mut again = a.create_label();
            a.mov(ecx, rounds)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(FUNCTION + 1), ecx)?;
            a.call(FUNCTION)?;
            a.add(rbx, rax)?;
            a.call(others[0])?;
            a.call(others[1])?;
            a.dec(ecx)?;
            a.jnz(again)?;
            done(a)
        });
        machine.cpu.rip = KERNEL;
        let before = machine.cpu.counters();
        machine.done();
        assert_eq!(machine.cpu.gpr[reg::RBX], u64::from(rounds * (rounds + 1) / 2));
        let after = machine.cpu.counters();
        (
            after.blocks_decoded - before.blocks_decoded,
            after.code_stores - before.code_stores,
            after.pages_watched - before.pages_watched,
        )
    };
    program(10);
    let (few, many) = (program(100), program(1100));
    // Each round changes the function once, and nothing else of the page is decoded again.
    assert_eq!(many.0 - few.0, 1000, "{few:?} {many:?}");
    assert_eq!(many.1 - few.1, 1000, "{few:?} {many:?}");
    assert_eq!((few.2, many.2), (0, 0));
}

#[test]
fn a_store_of_the_bytes_that_are_there_decodes_nothing() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        a.mov(dword_ptr(FUNCTION + 1), eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        done(a)
    });
    machine.done();
    let counters = machine.cpu.counters();
    assert_eq!((counters.blocks_decoded, counters.code_stores), (5, 1000));
}

#[test]
fn a_page_that_held_code_and_holds_none_is_watched_no_longer() {
    let mut machine = Machine::new();
    function(&mut machine, FUNCTION, 1);
    machine.kernel(|a| {
        a.call(FUNCTION)?;
        // As a kernel clears a page that it gives to somebody else; then code again.
        a.mov(edi, FUNCTION as u32)?;
        a.xor(eax, eax)?;
        a.mov(ecx, 512)?;
        a.rep().stosq()?;
        a.mov(dword_ptr(FUNCTION), 0xc3_c0_ff)?; // inc eax; ret
        a.call(FUNCTION)?;
        a.mov(dword_ptr(FUNCTION), 0xc3_c8_ff)?; // dec eax; ret
        a.call(FUNCTION)?;
        a.call(FUNCTION)?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RAX], u64::from(u32::MAX));
    assert_eq!(
        machine.cpu.counters().pages_watched,
        1,
        "stores passed, and do not any more"
    );
}

const ROUNDS: u32 = 3000;

/// Runs `machine` beside a second processor that does `other`, in real mode.
fn run_beside(machine: &mut Machine, other: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let second = machine.second(other);
    machine.platform.deliver(softcpu::Message {
        destination: 1,
        logical: false,
        mode: 6,
        vector: (START >> 12) as u8,
    });
    machine.done_beside(second);
}

/// For n = 1, 2 and so on up to [`ROUNDS`], asks the other processor for round n, does `check` with n in ECX
/// once it has done it, and ends with an exception where `check` leaves "not equal".
fn ask_each_round(
    a: &mut CodeAssembler,
    before: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    check: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (mut again, mut wait, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
    a.xor(ecx, ecx)?;
    a.set_label(&mut again)?;
    a.inc(ecx)?;
    before(a)?;
    a.mov(dword_ptr(DATA), ecx)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(DATA + 4), ecx)?;
    a.jne(wait)?;
    check(a)?;
    a.jne(wrong)?;
    a.cmp(ecx, ROUNDS)?;
    a.jb(again)?;
    done(a)?;
    a.set_label(&mut wrong)?;
    a.ud2()
}

/// Code for the second processor, in real mode: for n = 1, 2 and so on it waits until the word at `DATA` is
/// n, does `store` with n in EAX and DS at `FUNCTION`, and puts n into the word at `DATA + 4`.
fn on_request(
    store: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut again = a.create_label();
        a.mov(ax, (FUNCTION >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(es, ax)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.inc(eax)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(0).es(), eax)?;
        a.jne(wait)?;
        store(a)?;
        a.mov(dword_ptr(4).es(), eax)?;
        a.cmp(eax, ROUNDS)?;
        a.jb(again)?;
        done(a)
    }
}

#[test]
fn code_of_another_processor_runs_after_its_signal() {
    let mut machine = Machine::with(Clock::Host, 2);
    function(&mut machine, FUNCTION, 0);
    let other = on_request(|a| a.mov(dword_ptr(1), eax));
    // Calls the function after each change: without an instruction that serialises, since the branch that
    // sees the other's word is enough here, and code on this processor's own page between that was not
    // decoded before.
    machine.kernel(|a| {
        ask_each_round(
            a,
            |a| a.call(FUNCTION),
            |a| {
                a.call(FUNCTION)?;
                a.cmp(eax, ecx)
            },
        )
    });
    run_beside(&mut machine, other);
}

#[test]
fn data_of_another_processor_runs_as_code() {
    let mut machine = Machine::with(Clock::Host, 2);
    // The other one writes a whole page of functions again and again, so that its stores pass without being
    // watched; this one calls a function that it has not called since, on a page whose blocks are all gone.
    let other = on_request(|a| {
        a.cld()?;
        a.mov(ecx, 1024)?;
        a.mov(ebx, eax)?;
        a.push(es)?;
        a.push(ds)?;
        a.pop(es)?;
        a.xor(di, di)?;
        // `mov al, n; ret`
        a.shl(eax, 8)?;
        a.and(eax, 0xff00)?;
        a.or(eax, 0x00c3_00b0)?;
        a.rep().stosd()?;
        a.pop(es)?;
        a.mov(eax, ebx)
    });
    machine.kernel(|a| {
        ask_each_round(
            a,
            |a| a.nop(),
            |a| {
                // A function in another granule each time.
                a.imul_3(esi, ecx, 132)?;
                a.and(esi, 0xffc)?;
                a.add(rsi, FUNCTION as i32)?;
                a.call(rsi)?;
                a.cmp(al, cl)
            },
        )
    });
    run_beside(&mut machine, other);
}

#[test]
fn locked_additions_beside_code_all_count() {
    const EACH: u32 = 20_000;
    let mut machine = Machine::with(Clock::Host, 2);
    function(&mut machine, FUNCTION, 0);
    let other = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ax, (FUNCTION >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(ecx, EACH)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(0x800))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.inc(dword_ptr(0x900))?;
        done(a)
    };
    machine.kernel(|a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.mov(ecx, EACH)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        a.lock().inc(dword_ptr(FUNCTION + 0x800))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(FUNCTION + 0x900), 0)?;
        a.je(wait)?;
        done(a)
    });
    run_beside(&mut machine, other);
    assert_eq!(machine.word(FUNCTION + 0x800) as u32, 2 * EACH);
}

#[test]
fn code_that_another_processor_writes_runs_here() {
    let mut machine = Machine::with(Clock::Host, 2);
    function(&mut machine, FUNCTION, 1);
    // This one calls until the value changes.
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
    run_beside(&mut machine, |a| {
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
    assert_eq!((machine.cpu.gpr[reg::RBX], machine.cpu.gpr[reg::RAX]), (1, 2));
}
