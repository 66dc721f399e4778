//! The value functions alone, on any host; the differential tests compare them with hardware.

use super::arith_int::*;
use super::element::{Element, Op, Session};
use super::float::*;
use super::lanes::*;
use super::mxcsr::{Mxcsr, Unmasked};
use super::shift::*;
use super::shuffle::*;
use super::string;
use crate::x86_64::float::flag;

/// A register with the bytes 0 to 15.
const COUNTING: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;

fn floats(values: [f32; 4]) -> u128 {
    join32(values.map(f32::to_bits))
}

fn text(bytes: &[u8]) -> u128 {
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(all)
}

#[test]
fn lanes_come_apart_and_together() {
    assert_eq!(split16(COUNTING)[1], 0x0302);
    assert_eq!(join8(split8(COUNTING)), COUNTING);
    assert_eq!(join64(split64(COUNTING)), COUNTING);
}

#[test]
fn saturating_arithmetic_stops_at_the_ends() {
    let all = |v: u8| join8([v; 16]);
    assert_eq!(paddsb(all(0x7f), all(1)), all(0x7f));
    assert_eq!(psubsb(all(0x80), all(1)), all(0x80));
    assert_eq!(paddusb(all(0xff), all(1)), all(0xff));
    assert_eq!(psubusb(all(0), all(1)), 0);
    assert_eq!(packuswb(join16([0xffff; 8]), join16([0x100; 8])), !0 << 64);
}

#[test]
fn shifts_by_the_width_or_more_clear() {
    assert_eq!(psllw(!0, 16), 0);
    assert_eq!(psrld(!0, 1 << 40), 0);
    assert_eq!(psraw(join16([0x8000; 8]), 99), !0);
    assert_eq!(psrldq(COUNTING, 15), 0x0f);
}

#[test]
fn alignment_takes_bytes_across_two_registers() {
    for count in 0..=40u8 {
        let byte = |i: u32| {
            if i < 16 {
                COUNTING.to_le_bytes()[i as usize]
            } else {
                0xaa
            }
        };
        let expected = join8(std::array::from_fn(|i| match i as u32 + count as u32 {
            at @ 0..32 => byte(at),
            _ => 0,
        }));
        assert_eq!(palignr(join8([0xaa; 16]), COUNTING, count), expected, "{count}");
    }
}

#[test]
fn masks_collect_signs() {
    assert_eq!(pmovmskb(0x80 << 120 | 0x80 << 64 | 0x80), 0x8101);
    assert_eq!(movmskps(0x8000_0000 << 96 | 0x8000_0000), 0b1001);
    assert_eq!(movmskpd(1 << 127), 0b10);
}

#[test]
fn strings_end_at_their_zero() {
    // strlen: equal each, negated, against zeros; and a search with equal ordered.
    let hello = text(b"hello");
    assert_eq!(string::implicit_length(hello, 0), 5);
    let found = string::compare(text(b"lo"), hello, 2, 5, 0x0c);
    assert_eq!((found.index(0x0c), found.carry, found.zero), (3, true, true));
    let vowels = string::compare(text(b"aeiou"), hello, 5, 5, 0);
    assert_eq!(vowels.bits, 0b10010);
    let letters = string::compare(text(b"az"), text(b"a1b2"), 2, 4, 4);
    assert_eq!(letters.bits, 0b0101);
}

#[test]
fn crc_is_castagnoli() {
    // The check value of CRC-32C, which inverts before and after.
    let crc = b"123456789"
        .iter()
        .fold(!0, |crc, byte| string::crc32(crc, *byte as u64, 1));
    assert_eq!(!crc, 0xe306_9283);
}

#[test]
fn minimum_gives_the_second_operand_where_nothing_is_less() {
    let mut mxcsr = Mxcsr::default();
    let a = floats([1.0, f32::NAN, 0.0, -3.0]);
    let b = floats([2.0, 5.0, -0.0, -2.0]);
    assert_eq!(minps(&mut mxcsr, a, b), Ok(floats([1.0, 5.0, -0.0, -3.0])));
    assert_eq!(mxcsr.bits() as u8 & flag::ALL, flag::INVALID);
}

#[test]
fn an_unmasked_exception_gives_flags_but_no_result() {
    let mut mxcsr = Mxcsr::from_bits(Mxcsr::RESET & !(1 << 9)).expect("no reserved bit");
    let one = floats([1.0; 4]);
    assert_eq!(divps(&mut mxcsr, one, 0), Err(Unmasked));
    assert_eq!(mxcsr.bits() as u8 & flag::ALL, flag::DIVIDE_BY_ZERO);
}

#[test]
fn rounding_follows_the_control_register() {
    let thirds = |rounding: u32| {
        let mut mxcsr = Mxcsr::from_bits(Mxcsr::RESET | rounding << 13).expect("no reserved bit");
        divss(&mut mxcsr, floats([1.0; 4]), floats([3.0; 4])).map(|v| v as u32)
    };
    assert_eq!(
        [0, 1, 2, 3].map(thirds),
        [0x3eaa_aaab, 0x3eaa_aaaa, 0x3eaa_aaab, 0x3eaa_aaaa].map(Ok)
    );
}

/// Numbers of every kind, edges more often than chance has them.
fn operands() -> impl Iterator<Item = u64> {
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        let mixed = state ^ state >> 29;
        match mixed >> 61 {
            0 => mixed & !(0x7ff << 52),
            1 => mixed | 0x7fe << 52,
            2 => mixed & 1 << 63 | 0x3ff << 52,
            3 => mixed & 0x801f_ffff_ffff_ffff | 0x7e << 52,
            _ => mixed,
        }
    })
}

/// With and without the host's arithmetic the same bits come out, and no flag is lost.
fn quick_and_exact_agree<E: Element + std::fmt::Debug>(convert: impl Fn(u64) -> E) {
    let settled = Mxcsr::from_bits(Mxcsr::RESET | flag::INEXACT as u32).expect("no reserved bit");
    let mut source = operands().map(convert);
    for _ in 0..40_000 {
        let (Some(a), Some(b)) = (source.next(), source.next()) else {
            return;
        };
        for op in [Op::Add, Op::Sub, Op::Mul, Op::Div] {
            let (mut quick, mut exact) = (settled, Mxcsr::default());
            let run = |mxcsr: &mut Mxcsr| {
                let mut session = Session::new(*mxcsr);
                let result = session.arithmetic(op, a, b);
                session.finish(mxcsr).map(|()| result)
            };
            assert_eq!(run(&mut quick), run(&mut exact), "{op:?} {a:?} {b:?}");
            assert_eq!(
                quick.bits(),
                exact.bits() | flag::INEXACT as u32,
                "{op:?} {a:?} {b:?}"
            );
        }
    }
}

#[test]
fn quick_arithmetic_is_exact_in_double_precision() {
    quick_and_exact_agree(|bits| bits);
}

#[test]
fn quick_arithmetic_is_exact_in_single_precision() {
    quick_and_exact_agree(|bits| (bits >> 32) as u32);
}
