//! The core against `rustc_apfloat` (all rounding modes, four formats) and against the host (square root).

use super::*;
use rustc_apfloat::ieee::{Double, Half, Single, X87DoubleExtended};
use rustc_apfloat::{Float, Round, Status, StatusAnd};

/// SplitMix64: enough randomness, and the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Bits of a number of `exponent` exponent and `fraction` fraction bits, near an edge more often than
    /// not.
    fn number(&mut self, exponent: u32, fraction: u32) -> u64 {
        let max = (1u64 << exponent) - 1;
        let biased = match self.next() % 6 {
            0 => self.next() % 3,
            1 => max - 1 - self.next() % 2,
            2 => max / 2 + self.next() % 5,
            3 => (max / 2).saturating_sub(self.next() % (fraction as u64 + 3)),
            _ => self.next() % max,
        };
        let mask = (1u64 << fraction) - 1;
        let bits = match self.next() % 5 {
            0 => 0,
            1 => mask,
            2 => 1 << (self.next() % fraction as u64),
            _ => self.next() & mask,
        };
        (self.next() & 1) << (exponent + fraction) | biased << fraction | bits
    }
}

const MODES: [(Rounding, Round); 4] = [
    (Rounding::Nearest, Round::NearestTiesToEven),
    (Rounding::Down, Round::TowardNegative),
    (Rounding::Up, Round::TowardPositive),
    (Rounding::Zero, Round::TowardZero),
];

type Operation = fn(&mut Environment, &Target, Value, Value) -> Value;
const OPERATIONS: [Operation; 4] = [add, sub, mul, div];

fn oracle<F: Float>(operation: usize, a: F, b: F, mode: Round) -> StatusAnd<F> {
    match operation {
        0 => a.add_r(b, mode),
        1 => a.sub_r(b, mode),
        2 => a.mul_r(b, mode),
        _ => a.div_r(b, mode),
    }
}

/// The oracle's flags, but for underflow, which it judges after rounding to the denormal's precision.
fn oracle_flags(status: Status) -> u8 {
    let pairs = [
        (Status::INVALID_OP, flag::INVALID),
        (Status::DIV_BY_ZERO, flag::DIVIDE_BY_ZERO),
        (Status::OVERFLOW, flag::OVERFLOW),
        (Status::INEXACT, flag::INEXACT),
    ];
    pairs
        .iter()
        .filter(|(s, _)| status.contains(*s))
        .fold(0, |all, (_, f)| all | f)
}

/// Runs every operation in every mode on random operands that are numbers.
fn against_oracle<F: Float>(
    target: &Target,
    mut operand: impl FnMut(&mut Random) -> u128,
    unpack: impl Fn(u128) -> Value,
    pack: impl Fn(Value) -> u128,
) {
    let mut random = Random(1);
    for _ in 0..20_000 {
        let (a, b) = (operand(&mut random), operand(&mut random));
        for (operation, compute) in OPERATIONS.iter().enumerate() {
            for (rounding, mode) in MODES {
                let mut env = Environment {
                    rounding,
                    ..Environment::nearest()
                };
                let ours = compute(&mut env, target, unpack(a), unpack(b));
                let theirs = oracle(operation, F::from_bits(a), F::from_bits(b), mode);
                let what = format!("operation {operation} {rounding:?} {a:#x} {b:#x}");
                if theirs.value.is_nan() {
                    assert_eq!(ours.class, Class::QuietNan, "{what}");
                } else {
                    assert_eq!(pack(ours), theirs.value.to_bits(), "{what}");
                }
                // The oracle reports no overflow where the mode delivers the largest finite number.
                let judged = match rounding {
                    Rounding::Nearest => !flag::UNDERFLOW,
                    _ => !(flag::UNDERFLOW | flag::OVERFLOW),
                };
                assert_eq!(env.flags & judged, oracle_flags(theirs.status) & judged, "{what}");
            }
        }
    }
}

#[test]
fn single_precision_agrees_with_the_oracle() {
    against_oracle::<Single>(
        &Target::F32,
        |r| r.number(8, 23) as u128,
        |bits| unpack_f32(bits as u32),
        |v| pack_f32(v) as u128,
    );
}

#[test]
fn double_precision_agrees_with_the_oracle() {
    against_oracle::<Double>(
        &Target::F64,
        |r| r.number(11, 52) as u128,
        |bits| unpack_f64(bits as u64),
        |v| pack_f64(v) as u128,
    );
}

#[test]
fn double_extended_precision_agrees_with_the_oracle() {
    against_oracle::<X87DoubleExtended>(
        &Target::F80,
        |r| {
            let head = r.number(15, 48) >> 48;
            let integer = (head & 0x7fff != 0) as u64;
            let low = r.number(15, 48) & 0xffff_ffff_ffff;
            F80::new(head as u16, integer << 63 | low << 15 | low >> 33).to_bits()
        },
        |bits| unpack_f80(F80::from_bits(bits)),
        |v| pack_f80(v).to_bits(),
    );
}

/// Multiplies and adds with one rounding, addends of about the product's size among others.
fn fused_against_oracle<F: Float>(
    target: &Target,
    operand: impl Fn(&mut Random) -> u64,
    unpack: impl Fn(u64) -> Value,
    pack: impl Fn(Value) -> u64,
) {
    let mut random = Random(4);
    for round in 0..60_000 {
        let [a, b, mut c] = [(); 3].map(|()| operand(&mut random));
        if round % 2 == 0 {
            // Near cancellation.
            let mut env = Environment::nearest();
            let product = mul(&mut env, target, unpack(a), unpack(b));
            c = pack(product.negated())
                .wrapping_add(random.next() % 5)
                .wrapping_sub(2);
        }
        let [x, y, z] = [a, b, c].map(&unpack);
        if [x, y, z].iter().any(Value::is_nan) {
            continue;
        }
        for (rounding, mode) in MODES {
            let mut env = Environment {
                rounding,
                ..Environment::nearest()
            };
            let ours = fused(&mut env, target, x, y, z);
            let [fa, fb, fc] = [a, b, c].map(|bits| F::from_bits(bits as u128));
            let theirs = fa.mul_add_r(fb, fc, mode);
            let what = format!("{rounding:?} {a:#x} {b:#x} {c:#x}");
            if theirs.value.is_nan() {
                assert_eq!(ours.class, Class::QuietNan, "{what}");
            } else {
                assert_eq!(pack(ours) as u128, theirs.value.to_bits(), "{what}");
            }
            let judged = flag::INVALID | flag::INEXACT;
            assert_eq!(env.flags & judged, oracle_flags(theirs.status) & judged, "{what}");
        }
    }
}

#[test]
fn fused_multiplication_and_addition_agrees_with_the_oracle() {
    fused_against_oracle::<Single>(
        &Target::F32,
        |r| r.number(8, 23),
        |bits| unpack_f32(bits as u32),
        |v| pack_f32(v) as u64,
    );
    fused_against_oracle::<Double>(&Target::F64, |r| r.number(11, 52), unpack_f64, pack_f64);
}

#[test]
fn half_precision_agrees_with_the_oracle() {
    against_oracle::<Half>(
        &Target::F16,
        |r| r.number(5, 10) as u128,
        |bits| unpack_f16(bits as u16),
        |v| pack_f16(v) as u128,
    );
}

#[test]
fn square_root_agrees_with_the_host() {
    let mut random = Random(2);
    for _ in 0..50_000 {
        let bits = random.number(11, 52) & !(1 << 63);
        let mut env = Environment::nearest();
        let root = sqrt(&mut env, &Target::F64, unpack_f64(bits));
        assert_eq!(pack_f64(root), f64::from_bits(bits).sqrt().to_bits(), "{bits:#x}");
    }
}

#[test]
fn every_single_precision_pattern_survives_unpacking() {
    for bits in (0..=u32::MAX).step_by(4097) {
        assert_eq!(pack_f32(round_trip(unpack_f32(bits))), bits);
    }
}

/// A denormal is normalised by unpacking; rounding puts it back.
fn round_trip(value: Value) -> Value {
    match value.class {
        Class::Finite => add(
            &mut Environment::nearest(),
            &Target::F32,
            value,
            Value::zero(false),
        ),
        _ => value,
    }
}

#[test]
fn tininess_is_judged_after_rounding_to_an_unbounded_exponent() {
    // The largest number below the smallest normal one that rounds up to it in 24 bits: not tiny; and one
    // that rounds up only because the denormal's quantum is coarser: tiny.
    let mut env = Environment::nearest();
    let almost = u128::MAX;
    let v = round::round(&mut env, &Target::F32, false, -127, almost);
    assert_eq!((pack_f32(v), env.flags), (0x0080_0000, flag::INEXACT));
    let mut env = Environment::nearest();
    let v = round::round(&mut env, &Target::F32, false, -127, !0 << (128 - 24));
    assert_eq!(
        (pack_f32(v), env.flags),
        (0x0080_0000, flag::INEXACT | flag::UNDERFLOW)
    );
}

#[test]
fn integers_round_as_asked_and_saturate_to_the_indefinite() {
    let cases = [
        (2.5, Rounding::Nearest, 2),
        (3.5, Rounding::Nearest, 4),
        (-2.5, Rounding::Down, -3),
        (-2.5, Rounding::Up, -2),
        (2.000_001, Rounding::Up, 3),
        (-0.1, Rounding::Zero, 0),
        (2_147_483_647.4, Rounding::Nearest, i32::MAX as i64),
    ];
    for (number, rounding, expected) in cases {
        let mut env = Environment {
            rounding,
            ..Environment::nearest()
        };
        assert_eq!(
            to_integer(&mut env, unpack_f64(f64::to_bits(number)), 32),
            expected,
            "{number}"
        );
        assert_eq!(env.flags, flag::INEXACT);
    }
    for number in [2_147_483_648.0, -2_147_483_649.0, f64::INFINITY, f64::NAN, 1e300] {
        let mut env = Environment::nearest();
        assert_eq!(
            to_integer(&mut env, unpack_f64(f64::to_bits(number)), 32),
            i32::MIN as i64
        );
        assert_eq!(env.flags, flag::INVALID, "{number}");
    }
}

#[test]
fn remainders_match_the_exact_ones() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let a = f64::from_bits(random.number(11, 52));
        let b = a * f64::from_bits(0x3ff << 52 | random.next() >> 12) / (1u64 << (random.next() % 40)) as f64;
        if !a.is_normal() || !b.is_normal() {
            continue;
        }
        let (rest, quotient) = remainder(
            unpack_f64(a.to_bits()),
            unpack_f64(b.to_bits()),
            Quotient::Truncated,
        );
        let rest = add(
            &mut Environment::nearest(),
            &Target::F64,
            rest,
            Value::zero(rest.sign),
        );
        assert_eq!(pack_f64(rest), (a % b).to_bits(), "{a:e} % {b:e}");
        assert!(quotient.is_some());
    }
}
