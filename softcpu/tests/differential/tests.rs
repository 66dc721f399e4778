//! The tests proper.

use super::case::*;
use super::codes::{EXCLUDED, codes, fits_sequences, has_encoding, host_has_ymm, is_far_or_segment, on_host};
use super::compare::{self, Mask};
use super::encode::encode;
use super::generate::Generator;
use super::models;
#[cfg(target_arch = "x86_64")]
use super::native;
use super::soft::{self, Machine};
use iced_x86::{Code, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::collections::{BTreeMap, BTreeSet};

/// Rounds for each code: a whole run stays within some twenty seconds on a small machine.
const ROUNDS: u64 = 12;
/// Sequences of a run for each round.
const SEQUENCES: u64 = 300;
/// Failing cases printed in full; the others are counted.
const SHOWN: usize = 40;

/// The vector of #UD.
const UNDEFINED: u32 = 6;

/// A case and what it was made from.
pub struct Prepared {
    pub instructions: Vec<Instruction>,
    pub case: Case,
}

/// A case whose outcomes differ.
struct Failure {
    prepared: Prepared,
    lines: Vec<String>,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn rounds() -> u64 {
    setting("DIFFERENTIAL_ROUNDS").unwrap_or(ROUNDS)
}

fn seed() -> u64 {
    setting("DIFFERENTIAL_SEED").unwrap_or(1)
}

fn wanted(code: Code) -> bool {
    match std::env::var("DIFFERENTIAL_ONLY") {
        Ok(part) => format!("{code:?}").to_lowercase().contains(&part.to_lowercase()),
        Err(_) => true,
    }
}

fn prepare(instructions: Vec<Instruction>, generator: &Generator) -> Option<Prepared> {
    let bytes = encode(&instructions, generator.bitness, START)?;
    let mut code = [0; CODE_MAX];
    code[..bytes.len()].copy_from_slice(&bytes);
    let (memory_seed, state) = (generator.memory_seed, generator.state);
    let case = Case {
        bitness: generator.bitness,
        length: bytes.len() as u32,
        code,
        memory_seed,
        state,
    };
    Some(Prepared { instructions, case })
}

/// One case of a code; nothing where the random operands had no encoding in all the tries.
fn one_instruction(code: Code, bitness: u32, round: u64) -> Option<Prepared> {
    seeded_instruction(seed(), code, bitness, round)
}

/// The same from a seed of its own.
pub fn seeded_instruction(seed: u64, code: Code, bitness: u32, round: u64) -> Option<Prepared> {
    (0..16).find_map(|attempt| {
        let mut seeds = Random(seed << 48 ^ (code as u64) << 24 ^ round << 8 ^ attempt);
        let mut generator = Generator::new(seeds.next(), bitness, false);
        let instruction = generator.instruction(code);
        prepare(vec![instruction], &generator)
    })
}

/// A random sequence. What leaves flags undefined is followed by a comparison, which defines them.
fn sequence(pool: &[Code], bitness: u32, round: u64) -> Option<Prepared> {
    let mut seeds = Random(seed() << 48 ^ 0x5e9 << 32 ^ round);
    let mut generator = Generator::new(seeds.next(), bitness, true);
    let mut instructions = Vec::new();
    let length = 2 + seeds.below(9);
    for _ in 0..length {
        let code = seeds.pick(pool);
        generator.at = START + encode(&instructions, bitness, START)?.len() as u64;
        let instruction = generator.instruction(code);
        if encode(&[instruction], bitness, generator.at).is_none() {
            continue;
        }
        instructions.push(instruction);
        if compare::undefined_flags(&instruction, None) != 0 {
            instructions.push(Instruction::with2(Code::Cmp_AL_imm8, iced_x86::Register::AL, 0x5a).ok()?);
        }
    }
    prepare(instructions, &generator).filter(|prepared| lands_on_instructions(&prepared.case))
}

/// No branch of the sequence leads into the middle of an instruction: what runs from there on is one that
/// nobody chose, excluded ones and undefined flags among them.
fn lands_on_instructions(case: &Case) -> bool {
    let code = &case.code[..case.length as usize];
    let decoded: Vec<Instruction> = Decoder::with_ip(case.bitness, code, START, DecoderOptions::NONE)
        .into_iter()
        .collect();
    let inside = START..START + code.len() as u64;
    decoded
        .iter()
        .map(Instruction::near_branch_target)
        .filter(|target| inside.contains(target))
        .all(|target| decoded.iter().any(|instruction| instruction.ip() == target))
}

#[cfg(target_arch = "x86_64")]
fn run_native(cases: &[Case]) -> Vec<Outcome> {
    native::run(cases)
}

/// Never called: the tests that would are ignored there.
#[cfg(not(target_arch = "x86_64"))]
fn run_native(_cases: &[Case]) -> Vec<Outcome> {
    Vec::new()
}

/// Runs the cases on both and gives those that differ.
fn failures(machine: &mut Machine, prepared: Vec<Prepared>) -> Vec<Failure> {
    let mut found = Vec::new();
    let cases: Vec<Case> = prepared.iter().map(|p| p.case).collect();
    let outcomes = run_native(&cases);
    assert_eq!(outcomes.len(), cases.len());
    for (prepared, native) in prepared.into_iter().zip(outcomes) {
        let lines = differences(machine, &prepared, &native);
        if !lines.is_empty() {
            found.push(Failure { prepared, lines });
        }
    }
    found
}

fn differences(machine: &mut Machine, prepared: &Prepared, native: &Outcome) -> Vec<String> {
    let soft = machine.run(&prepared.case);
    let mut mask = Mask::of(&prepared.instructions, &prepared.case.state);
    models::allow(&mut mask, &prepared.case, prepared.instructions.last(), native);
    let mut native = *native;
    if !host_has_ymm() {
        native.state.upper = soft.state.upper;
    }
    compare::differences(&native, &soft, &mask)
}

/// Leaves out whatever is not needed for the sequence to fail.
fn minimise(machine: &mut Machine, mut failure: Failure) -> Failure {
    let mut i = 0;
    while failure.prepared.instructions.len() > 1 && i < failure.prepared.instructions.len() {
        let mut fewer = failure.prepared.instructions.clone();
        fewer.remove(i);
        let smaller = shortened(&failure.prepared.case, fewer).and_then(|smaller| {
            let native = run_native(&[smaller.case]);
            let lines = differences(machine, &smaller, &native[0]);
            (!lines.is_empty()).then_some(Failure {
                prepared: smaller,
                lines,
            })
        });
        match smaller {
            Some(smaller) => failure = smaller,
            None => i += 1,
        }
    }
    failure
}

fn shortened(case: &Case, instructions: Vec<Instruction>) -> Option<Prepared> {
    // Undefined flags must stay hidden.
    let exposed = instructions
        .windows(2)
        .any(|pair| compare::undefined_flags(&pair[0], None) != 0 && pair[1].code() != Code::Cmp_AL_imm8);
    if exposed {
        return None;
    }
    let bytes = encode(&instructions, case.bitness, START)?;
    let mut code = [0; CODE_MAX];
    code[..bytes.len()].copy_from_slice(&bytes);
    let case = Case {
        code,
        length: bytes.len() as u32,
        ..*case
    };
    lands_on_instructions(&case).then_some(Prepared { instructions, case })
}

fn describe(failure: &Failure) -> String {
    let Failure { prepared, lines } = failure;
    let Prepared { instructions, case } = prepared;
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    for instruction in instructions {
        let mut line = String::new();
        formatter.format(instruction, &mut line);
        text += &format!("    {line}    ; {:?}\n", instruction.code());
    }
    let bytes: Vec<String> = case.code[..case.length as usize]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    text += &format!("  {} bits, bytes {}\n", case.bitness, bytes.join(" "));
    let state = &case.state;
    text += &format!("  registers {:x?}\n", state.gpr);
    text += &format!(
        "  RFLAGS {:#x} MXCSR {:#x} FCW {:#x} FSW {:#x} FTW {:#x}\n",
        state.rflags,
        state.mxcsr(),
        state.word(0),
        state.word(2),
        state.fx[4]
    );
    text += &format!("  ST0 {:#x} ST1 {:#x}\n", state.slot(32), state.slot(48));
    for instruction in instructions {
        for register in instruction
            .op_kinds()
            .enumerate()
            .filter(|(_, kind)| *kind == iced_x86::OpKind::Register)
        {
            let register = instruction.op_register(register.0 as u32);
            if register.is_vector_register() {
                let (number, n) = (register.number(), state.upper);
                text += &format!("  {register:?} {:#034x} {:#034x}\n", n[number], state.xmm(number));
            }
        }
    }
    text + "  " + &lines.join("\n  ") + "\n"
}

fn report(machine: &mut Machine, failures: Vec<Failure>, total: usize) {
    if failures.is_empty() {
        return;
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut text = String::new();
    let count = failures.len();
    for failure in failures {
        let failure = minimise(machine, failure);
        let last = failure.prepared.instructions.last().map(|i| i.code());
        let known = counts
            .entry(format!("{:?}", last.unwrap_or_default()))
            .or_default();
        *known += 1;
        if *known == 1 && counts.len() <= SHOWN {
            text += &describe(&failure);
        }
    }
    panic!("{count} of {total} cases differ: {counts:?}\n{text}");
}

fn every_instruction_alone(bitness: u32) {
    let mut machine = Machine::new();
    let (mut found, mut total) = (Vec::new(), 0);
    for chunk in codes(bitness).chunks(64) {
        let prepared: Vec<Prepared> = chunk
            .iter()
            .filter(|code| wanted(**code) && on_host(**code))
            .flat_map(|code| (0..rounds()).filter_map(|round| one_instruction(*code, bitness, round)))
            .collect();
        total += prepared.len();
        found.extend(failures(&mut machine, prepared));
    }
    report(&mut machine, found, total);
}

fn random_sequences(bitness: u32) {
    let mut machine = Machine::new();
    let pool: Vec<Code> = codes(bitness)
        .into_iter()
        .filter(|code| wanted(*code) && on_host(*code) && fits_sequences(*code))
        .collect();
    let (mut found, mut total) = (Vec::new(), 0);
    for chunk in (0..rounds() * SEQUENCES).collect::<Vec<u64>>().chunks(4096) {
        let prepared: Vec<Prepared> = chunk
            .iter()
            .filter_map(|round| sequence(&pool, bitness, *round))
            .collect();
        total += prepared.len();
        found.extend(failures(&mut machine, prepared));
    }
    report(&mut machine, found, total);
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "compares with the host's own processor, which must be x86_64"
)]
fn every_instruction_alone_in_64_bit_mode() {
    every_instruction_alone(64);
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "compares with the host's own processor, which must be x86_64"
)]
fn every_instruction_alone_in_compatibility_mode() {
    every_instruction_alone(32);
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "compares with the host's own processor, which must be x86_64"
)]
fn random_sequences_in_64_bit_mode() {
    random_sequences(64);
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "compares with the host's own processor, which must be x86_64"
)]
fn random_sequences_in_compatibility_mode() {
    random_sequences(32);
}

/// What softcpu runs is covered above or excluded for a stated reason; what the selected features have,
/// softcpu runs.
#[test]
fn coverage_is_complete() {
    let mut machine = Machine::new();
    let covered: BTreeSet<Code> = [64, 32].into_iter().flat_map(codes).collect();
    let (mut missing, mut uncovered) = (Vec::new(), Vec::new());
    for code in Code::values() {
        let info = code.op_code();
        let decoded = info.is_instruction() && has_encoding(code) && !info.fwait();
        let excluded = EXCLUDED.iter().any(|(mnemonic, _)| *mnemonic == code.mnemonic());
        if !decoded || excluded || is_far_or_segment(code) {
            continue;
        }
        let made = || {
            [64, 32]
                .into_iter()
                .find_map(|bitness| one_instruction(code, bitness, 0))
        };
        let Some(prepared) = soft::generable(code).then(made).flatten() else {
            if covered.contains(&code) {
                uncovered.push(format!("{code:?} (never encoded)"));
            }
            continue;
        };
        let outcome = machine.run(&prepared.case);
        let runs = !machine.unimplemented() && outcome.vector != UNDEFINED;
        match (covered.contains(&code), machine.unimplemented(), runs) {
            (true, true, _) => missing.push(format!("{code:?}")),
            (false, _, true) => uncovered.push(format!("{code:?}")),
            _ => {}
        }
    }
    assert!(
        missing.is_empty(),
        "softcpu lacks {} codes: {missing:?}",
        missing.len()
    );
    assert!(
        uncovered.is_empty(),
        "{} codes run but are not tested: {uncovered:?}",
        uncovered.len()
    );
}
