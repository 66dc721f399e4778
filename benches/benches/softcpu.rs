//! The software processor's hot paths: what a loop of each kind costs for each instruction.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::flat;
use softcpu::x86_64::state::reg;
use softcpu::{Bus, BusResult, Clock, Cpu, Exit, Platform, Ram};

const MEMORY: usize = 128 << 20;
const PAGE_TABLES: u64 = 0x9000;
const CODE: u64 = 0x10_0000;
/// What loops work on.
const DATA: u64 = 0x20_0000;
const STACK: u64 = 0x8000;
/// Rounds of a loop in one measurement.
const ROUNDS: u64 = 10_000;

/// Ends the guest at its first port access.
struct Plug;

impl Bus for Plug {
    fn port_write(&mut self, _port: u16, _data: &[u8]) -> BusResult {
        BusResult::Stop
    }

    fn unimplemented(&mut self, what: &str, rip: u64) {
        panic!("{what} at {rip:#x} is not implemented");
    }
}

/// RAM that is mapped to itself.
fn ram() -> Arc<Ram> {
    let ram = Ram::leaked(MEMORY).expect("room for RAM");
    assert!(flat::map(&ram, PAGE_TABLES));
    Arc::new(ram)
}

/// A processor in 64-bit mode over `ram`.
fn processor(ram: &Arc<Ram>) -> Cpu {
    let platform = Platform::new(1, Clock::Instructions);
    let mut cpu = Cpu::new(Arc::clone(ram), platform, 0).expect("processor 0");
    flat::enter(&mut cpu, PAGE_TABLES);
    cpu
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Code that runs `body` RCX times and then touches a port.
fn program(body: Body) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut again = code.create_label();
    code.set_label(&mut again)?;
    body(&mut code)?;
    code.dec(rcx)?;
    code.jnz(again)?;
    code.out(0x80, al)?;
    code.assemble(CODE)
}

/// Additions, rotations, comparisons: registers only.
fn arithmetic(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..4 {
        code.add(rax, rbx)?;
        code.xor(rbx, rax)?;
        code.rol(rdx, 7)?;
        code.lea(rsi, rax + rdx * 2 + 5)?;
        code.cmp(rsi, rbx)?;
    }
    Ok(())
}

/// Loads and stores in one page.
fn memory(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for n in 0..8_i32 {
        code.mov(rax, qword_ptr(rdi + n * 8))?;
        code.add(qword_ptr(rdi + 64 + n * 8), rax)?;
    }
    Ok(())
}

/// Loads from one page after another, more of them than the software TLB holds.
fn pages(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(rax, qword_ptr(rdi + rbx))?;
    code.add(rbx, 4096 + 64)?;
    code.and(rbx, 0x3ff_ffff)
}

/// Calls and returns.
fn calls(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut over) = (code.create_label(), code.create_label());
    code.call(function)?;
    code.jmp(over)?;
    code.set_label(&mut function)?;
    code.push(rbx)?;
    code.pop(rbx)?;
    code.ret()?;
    code.set_label(&mut over)
}

/// A copy of a page.
fn string(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(r8, rcx)?;
    code.mov(rsi, rdi)?;
    code.add(rdi, 0x1000)?;
    code.mov(ecx, 512)?;
    code.rep().movsq()?;
    code.sub(rdi, 0x2000)?;
    code.mov(rcx, r8)
}

/// Packed integers.
fn vector(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..4 {
        code.paddd(xmm0, xmm1)?;
        code.pxor(xmm1, xmm0)?;
        code.pshufd(xmm2, xmm0, 0x1b)?;
        code.movdqu(xmmword_ptr(rdi), xmm2)?;
    }
    Ok(())
}

/// Stores to the page that runs, beside its code.
fn beside_code(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for n in 0..8_i32 {
        code.mov(qword_ptr(CODE + 0x800 + n as u64 * 8), rcx)?;
    }
    Ok(())
}

/// A function of one instruction that is changed before each call, as trampolines are; others of its page are
/// called, too.
fn changing_code(code: &mut CodeAssembler) -> Result<(), IcedError> {
    const FUNCTION: u64 = CODE + 0x1000;
    // `mov eax, imm32; ret` three times, 0x100 apart; the loop brings them along.
    for n in 0..3 {
        code.mov(dword_ptr(FUNCTION + n * 0x100), 0xb8)?;
        code.mov(word_ptr(FUNCTION + n * 0x100 + 5), 0xc3)?;
    }
    code.mov(dword_ptr(FUNCTION + 1), ecx)?;
    for n in 0..3 {
        code.call(FUNCTION + n * 0x100)?;
    }
    Ok(())
}

/// Shuffles of bytes.
fn shuffle(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..16 {
        code.pshufb(xmm0, xmm1)?;
    }
    Ok(())
}

/// String comparisons: any of a set, ranges, and substrings.
fn text(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(eax, 16)?;
    code.mov(edx, 16)?;
    for control in [0x00, 0x04, 0x08, 0x0c] {
        code.push(rcx)?;
        code.pcmpestri(xmm0, xmm1, control)?;
        code.pcmpistri(xmm0, xmm1, control)?;
        code.pop(rcx)?;
    }
    Ok(())
}

fn loops(criterion: &mut Criterion) {
    let ram = ram();
    let mut group = criterion.benchmark_group("softcpu");
    let bodies: [(&str, Body); 10] = [
        ("arithmetic", arithmetic),
        ("memory", memory),
        ("pages", pages),
        ("calls", calls),
        ("string", string),
        ("vector", vector),
        ("beside_code", beside_code),
        ("changing_code", changing_code),
        ("shuffle", shuffle),
        ("text", text),
    ];
    for (name, body) in bodies {
        let program = program(body).expect("instructions that there are");
        assert!(ram.write(CODE, &program));
        // A processor of its own: it has not seen the code that was here before.
        let mut cpu = processor(&ram);
        let mut run = || {
            cpu.gpr[reg::RCX] = ROUNDS;
            cpu.gpr[reg::RDI] = DATA;
            cpu.gpr[reg::RSP] = STACK;
            cpu.rip = CODE;
            let before = cpu.retired();
            assert!(matches!(cpu.run(&mut Plug), Exit::Stopped));
            cpu.retired() - before
        };
        // Decodes, too.
        let instructions = run();
        group.throughput(Throughput::Elements(instructions));
        group.bench_function(name, |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

criterion_group!(benches, loops);
criterion_main!(benches);
