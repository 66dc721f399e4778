//! Memory that processors share: order, single accesses, locked instructions, page table entries (Intel SDM
//! vol. 3, §9.1 and §9.2). What is forbidden must not be seen; what is only allowed is not looked for.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::{Clock, Exit};

use crate::machine::{Devices, Machine, done, page};

const PAGE: u64 = 4096;
/// Code of processor 0; the others' follows.
const CODE: u64 = 0x3_0000;
const CODE_EACH: u64 = 0x1000;
/// Where processors wait for each other.
const BARRIER: u64 = 0x4_0000;
/// Variables and results. Each round has a cache line of its own of each, so that none has to be cleared.
const X: u64 = 0x10_0000;
const Y: u64 = 0x12_0000;
const RESULTS: u64 = 0x14_0000;
const LINE: u64 = 64;
/// What all rounds of a test share.
const SHARED: u64 = 0x5_0000;
const ROUNDS: u64 = 2000;
/// How often each processor does what is counted. They do not wait for each other meanwhile: it takes longer
/// than the host leaves a thread alone.
const REPEATED: u32 = 1_000_000;
/// The same for what takes longer each time.
const REPEATED_LONG: u32 = 50_000;

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs each of `bodies` on a processor of its own, [`ROUNDS`] times. All begin a round at about the same
/// time, with the round's offset in RBX and its number in R15. R12 to R14 are the barrier's; other registers
/// are kept from round to round.
fn run(machine: &mut Machine, bodies: &[Code]) {
    start(machine, bodies, |a, body| rounds(a, bodies.len() as i32, body));
}

/// Runs each of `bodies` on a processor of its own, so many times. They begin together. R12 counts down;
/// registers are kept from one time to the next.
fn run_freely(machine: &mut Machine, times: u32, bodies: &[Code]) {
    start(machine, bodies, |a, body| {
        let mut again = a.create_label();
        a.xor(r14d, r14d)?;
        barrier(a, bodies.len() as i32)?;
        a.mov(r12d, times)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(r12d)?;
        a.jnz(again)
    });
}

fn start(
    machine: &mut Machine,
    bodies: &[Code],
    write: impl Fn(&mut CodeAssembler, Code) -> Result<(), IcedError>,
) {
    for (id, body) in (0..).zip(bodies) {
        let len = machine.assemble(CODE + CODE_EACH * id, 64, |a| {
            write(a, body)?;
            done(a)
        });
        assert!(len <= CODE_EACH);
    }
    let others: Vec<_> = (1..bodies.len() as u32)
        .map(|id| machine.processor(id, CODE + CODE_EACH * u64::from(id)))
        .collect();
    std::thread::scope(|scope| {
        let others: Vec<_> = others
            .into_iter()
            .map(|mut cpu| scope.spawn(move || cpu.run(&mut Devices::default())))
            .collect();
        machine.done();
        for other in others {
            assert_eq!(other.join().unwrap(), Exit::Stopped);
        }
    });
}

fn rounds(a: &mut CodeAssembler, cpus: i32, body: Code) -> Result<(), IcedError> {
    let mut round = a.create_label();
    a.xor(r15d, r15d)?;
    a.xor(r14d, r14d)?;
    a.set_label(&mut round)?;
    a.imul_3(rbx, r15, LINE as i32)?;
    // Both variables in this processor's cache, so that a load of one is quicker than a store to the other.
    a.mov(rax, variable(X))?;
    a.mov(rax, variable(Y))?;
    barrier(a, cpus)?;
    body(a)?;
    a.inc(r15)?;
    a.cmp(r15, ROUNDS as i32)?;
    a.jne(round)
}

/// Waits until all processors are here. The first moments without PAUSE, by which the host's thread may give
/// way: they leave almost at once then. Where the host has less to give, the others are waited for with it.
fn barrier(a: &mut CodeAssembler, cpus: i32) -> Result<(), IcedError> {
    const EAGER: i32 = 500;
    let (mut eager, mut patient, mut go) = (a.create_label(), a.create_label(), a.create_label());
    a.add(r14, cpus)?;
    a.mov(r13d, EAGER)?;
    a.lock().inc(qword_ptr(BARRIER))?;
    a.set_label(&mut eager)?;
    a.cmp(qword_ptr(BARRIER), r14)?;
    a.jae(go)?;
    a.dec(r13d)?;
    a.jnz(eager)?;
    a.set_label(&mut patient)?;
    a.pause()?;
    a.cmp(qword_ptr(BARRIER), r14)?;
    a.jb(patient)?;
    a.set_label(&mut go)?;
    a.nop()
}

/// A variable of the round.
fn variable(at: u64) -> AsmMemoryOperand {
    qword_ptr(rbx + at)
}

/// Leaves a result of the round.
fn result(a: &mut CodeAssembler, number: u64, register: AsmRegister64) -> Result<(), IcedError> {
    a.mov(qword_ptr(rbx + RESULTS + 8 * number), register)
}

/// Calls `check` with the results of each round.
fn each_round<const N: usize>(machine: &Machine, check: impl Fn([u64; N])) {
    for round in 0..ROUNDS {
        check(std::array::from_fn(|n| {
            machine.word(RESULTS + LINE * round + 8 * n as u64)
        }));
    }
}

/// Two variables are read by one processor in this order, which leaves them as results `first` and `first +
/// 1`.
fn read_both(a: &mut CodeAssembler, variables: [u64; 2], first: u64) -> Result<(), IcedError> {
    a.mov(rax, variable(variables[0]))?;
    a.mov(rcx, variable(variables[1]))?;
    result(a, first, rax)?;
    result(a, first + 1, rcx)
}

#[test]
fn message_passing_stores_are_seen_in_order() {
    let mut machine = Machine::with(Clock::Host, 2);
    let write = |a: &mut CodeAssembler| {
        a.mov(variable(X), 1)?;
        a.mov(variable(Y), 1)
    };
    run(&mut machine, &[&write, &|a| read_both(a, [Y, X], 0)]);
    each_round(&machine, |[y, x]| {
        assert_ne!([y, x], [1, 0], "the second store is seen before the first")
    });
}

/// Each of two processors stores to one variable, does `between`, and loads the other. Without a barrier both
/// may load 0.
fn store_buffering(between: impl Fn(&mut CodeAssembler, u64) -> Result<(), IcedError>) {
    let mut machine = Machine::with(Clock::Host, 2);
    let store_and_load = |number: u64, variables: [u64; 2]| {
        let between = &between;
        move |a: &mut CodeAssembler| {
            between(a, variables[0])?;
            a.mov(rcx, variable(variables[1]))?;
            result(a, number, rcx)
        }
    };
    run(
        &mut machine,
        &[&store_and_load(0, [X, Y]), &store_and_load(1, [Y, X])],
    );
    each_round(&machine, |loaded: [u64; 2]| {
        assert_ne!(loaded, [0, 0], "a load passes the barrier")
    });
}

#[test]
fn store_buffering_ends_at_mfence() {
    store_buffering(|a, to| {
        a.mov(variable(to), 1)?;
        a.mfence()
    });
}

#[test]
fn store_buffering_ends_at_a_locked_instruction() {
    store_buffering(|a, to| {
        a.mov(variable(to), 1)?;
        a.lock().add(dword_ptr(rsp - 8), 0)
    });
}

#[test]
fn store_buffering_ends_at_xchg() {
    store_buffering(|a, to| {
        a.mov(eax, 1)?;
        a.xchg(variable(to), rax)
    });
}

#[test]
fn store_buffering_ends_at_a_split_lock() {
    store_buffering(|a, to| {
        a.mov(variable(to), 1)?;
        a.lock().add(dword_ptr(rsp - 66), 0)
    });
}

#[test]
fn load_buffering_loads_come_before_later_stores() {
    let mut machine = Machine::with(Clock::Host, 2);
    let load_and_store = |number: u64, variables: [u64; 2]| {
        move |a: &mut CodeAssembler| {
            a.mov(rcx, variable(variables[0]))?;
            a.mov(variable(variables[1]), 1)?;
            result(a, number, rcx)
        }
    };
    run(
        &mut machine,
        &[&load_and_store(0, [X, Y]), &load_and_store(1, [Y, X])],
    );
    each_round(&machine, |loaded: [u64; 2]| {
        assert_ne!(loaded, [1, 1], "both loads see later stores")
    });
}

#[test]
fn independent_stores_are_seen_in_one_order() {
    let mut machine = Machine::with(Clock::Host, 4);
    run(
        &mut machine,
        &[
            &|a| a.mov(variable(X), 1),
            &|a| a.mov(variable(Y), 1),
            &|a| read_both(a, [X, Y], 0),
            &|a| read_both(a, [Y, X], 2),
        ],
    );
    each_round(&machine, |loaded: [u64; 4]| {
        assert_ne!(
            loaded,
            [1, 0, 1, 0],
            "two readers see two stores in different orders"
        );
    });
}

/// Loads 8 bytes, all of which must be the same, and traps where they are not. RAX is lost.
fn load_whole(a: &mut CodeAssembler, from: AsmMemoryOperand) -> Result<(), IcedError> {
    let mut whole = a.create_label();
    a.mov(rax, from)?;
    a.mov(rdx, rax)?;
    a.rol(rdx, 8)?;
    a.cmp(rax, rdx)?;
    a.je(whole)?;
    a.ud2()?;
    a.set_label(&mut whole)?;
    a.nop()
}

/// Code that stores the 8 times repeated byte to all of two cache lines, by one quadword after the other and
/// by REP STOS and REP MOVS.
fn store_whole(byte: u8) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        a.mov(rax, u64::from_le_bytes([byte; 8]))?;
        for n in 0..16 {
            a.mov(qword_ptr(SHARED + 8 * n), rax)?;
        }
        // As a whole page, which a repeated instruction does at once.
        a.mov(edi, SHARED as u32)?;
        a.mov(ecx, PAGE as u32 / 8)?;
        a.rep().stosq()?;
        a.mov(esi, SHARED as u32)?;
        a.mov(edi, (SHARED + PAGE) as u32)?;
        a.mov(ecx, PAGE as u32 / 8)?;
        a.rep().movsq()
    }
}

#[test]
fn aligned_quadwords_are_never_torn() {
    let mut machine = Machine::with(Clock::Host, 4);
    let read = |a: &mut CodeAssembler| {
        for n in 0..16 {
            load_whole(a, qword_ptr(SHARED + 8 * n))?;
            load_whole(a, qword_ptr(SHARED + PAGE + 8 * n))?;
        }
        Ok(())
    };
    // This one has no translation, so that its accesses are not those of the fast path.
    let read_slowly = |a: &mut CodeAssembler| {
        a.invlpg(byte_ptr(SHARED))?;
        load_whole(a, qword_ptr(SHARED))?;
        a.invlpg(byte_ptr(SHARED + PAGE))?;
        load_whole(a, qword_ptr(SHARED + PAGE))
    };
    run_freely(
        &mut machine,
        REPEATED_LONG,
        &[&read, &read_slowly, &store_whole(0x11), &store_whole(0xee)],
    );
}

#[test]
fn unaligned_accesses_inside_a_quadword_are_never_torn() {
    const AT: u64 = SHARED + 3;
    let mut machine = Machine::with(Clock::Host, 4);
    let store = |value: i32| move |a: &mut CodeAssembler| a.mov(dword_ptr(AT), value);
    let load = |a: &mut CodeAssembler| {
        let mut whole = a.create_label();
        a.mov(eax, dword_ptr(AT))?;
        a.mov(edx, eax)?;
        a.rol(edx, 8)?;
        a.cmp(eax, edx)?;
        a.je(whole)?;
        a.ud2()?;
        a.set_label(&mut whole)?;
        a.nop()
    };
    run_freely(
        &mut machine,
        REPEATED,
        &[&load, &load, &store(0x1111_1111), &store(0x2222_2222)],
    );
}

#[test]
fn locked_instructions_of_four_processors_all_count() {
    // Aligned, inside an aligned quadword, across two of them, across two cache lines.
    const OPERANDS: [u64; 4] = [SHARED, SHARED + 66, SHARED + 133, SHARED + 253];
    let mut machine = Machine::with(Clock::Host, 4);
    let count = |a: &mut CodeAssembler| {
        for at in OPERANDS {
            a.lock().inc(qword_ptr(at))?;
        }
        a.mov(eax, 3)?;
        a.lock().xadd(dword_ptr(SHARED + 512), eax)
    };
    run_freely(&mut machine, REPEATED, &[&count, &count, &count, &count]);
    let each = 4 * u64::from(REPEATED);
    assert_eq!(OPERANDS.map(|at| machine.word(at)), [each; 4]);
    assert_eq!(machine.word(SHARED + 512), 3 * each);
}

#[test]
fn locked_instructions_on_overlapping_operands_all_count() {
    let mut machine = Machine::with(Clock::Host, 4);
    // No field of 16 bits is ever more than two, so that nothing is carried. The first and last operand are
    // aligned; each shares changing bytes with one that is not.
    run_freely(
        &mut machine,
        REPEATED,
        &[
            &|a| {
                a.lock().add(qword_ptr(SHARED), 0x1_0000)?;
                a.lock().sub(qword_ptr(SHARED), 0x1_0000)
            },
            &|a| {
                a.lock().inc(dword_ptr(SHARED + 2))?;
                a.lock().dec(dword_ptr(SHARED + 2))
            },
            &|a| {
                a.lock().inc(qword_ptr(SHARED + 4))?;
                a.lock().dec(qword_ptr(SHARED + 4))
            },
            &|a| {
                a.lock().inc(word_ptr(SHARED + 6))?;
                a.lock().dec(word_ptr(SHARED + 6))
            },
        ],
    );
    assert_eq!(machine.word(SHARED), 0);
}

#[test]
fn stores_beside_a_locked_operand_are_not_lost() {
    let mut machine = Machine::with(Clock::Host, 2);
    run_freely(
        &mut machine,
        REPEATED,
        &[&|a| a.lock().inc(dword_ptr(SHARED + 1)), &|a| {
            let mut kept = a.create_label();
            a.mov(word_ptr(SHARED + 5), r12w)?;
            a.cmp(word_ptr(SHARED + 5), r12w)?;
            a.je(kept)?;
            a.ud2()?;
            a.set_label(&mut kept)?;
            a.nop()
        }],
    );
    assert_eq!(machine.word(SHARED), u64::from(REPEATED) << 8 | 1 << 40);
}

#[test]
fn accessed_and_dirty_bits_and_other_changes_of_an_entry_are_not_lost() {
    /// An entry of a page table, and its page.
    const TARGET: u64 = 0x6_0000;
    const ENTRY: u64 = 0x4000 + TARGET / PAGE * 8;
    /// The lowest of the eleven bits that processors ignore.
    const IGNORED: u64 = 1 << 52;
    const BOTH: i32 = (page::ACCESSED | page::DIRTY) as i32;
    let mut machine = Machine::with(Clock::Host, 2);
    let before = machine.entry(TARGET);
    let change = |a: &mut CodeAssembler| {
        a.mov(rax, IGNORED)?;
        a.lock().add(qword_ptr(ENTRY), rax)?;
        a.lock().add(qword_ptr(ENTRY), rax)?;
        a.lock().sub(qword_ptr(ENTRY), rax)?;
        a.lock().sub(qword_ptr(ENTRY), rax)
    };
    let touch = |a: &mut CodeAssembler| {
        let mut set = a.create_label();
        a.lock().and(qword_ptr(ENTRY), !BOTH)?;
        a.invlpg(byte_ptr(TARGET))?;
        a.mov(qword_ptr(TARGET), 1)?;
        a.mov(eax, dword_ptr(ENTRY))?;
        a.and(eax, BOTH)?;
        a.cmp(eax, BOTH)?;
        a.je(set)?;
        a.ud2()?;
        a.set_label(&mut set)?;
        a.nop()
    };
    run_freely(&mut machine, REPEATED, &[&touch, &change]);
    assert_eq!(machine.entry(TARGET), before | page::ACCESSED | page::DIRTY);
}
