//! Instructions with a memory operand.

use super::begin;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::float::{self, Environment, F80, Target, Value, unpack_f32, unpack_f64};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::operand::{
    load16, load32, load64, load80, probe_write, store16, store32, store64, store80,
};
use crate::x86_64::x87::{Arith, Fpu};
use iced_x86::Code;

fn f32(cpu: &mut Cpu, op: &Op) -> Result<Value, Stop> {
    load32(cpu, op).map(unpack_f32)
}

fn f64(cpu: &mut Cpu, op: &Op) -> Result<Value, Stop> {
    load64(cpu, op).map(unpack_f64)
}

fn i16(cpu: &mut Cpu, op: &Op) -> Result<Value, Stop> {
    load16(cpu, op).map(|v| integer(v as i16 as i64))
}

fn i32(cpu: &mut Cpu, op: &Op) -> Result<Value, Stop> {
    load32(cpu, op).map(|v| integer(v as i32 as i64))
}

/// An integer operand: always exact.
fn integer(value: i64) -> Value {
    float::from_i64(&mut Environment::nearest(), &Target::F80, value)
}

/// Fetches the operand, then computes.
macro_rules! with_operand {
    ($load:ident, |$fpu:ident, $b:ident| $f:expr) => {
        (|cpu, op| {
            begin(cpu, op)?;
            let $b = $load(cpu, op)?;
            let $fpu = &mut cpu.x87;
            $f;
            Ok(())
        }) as Handler
    };
}

/// Computes what to store on a copy of the unit, which becomes the unit only when memory has taken it.
fn store<T>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl FnOnce(&mut Fpu) -> Option<T>,
    write: impl FnOnce(&mut Cpu, &Op, T) -> Flow,
) -> Flow {
    begin(cpu, op)?;
    let mut next = cpu.x87.clone();
    match f(&mut next) {
        Some(value) => write(cpu, op, value)?,
        // An unmasked exception withholds the store, but a fault of the address comes before it.
        None => probe_write(cpu, op, size_of::<T>())?,
    }
    cpu.x87 = next;
    Ok(())
}

macro_rules! store {
    ($write:expr, |$fpu:ident| $f:expr) => {
        (|cpu, op| store(cpu, op, |$fpu| $f, $write)) as Handler
    };
}

/// Arithmetic and comparison.
pub(super) fn arithmetic(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fadd_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::Add, b)),
        Code::Fmul_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::Mul, b)),
        Code::Fsub_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::Sub, b)),
        Code::Fsubr_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::SubReversed, b)),
        Code::Fdiv_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::Div, b)),
        Code::Fdivr_m32fp => with_operand!(f32, |fpu, b| fpu.arithmetic_memory(Arith::DivReversed, b)),
        Code::Fcom_m32fp => with_operand!(f32, |fpu, b| fpu.compare_memory(b, 0)),
        Code::Fcomp_m32fp => with_operand!(f32, |fpu, b| fpu.compare_memory(b, 1)),
        Code::Fadd_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::Add, b)),
        Code::Fmul_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::Mul, b)),
        Code::Fsub_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::Sub, b)),
        Code::Fsubr_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::SubReversed, b)),
        Code::Fdiv_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::Div, b)),
        Code::Fdivr_m64fp => with_operand!(f64, |fpu, b| fpu.arithmetic_memory(Arith::DivReversed, b)),
        Code::Fcom_m64fp => with_operand!(f64, |fpu, b| fpu.compare_memory(b, 0)),
        Code::Fcomp_m64fp => with_operand!(f64, |fpu, b| fpu.compare_memory(b, 1)),
        Code::Fiadd_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::Add, b)),
        Code::Fimul_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::Mul, b)),
        Code::Fisub_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::Sub, b)),
        Code::Fisubr_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::SubReversed, b)),
        Code::Fidiv_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::Div, b)),
        Code::Fidivr_m32int => with_operand!(i32, |fpu, b| fpu.arithmetic_memory(Arith::DivReversed, b)),
        Code::Ficom_m32int => with_operand!(i32, |fpu, b| fpu.compare_memory(b, 0)),
        Code::Ficomp_m32int => with_operand!(i32, |fpu, b| fpu.compare_memory(b, 1)),
        Code::Fiadd_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::Add, b)),
        Code::Fimul_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::Mul, b)),
        Code::Fisub_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::Sub, b)),
        Code::Fisubr_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::SubReversed, b)),
        Code::Fidiv_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::Div, b)),
        Code::Fidivr_m16int => with_operand!(i16, |fpu, b| fpu.arithmetic_memory(Arith::DivReversed, b)),
        Code::Ficom_m16int => with_operand!(i16, |fpu, b| fpu.compare_memory(b, 0)),
        Code::Ficomp_m16int => with_operand!(i16, |fpu, b| fpu.compare_memory(b, 1)),
        _ => return None,
    })
}

/// Loads and stores.
pub(super) fn transfer(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fld_m32fp => with_operand!(load32, |fpu, b| fpu.load_f32(b)),
        Code::Fld_m64fp => with_operand!(load64, |fpu, b| fpu.load_f64(b)),
        Code::Fld_m80fp => with_operand!(load80, |fpu, b| fpu.push(F80::from_bits(b))),
        Code::Fild_m16int => with_operand!(load16, |fpu, b| fpu.load_integer(b as i16 as i64)),
        Code::Fild_m32int => with_operand!(load32, |fpu, b| fpu.load_integer(b as i32 as i64)),
        Code::Fild_m64int => with_operand!(load64, |fpu, b| fpu.load_integer(b as i64)),
        Code::Fbld_m80bcd => with_operand!(load80, |fpu, b| fpu.load_bcd(b)),
        Code::Fst_m32fp => store!(store32, |fpu| fpu.store_f32(false)),
        Code::Fstp_m32fp => store!(store32, |fpu| fpu.store_f32(true)),
        Code::Fst_m64fp => store!(store64, |fpu| fpu.store_f64(false)),
        Code::Fstp_m64fp => store!(store64, |fpu| fpu.store_f64(true)),
        Code::Fstp_m80fp => store!(store80, |fpu| fpu.store_f80().map(F80::to_bits)),
        Code::Fbstp_m80bcd => store!(store80, |fpu| fpu.store_bcd()),
        Code::Fist_m16int => store!(store16, |fpu| fpu
            .store_integer(16, false, false)
            .map(|v| v as u16)),
        Code::Fistp_m16int => store!(store16, |fpu| fpu
            .store_integer(16, false, true)
            .map(|v| v as u16)),
        Code::Fisttp_m16int => store!(store16, |fpu| fpu.store_integer(16, true, true).map(|v| v as u16)),
        Code::Fist_m32int => store!(store32, |fpu| fpu
            .store_integer(32, false, false)
            .map(|v| v as u32)),
        Code::Fistp_m32int => store!(store32, |fpu| fpu
            .store_integer(32, false, true)
            .map(|v| v as u32)),
        Code::Fisttp_m32int => store!(store32, |fpu| fpu.store_integer(32, true, true).map(|v| v as u32)),
        Code::Fistp_m64int => store!(store64, |fpu| fpu
            .store_integer(64, false, true)
            .map(|v| v as u64)),
        Code::Fisttp_m64int => store!(store64, |fpu| fpu.store_integer(64, true, true).map(|v| v as u64)),
        _ => return None,
    })
}
