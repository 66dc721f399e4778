//! A machine that is saved and goes on in another one is the same machine: with the software processor, which
//! every host has, and instructions as time, so that runs can be compared to the last bit.

use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use iced_x86::code_asm::*;
use machine::accel::{Accel, CpuModel, choose, choose_repeatable};
use machine::arch::Architecture;
use machine::arch::x86_64::testing::elf;
use machine::devices::VirtioSpec;
use machine::memory::saved::PageRun;
use machine::memory::{Bytes, GuestAddress, Memory, Part};
use machine::snapshot::{self, Restore, State};
use machine::timeline::Timeline;
use machine::virtio::balloon::BalloonSpec;
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::RngSpec;
use machine::{Device, Error, Handle, Machine, Outcome, Serial, Spec};

const RAM: u64 = 32 << 20;
/// Where the kernel lies.
const ENTRY: u64 = 0x100_0000;
const HANDLER: u64 = ENTRY + 0x800;
const IDT: u64 = 0x120_0000;
const IDTR: u64 = 0x120_1000;
/// Where the kernel writes what it has seen.
const DATA: u64 = 0x130_0000;
const VECTOR: u8 = 0x61;
/// Where a guest finds its generation (`arch::x86_64::layout`), and which pin says that it is another one.
const GENERATION: u64 = 0xe_fff0;
/// Bytes that the kernel prints.
const ROUNDS: u32 = 400;

fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

use iced_x86::IcedError;

/// A kernel with a timer that interrupts, random numbers, time, output, and halts; it switches itself off.
fn kernel(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut inner) = (a.create_label(), a.create_label());
    // A gate of the one vector: selector 0x10, present, interrupt gate.
    a.mov(rax, HANDLER)?;
    a.mov(rdi, IDT + 16 * u64::from(VECTOR))?;
    a.mov(word_ptr(rdi), ax)?;
    a.mov(dword_ptr(rdi + 2), 0x8e00_0010u32 as i32)?;
    a.shr(rax, 16)?;
    a.mov(word_ptr(rdi + 6), ax)?;
    a.mov(rdi, IDTR)?;
    a.mov(word_ptr(rdi), 0xfff)?;
    a.mov(rax, IDT)?;
    a.mov(qword_ptr(rdi + 2), rax)?;
    a.lidt(ptr(rdi))?;
    wrmsr(a, 0x1b, 0xfee0_0d00)?;
    wrmsr(a, 0x80f, 0x1ff)?;
    wrmsr(a, 0x83e, 0b1011)?;
    wrmsr(a, 0x832, 1 << 17 | u64::from(VECTOR))?;
    wrmsr(a, 0x838, 50_021)?;
    a.sti()?;
    a.mov(rdi, DATA)?;
    a.mov(r15d, ROUNDS)?;
    a.set_label(&mut again)?;
    a.mov(ebx, 200)?;
    a.set_label(&mut inner)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.rdrand(r8)?;
    a.add(rax, r8)?;
    a.xor(rax, qword_ptr(rdi))?;
    a.mov(qword_ptr(rdi + 8), rax)?;
    a.add(rdi, 8)?;
    a.dec(ebx)?;
    a.jnz(inner)?;
    a.mov(dx, 0x3f8)?;
    a.out(dx, al)?;
    a.test(r15d, 63)?;
    let mut running = a.create_label();
    a.jnz(running)?;
    a.hlt()?;
    a.set_label(&mut running)?;
    a.dec(r15d)?;
    a.jnz(again)?;
    a.mov(dx, 0x600)?;
    a.mov(al, 0x34)?;
    a.out(dx, al)?;
    a.hlt()
}

/// Counts interrupts.
fn handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.inc(qword_ptr(DATA - 8))?;
    wrmsr(a, 0x80b, 0)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

fn assemble(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(at).unwrap()
}

/// What the guest prints. Holds the machine at a byte.
#[derive(Clone, Default)]
struct Output(Arc<Printer>);

#[derive(Default)]
struct Printer {
    bytes: Mutex<Vec<u8>>,
    handle: OnceLock<Handle>,
    /// How many bytes are printed before the machine is held, and where that is reported.
    hold: Mutex<Option<(usize, Sender<()>)>>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.bytes.lock().unwrap();
        all.extend(bytes);
        let mut hold = self.0.hold.lock().unwrap();
        if let Some((_, held)) = hold.take_if(|(at, _)| *at <= all.len()) {
            self.0.handle.get().unwrap().hold_for_space(true);
            held.send(()).unwrap();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    kernel: tempfile::NamedTempFile,
    repeatable: bool,
}

impl Bench {
    fn new(repeatable: bool) -> Bench {
        let mut code = assemble(ENTRY, kernel);
        assert!(ENTRY + code.len() as u64 <= HANDLER);
        code.resize((HANDLER - ENTRY) as usize, 0x90);
        code.extend(assemble(HANDLER, handler));
        let mut kernel = tempfile::NamedTempFile::new().unwrap();
        kernel.write_all(&elf(ENTRY, &code, code.len() as u64)).unwrap();
        Bench { kernel, repeatable }
    }

    fn spec(&self, output: &Output) -> Spec {
        let chosen = if self.repeatable {
            choose_repeatable(Accel::Soft, Architecture::X86_64, None)
        } else {
            choose(Accel::Soft, Architecture::X86_64, None)
        };
        Spec {
            architecture: Architecture::X86_64,
            cpus: 1,
            memory: RAM,
            accel: Arc::new(chosen.unwrap()),
            kernel: Part::open(self.kernel.path()).unwrap(),
            initrd: None,
            cmdline: String::new(),
            serial: Some(Serial {
                output: Box::new(output.clone()),
                input: None,
            }),
            devices: vec![
                Device {
                    name: "rng".into(),
                    spec: VirtioSpec::Rng(RngSpec {
                        seed: Some(b"seed".to_vec()),
                    }),
                },
                Device {
                    name: "balloon".into(),
                    spec: VirtioSpec::Balloon(BalloonSpec {
                        target: Default::default(),
                    }),
                },
            ],
            uuid: None,
            determinism: if self.repeatable {
                Determinism::enabled()
            } else {
                Determinism::default()
            },
            statistics: false,
            timeline: Arc::new(Timeline::start()),
        }
    }

    fn build(&self, output: &Output, restore: Option<Restore>) -> Result<Machine, Error> {
        let machine = Machine::build(self.spec(output), restore)?;
        let _ = output.0.handle.set(machine.handle());
        Ok(machine)
    }
}

/// How a run ended: instructions, RAM, output.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    instructions: u64,
    memory: blake3::Hash,
    printed: Vec<u8>,
}

fn digest(memory: &Memory) -> blake3::Hash {
    let mut all = vec![0; RAM as usize];
    memory.read_slice(&mut all, GuestAddress(0)).unwrap();
    blake3::hash(&all)
}

fn run(machine: Machine, output: &Output) -> Ended {
    let handle = machine.handle();
    let memory = machine.memory().unwrap();
    assert_eq!(machine.run(|| {}).unwrap(), Outcome::PowerOff);
    let printed = output.0.bytes.lock().unwrap().clone();
    Ended {
        instructions: handle.instructions().unwrap(),
        memory: digest(&memory),
        printed,
    }
}

/// A snapshot: state, and a file with the memory.
struct Taken {
    state: Vec<u8>,
    memory: tempfile::NamedTempFile,
    printed: Vec<u8>,
}

impl Taken {
    fn restore(&self, generation: Option<[u8; 16]>) -> Restore {
        Restore {
            state: State::from_bytes(&self.state).unwrap(),
            memory: Part::open(self.memory.path()).unwrap(),
            generation,
        }
    }
}

/// Runs until `at` bytes are printed, saves the machine and ends it.
fn cut(machine: Machine, output: &Output, at: usize) -> Taken {
    let (sender, held) = channel();
    *output.0.hold.lock().unwrap() = Some((at, sender));
    let handle = machine.handle();
    let runner = thread::spawn(move || machine.run(|| {}));
    held.recv().unwrap();
    let memory = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(
        handle.save(memory.as_file(), 0),
        Err(snapshot::Error::NotPaused)
    ));
    assert!(handle.pause());
    let state = handle.save(memory.as_file(), 0).unwrap();
    // What is saved twice is the same: nothing went on.
    let again = tempfile::NamedTempFile::new().unwrap();
    if handle.instructions().is_some() && State::from_bytes(&state).unwrap().about().repeatable {
        assert!(handle.save(again.as_file(), 0).unwrap() == state);
    }
    memory.as_file().set_len(RAM).unwrap();
    handle.kill();
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Killed);
    let printed = output.0.bytes.lock().unwrap().clone();
    Taken {
        state,
        memory,
        printed,
    }
}

#[test]
fn a_run_that_is_cut_anywhere_comes_to_the_same_end() {
    let bench = Bench::new(true);
    let output = Output::default();
    let whole = run(bench.build(&output, None).unwrap(), &output);
    assert_eq!(whole.printed.len(), ROUNDS as usize);
    for part in 0..10 {
        let output = Output::default();
        let at = 1 + part * (ROUNDS as usize - 2) / 9;
        let taken = cut(bench.build(&output, None).unwrap(), &output, at);
        assert!((at..at + 2).contains(&taken.printed.len()), "cut at {at}");
        let output = Output::default();
        output.0.bytes.lock().unwrap().extend(&taken.printed);
        let end = run(bench.build(&output, Some(taken.restore(None))).unwrap(), &output);
        assert!(
            end == whole,
            "cut at {at}: {} of {}",
            end.instructions,
            whole.instructions
        );
    }
}

#[test]
fn a_run_that_is_cut_again_and_again_comes_to_the_same_end() {
    let bench = Bench::new(true);
    let output = Output::default();
    let whole = run(bench.build(&output, None).unwrap(), &output);
    let output = Output::default();
    let mut taken = cut(bench.build(&output, None).unwrap(), &output, 10);
    for at in [20, 200, 300] {
        let output = Output::default();
        output.0.bytes.lock().unwrap().extend(&taken.printed);
        taken = cut(
            bench.build(&output, Some(taken.restore(None))).unwrap(),
            &output,
            at,
        );
    }
    let output = Output::default();
    output.0.bytes.lock().unwrap().extend(&taken.printed);
    let end = run(bench.build(&output, Some(taken.restore(None))).unwrap(), &output);
    assert!(end == whole);
}

#[test]
fn a_guest_in_the_hosts_time_goes_on_with_another_generation() {
    let bench = Bench::new(false);
    let output = Output::default();
    let machine = bench.build(&output, None).unwrap();
    let before = machine
        .memory()
        .unwrap()
        .read_obj::<u128>(GuestAddress(GENERATION))
        .unwrap();
    assert_ne!(before, 0);
    let taken = cut(machine, &output, 50);
    let output = Output::default();
    let machine = bench.build(&output, Some(taken.restore(Some([7; 16])))).unwrap();
    let memory = machine.memory().unwrap();
    let after = memory.read_obj::<u128>(GuestAddress(GENERATION)).unwrap();
    assert_eq!(after, u128::from_le_bytes([7; 16]));
    let end = run(machine, &output);
    assert_eq!(taken.printed.len() + end.printed.len(), ROUNDS as usize);
}

#[test]
fn a_machine_that_differs_is_refused_in_one_line() {
    let bench = Bench::new(true);
    let output = Output::default();
    let taken = cut(bench.build(&output, None).unwrap(), &output, 5);
    let state = State::from_bytes(&taken.state).unwrap();
    let refused = |change: &dyn Fn(&mut Spec)| {
        let mut spec = bench.spec(&Output::default());
        change(&mut spec);
        let why = state.check(&spec).unwrap_err().to_string();
        match Machine::build(spec, Some(taken.restore(None))) {
            Err(Error::Snapshot(snapshot::Error::Mismatch(mismatch))) => {
                assert_eq!(mismatch.to_string(), why)
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it is built"),
        }
        why
    };
    let why = refused(&|spec| spec.memory *= 2);
    assert_eq!(why, "its memory in bytes is 33554432, and 67108864 is needed");
    let why = refused(&|spec| spec.devices.truncate(1));
    assert_eq!(
        why,
        "its list of devices is rng (4), balloon (5), and rng (4) is needed"
    );
    let why = refused(&|spec| spec.serial = None);
    assert_eq!(why, "its serial port is yes, and no is needed");
    let why = refused(&|spec| {
        let chosen = choose_repeatable(Accel::Soft, Architecture::X86_64, None).unwrap();
        spec.accel = Arc::new(chosen.with_model(Some(CpuModel::V2)).unwrap());
    });
    assert_eq!(
        why,
        "its processor's instruction set is x86-64-v3, and x86-64-v2 is needed"
    );
    // Where time is the host's, it is another machine.
    let host = Bench::new(false);
    let spec = host.spec(&Output::default());
    assert_eq!(
        state.check(&spec).unwrap_err().to_string(),
        "its counting of instructions is yes, and no is needed"
    );
}

#[test]
fn a_working_set_is_kept_with_the_state_and_checked() {
    let bench = Bench::new(true);
    let output = Output::default();
    let taken = cut(bench.build(&output, None).unwrap(), &output, 5);
    assert_eq!(State::from_bytes(&taken.state).unwrap().working_set(), []);
    let with = |runs: &[(u64, u64)]| {
        let runs = runs.iter().map(|&(start, count)| PageRun { start, count });
        let state = State::from_bytes(&taken.state).unwrap();
        State::from_bytes(&state.with_working_set(runs.collect()).to_bytes().unwrap())
    };
    let pages = RAM / 4096;
    let state = with(&[(0, 1), (100, 3), (pages - 1, 1)]).unwrap();
    assert_eq!(state.working_set().len(), 3);
    assert_eq!(state.pages(), State::from_bytes(&taken.state).unwrap().pages());
    for bad in [&[(pages, 1)][..], &[(0, u64::MAX)], &[(5, 2), (0, 1)]] {
        let refused = with(bad).unwrap_err().to_string();
        assert_eq!(refused, "memory: the working set cannot be as the state says");
    }
}

#[test]
fn every_flipped_byte_of_a_state_is_refused_and_none_is_believed() {
    let bench = Bench::new(true);
    let output = Output::default();
    let taken = cut(bench.build(&output, None).unwrap(), &output, 5);
    for at in 0..taken.state.len() {
        let mut flipped = taken.state.clone();
        flipped[at] ^= 0x11;
        assert!(State::from_bytes(&flipped).is_err(), "byte {at}");
        assert!(State::from_bytes(&taken.state[..at]).is_err(), "{at} bytes");
        // One that somebody has changed on purpose is another state or none, but never more than that.
        let Ok(state) = State::from_bytes(&machine::state::sealed(&flipped)) else {
            continue;
        };
        let restore = Restore {
            state,
            ..taken.restore(None)
        };
        drop(bench.build(&Output::default(), Some(restore)));
    }
}
