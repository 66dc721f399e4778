//! The unit alone; the differential tests compare it with hardware.

use super::*;
use crate::x86_64::float::{F80, pack_f80, unpack_f64};

fn f80(number: f64) -> F80 {
    pack_f80(unpack_f64(number.to_bits()))
}

/// ST(0) rounded to double precision, popped.
fn popped(fpu: &mut Fpu) -> f64 {
    f64::from_bits(fpu.store_f64(true).expect("no exception is unmasked"))
}

/// The number with `units` added to its significand: so many units in the last place away.
fn neighbours(a: F80, b: F80) -> bool {
    a.sign_exponent == b.sign_exponent && a.significand.abs_diff(b.significand) <= 1
}

#[test]
fn numbers_come_back_as_they_went_in() {
    let mut fpu = Fpu::default();
    for number in [0.0, -0.0, 1.5, -1e300, 5e-324, f64::INFINITY] {
        fpu.load_f64(number.to_bits());
        assert_eq!(popped(&mut fpu).to_bits(), number.to_bits());
    }
}

#[test]
fn the_stack_faults_when_full_and_when_empty() {
    let mut fpu = Fpu::default();
    for n in 0..8 {
        fpu.load_integer(n);
    }
    assert_eq!(fpu.status() & 0x2ff, 0);
    fpu.load_integer(8);
    assert_eq!(fpu.register(0), F80::INDEFINITE);
    let fault = flag::INVALID as u16 | status::STACK_FAULT;
    assert_eq!(fpu.status() & (fault | status::C1), fault | status::C1);
    let mut fpu = Fpu::default();
    fpu.arithmetic(Arith::Add, 0, 1, false);
    assert_eq!(fpu.status() & (fault | status::C1), fault);
}

#[test]
fn an_unmasked_exception_pends_and_keeps_its_operands() {
    let mut fpu = Fpu::default();
    fpu.set_control(Fpu::INITIAL_CONTROL & !(flag::DIVIDE_BY_ZERO as u16));
    fpu.load_integer(0);
    fpu.load_integer(7);
    fpu.arithmetic(Arith::Div, 0, 1, false);
    assert!(fpu.exception_pending());
    assert_eq!(fpu.register(0), f80(7.0));
    fpu.clear_exceptions();
    assert!(!fpu.exception_pending());
}

#[test]
fn precision_control_rounds_registers_to_double() {
    let mut fpu = Fpu::default();
    fpu.set_control(0x027f);
    fpu.load_integer(3);
    fpu.load_constant(Constant::One);
    fpu.arithmetic(Arith::Div, 0, 1, false);
    assert_eq!(fpu.register(0), f80(1.0 / 3.0));
}

#[test]
fn decimals_survive_both_ways() {
    let mut fpu = Fpu::default();
    let digits = 0x12_3456_7890_1234_5678_u128 | 1 << 79;
    fpu.load_bcd(digits);
    assert_eq!(fpu.store_bcd(), Some(digits));
    fpu.load_f64(1e18f64.to_bits());
    assert_eq!(fpu.store_bcd(), Some(0xffff_c000_0000_0000_0000));
}

#[test]
fn images_restore_the_state() {
    let mut fpu = Fpu::default();
    fpu.load_constant(Constant::Pi);
    fpu.load_integer(-5);
    fpu.last = LastInstruction {
        opcode: 0x123,
        ip: 0x1_2345_6789,
        dp: 0x9_8765_4321,
    };
    assert_eq!(Fpu::from_fxsave(&fpu.to_fxsave(true), true), fpu);
    for width in [Width::Bits16, Width::Bits32] {
        let (mut saved, mut restored) = (fpu.clone(), Fpu::default());
        restored.restore(&saved.save(width), width);
        assert_eq!(restored.registers, fpu.registers);
        assert_eq!((restored.valid, restored.status), (fpu.valid, fpu.status));
        assert!(saved.is_empty(0));
    }
}

#[test]
fn functions_agree_with_identities_to_the_last_unit() {
    let mut fpu = Fpu::default();
    // atan2(1, 1) * 4 is pi.
    fpu.load_constant(Constant::One);
    fpu.load_constant(Constant::One);
    fpu.arc_tangent();
    let quarter = fpu.register(0);
    assert_eq!(
        (quarter.sign_exponent, quarter.significand),
        (0x3ffe, 0xc90f_daa2_2168_c235)
    );
    // log2(10) by FYL2X is FLDL2T's constant.
    let mut fpu = Fpu::default();
    fpu.load_constant(Constant::One);
    fpu.load_integer(10);
    fpu.y_log2_x();
    assert_eq!(fpu.register(0).significand, 0xd49a_784b_cd1b_8afe);
    // 2^0.5 - 1 squared and doubled leads back.
    let mut fpu = Fpu::default();
    fpu.load_f64(0.5f64.to_bits());
    fpu.two_to_the_x_minus_one();
    fpu.load_constant(Constant::One);
    fpu.arithmetic(Arith::Add, 0, 1, false);
    assert!(neighbours(
        fpu.register(0),
        F80::new(0x3fff, 0xb504_f333_f9de_6484)
    ));
}

#[test]
fn functions_agree_with_the_host_in_double_precision() {
    type Function = (fn(&mut Fpu), fn(f64) -> f64);
    let functions: [Function; 4] = [
        (Fpu::sine, f64::sin),
        (Fpu::cosine, f64::cos),
        (
            |fpu| {
                fpu.tangent();
                fpu.free_and_pop(0);
            },
            f64::tan,
        ),
        (
            |fpu| {
                fpu.load_constant(Constant::One);
                fpu.exchange(1);
                fpu.y_log2_x_plus_one();
            },
            |x| x.ln_1p() / std::f64::consts::LN_2,
        ),
    ];
    for step in 1..2000 {
        let x = step as f64 * 0.7310585786300049;
        for (n, (ours, host)) in functions.iter().enumerate() {
            let mut fpu = Fpu::default();
            fpu.load_f64(x.to_bits());
            ours(&mut fpu);
            let (result, expected) = (popped(&mut fpu), host(x));
            // The hardware's pi is off by 2^-66 in relation to the angle.
            let allowed = expected.abs() * 4e-16 + x * (1.0 + expected * expected) * 2f64.powi(-66);
            assert!(
                (result - expected).abs() <= allowed,
                "{n} {x} {result} {expected}"
            );
        }
    }
}

#[test]
fn huge_angles_are_left_alone_and_marked() {
    let mut fpu = Fpu::default();
    fpu.load_f64(1e300f64.to_bits());
    fpu.sine();
    assert_eq!(fpu.register(0), f80(1e300));
    assert_ne!(fpu.status() & status::C2, 0);
    let mut fpu = Fpu::default();
    fpu.load_f64(1e15f64.to_bits());
    fpu.sine();
    assert!((popped(&mut fpu) - 1e15f64.sin()).abs() < 1e15 * 2f64.powi(-66));
}
