//! Runs mutations of the committed inputs through the targets, as a fuzzer without coverage feedback would.
//! They are the same in every run, so that a new failure comes from the change under test; `KILN_FUZZ_SEED`
//! selects others and `KILN_FUZZ_TIMES` multiplies their number.

use std::fs;
use std::path::Path;

use kiln_fuzz::TARGETS;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};

/// Changes of one input at most.
const MAX_CHANGES: usize = 8;
/// Bytes of one input at most, as `cargo xtask fuzz` has it.
const MAX_LEN: usize = 64 << 10;
/// Numbers at which sizes, indices and signs turn.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 63,
    u64::MAX,
];

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().expect("a number"),
        Err(_) => default,
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("every target has a corpus")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    paths.sort();
    let inputs = paths
        .iter()
        .map(|path| fs::read(path).expect("the corpus can be read"));
    inputs.filter(|input| !input.is_empty()).collect()
}

fn mutant(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs.choose(random).expect("a corpus is not empty").clone();
    for _ in 0..random.gen_range(1..=MAX_CHANGES) {
        let at = random.gen_range(0..=bytes.len());
        let rest = bytes.len() - at;
        match random.gen_range(0..7) {
            0 if rest > 0 => bytes[at] ^= 1 << random.gen_range(0..8),
            1 if rest > 0 => bytes[at] = random.r#gen(),
            2 if rest > 0 => drop(bytes.drain(at..at + random.gen_range(1..=rest.min(64)))),
            3 => {
                let mut noise = vec![0; random.gen_range(1..=16)];
                random.fill_bytes(&mut noise);
                bytes.splice(at..at, noise);
            }
            4 => {
                // Over what is there, in either order of bytes.
                let edge = EDGES.choose(random).expect("there are some");
                let len = (1 << random.gen_range(0..4)).min(rest);
                match random.r#gen() {
                    true => bytes[at..at + len].copy_from_slice(&edge.to_le_bytes()[..len]),
                    false => bytes[at..at + len].copy_from_slice(&edge.to_be_bytes()[8 - len..]),
                }
            }
            5 => {
                // The end of another one.
                let other = inputs.choose(random).expect("a corpus is not empty");
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.gen_range(0..other.len())..]);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes.truncate(MAX_LEN);
    bytes
}

/// Tries `count` mutants, or so many times that.
fn alter(name: &str, count: u64) {
    let target = kiln_fuzz::target(name).expect("a target of that name");
    let inputs = corpus(name);
    let seed = from_environment("KILN_FUZZ_SEED", 1);
    for number in 0..count * from_environment("KILN_FUZZ_TIMES", 1) {
        let input = mutant(&mut StdRng::seed_from_u64(seed << 32 | number), &inputs);
        let outcome = std::panic::catch_unwind(|| target(&input));
        if let Err(panic) = outcome {
            let path = std::env::temp_dir().join(format!("kiln-{name}-{seed}-{number}"));
            fs::write(&path, &input).expect("the input can be written");
            println!("mutant {number} of seed {seed} is in {}", path.display());
            std::panic::resume_unwind(panic);
        }
    }
}

macro_rules! targets {
    ($($name:ident: $count:expr),*) => {
        $(
            #[test]
            fn $name() {
                alter(stringify!($name), $count);
            }
        )*

        #[test]
        fn every_target_has_its_mutants() {
            assert!(TARGETS.iter().map(|(name, _)| *name).eq([$(stringify!($name)),*]));
        }
    };
}

// As many as take some seconds: what costs much of one is a guest that runs (`softcpu`), or a host process
// that is waited for (`vsock`).
targets!(
    agent: 40_000,
    ec2_request: 20_000,
    image: 10_000,
    net: 7_000,
    packages: 60_000,
    platform: 150_000,
    recipe: 40_000,
    snapshot: 1_000,
    softcpu: 2_000,
    virtio: 5_000,
    vsock: 400
);
