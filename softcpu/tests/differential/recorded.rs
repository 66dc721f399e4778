//! Outcomes of what not every host has, as digests in a file.
//!
//! A host with AVX2 compares softcpu with itself, and the digests with softcpu: they are those of outcomes that
//! agreed. A host without it has the digests only. `DIFFERENTIAL_RECORD=1` writes the file; do so where
//! `every_instruction_alone` passes and all features are there.

use super::case::{Outcome, PAGE, Random};
use super::codes::{codes, may_be_absent};
use super::compare::Mask;
use super::soft::Machine;
use super::tests::{Prepared, seeded_instruction};
use iced_x86::Code;
use std::collections::BTreeMap;
use std::path::Path;

/// Cases of each code in each mode.
const ROUNDS: u64 = 6;
/// Not the seed of the comparison, which the environment may change.
const SEED: u64 = 0x23;

/// FNV-1a.
struct Digest(u64);

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn add(digest: &mut Digest, prepared: &Prepared, outcome: &Outcome) {
    let mask = Mask::of(&prepared.instructions, &prepared.case.state);
    let state = &outcome.state;
    digest.add(&outcome.vector.to_le_bytes());
    digest.add(&state.rip.to_le_bytes());
    digest.add(&(state.rflags & mask.flags).to_le_bytes());
    digest.add(&state.mxcsr().to_le_bytes());
    for register in state.gpr {
        digest.add(&register.to_le_bytes());
    }
    for i in 0..16 {
        digest.add(&state.xmm(i).to_le_bytes());
        digest.add(&state.upper[i].to_le_bytes());
    }
    let memory: &[u8; PAGE] = &outcome.memory;
    digest.add(memory);
}

fn digest(machine: &mut Machine, code: Code) -> u64 {
    let mut digest = Digest(Random(0).next());
    for bitness in [64, 32] {
        for round in 0..ROUNDS {
            if let Some(prepared) = seeded_instruction(SEED, code, bitness, round) {
                let outcome = machine.run(&prepared.case);
                add(&mut digest, &prepared, &outcome);
            }
        }
    }
    digest.0
}

fn digests() -> BTreeMap<String, String> {
    let mut machine = Machine::new();
    let of_64 = codes(64).into_iter().filter(|code| may_be_absent(*code));
    of_64
        .map(|code| {
            (
                format!("{code:?}"),
                format!("{:016x}", digest(&mut machine, code)),
            )
        })
        .collect()
}

#[test]
fn what_a_host_may_lack_is_as_on_those_that_have_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/recorded.txt");
    let found = digests();
    if std::env::var_os("DIFFERENTIAL_RECORD").is_some() {
        let lines: String = found
            .iter()
            .map(|(code, digest)| format!("{code} {digest}\n"))
            .collect();
        std::fs::write(&path, lines).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let recorded: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(code, digest)| (code.to_owned(), digest.to_owned()))
        .collect();
    let names = |digests: &BTreeMap<String, String>| digests.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&found),
        names(&recorded),
        "DIFFERENTIAL_RECORD=1 writes the file"
    );
    let changed: Vec<&String> = found
        .keys()
        .filter(|code| found[*code] != recorded[*code])
        .collect();
    assert!(
        changed.is_empty(),
        "{} codes give something else than was recorded: {changed:?}",
        changed.len()
    );
}
