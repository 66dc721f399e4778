//! Packing, unpacking, shuffling, blending, widening, broadcasting, and what crosses lanes.

use iced_x86::Mnemonic;

use super::forms::*;
use super::operand::*;
use crate::x86_64::cpu::{Cpu, Handler, Op};
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::lanes::*;
use crate::x86_64::simd::shuffle::*;

/// The handler of an instruction of this table. `constant`: the last operand is an immediate.
pub(super) fn handler(mnemonic: Mnemonic, shape: Shape, constant: bool) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpacksswb => by_shape!(shape; binary; packsswb),
        M::Vpackuswb => by_shape!(shape; binary; packuswb),
        M::Vpackssdw => by_shape!(shape; binary; packssdw),
        M::Vpackusdw => by_shape!(shape; binary; packusdw),
        M::Vpunpcklbw => by_shape!(shape; binary; punpcklbw),
        M::Vpunpcklwd => by_shape!(shape; binary; punpcklwd),
        M::Vpunpckldq | M::Vunpcklps => by_shape!(shape; binary; punpckldq),
        M::Vpunpcklqdq | M::Vunpcklpd => by_shape!(shape; binary; punpcklqdq),
        M::Vpunpckhbw => by_shape!(shape; binary; punpckhbw),
        M::Vpunpckhwd => by_shape!(shape; binary; punpckhwd),
        M::Vpunpckhdq | M::Vunpckhps => by_shape!(shape; binary; punpckhdq),
        M::Vpunpckhqdq | M::Vunpckhpd => by_shape!(shape; binary; punpckhqdq),
        M::Vpshufb => by_shape!(shape; binary; pshufb),
        M::Vshufps => by_shape!(shape; binary_control; 0, shufps),
        M::Vshufpd => by_shape!(shape; binary_control; 2, shufpd),
        M::Vpalignr => by_shape!(shape; binary_control; 0, palignr),
        M::Vpblendw => by_shape!(shape; binary_control; 0, pblendw),
        M::Vblendps | M::Vpblendd => by_shape!(shape; binary_control; 4, blendps),
        M::Vblendpd => by_shape!(shape; binary_control; 2, blendpd),
        M::Vpblendvb => by_shape!(shape; blend; pblendvb),
        M::Vblendvps => by_shape!(shape; blend; blendvps),
        M::Vblendvpd => by_shape!(shape; blend; blendvpd),
        M::Vpshufd => by_shape!(shape; unary_control; 0, pshufd),
        M::Vpshuflw => by_shape!(shape; unary_control; 0, pshuflw),
        M::Vpshufhw => by_shape!(shape; unary_control; 0, pshufhw),
        M::Vpermilps if constant => by_shape!(shape; unary_control; 0, pshufd),
        M::Vpermilps => by_shape!(shape; binary; permilps),
        M::Vpermilpd if constant => by_shape!(shape; unary_control; 2, |b, control| shufpd(b, b, control)),
        M::Vpermilpd => by_shape!(shape; binary; permilpd),
        M::Vmovsldup => by_shape!(shape; unary; movsldup),
        M::Vmovshdup => by_shape!(shape; unary; movshdup),
        M::Vmovddup if shape.wide => by_shape!(shape; unary; movddup),
        M::Vmovddup => by_memory!(shape; low_unary, _; load64, movddup),
        _ => return crossing(mnemonic, shape).or_else(|| widening(mnemonic, shape)),
    })
}

/// VPERMILPS with a register of indices.
fn permilps(b: u128, control: u128) -> u128 {
    let source = split32(b);
    map32(control, |index| source[index as usize & 3])
}

/// VPERMILPD with a register of indices.
fn permilpd(b: u128, control: u128) -> u128 {
    let source = split64(b);
    map64(control, |index| source[index as usize >> 1 & 1])
}

/// `a = f(b)`, 128 bits, where `load` reads as much of `b` as the instruction uses.
#[inline(always)]
fn low_unary<T: Into<u128>, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    load: impl FnOnce(&mut Cpu, &Op) -> Result<T, Stop>,
    f: impl Fn(u128) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = small_source::<MEMORY, T>(cpu, op, op.b, load)?;
    set(cpu, op.a, [f(b)]);
    Ok(())
}

/// What moves elements from one lane to the other.
fn crossing(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vperm2f128 | M::Vperm2i128 => by_memory!(shape; permute_lanes;),
        M::Vpermd | M::Vpermps => by_memory!(shape; permute32;),
        M::Vpermq | M::Vpermpd => by_memory!(shape; permute64;),
        M::Vinsertf128 | M::Vinserti128 => by_memory!(shape; insert_lane;),
        M::Vextractf128 | M::Vextracti128 => by_memory!(shape; extract_lane;),
        M::Vbroadcastss | M::Vpbroadcastd => by_shape!(shape; broadcast32;),
        M::Vbroadcastsd | M::Vpbroadcastq => by_shape!(shape; broadcast64;),
        M::Vpbroadcastw => by_shape!(shape; broadcast16;),
        M::Vpbroadcastb => by_shape!(shape; broadcast8;),
        M::Vbroadcastf128 | M::Vbroadcasti128 => |cpu, op| {
            enter(cpu)?;
            let lane = load128(cpu, op)?;
            set(cpu, op.a, [lane; 2]);
            Ok(())
        },
        _ => return None,
    })
}

/// VPERM2F128, VPERM2I128: each lane of the destination is any of the four, or zero.
fn permute_lanes<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let [c0, c1] = source::<2, MEMORY>(cpu, op, op.c)?;
    let [b0, b1] = get(cpu, op.b);
    let all = [b0, b1, c0, c1];
    let choose = |control: u64| match control & 8 {
        0 => all[control as usize & 3],
        _ => 0,
    };
    set(cpu, op.a, [choose(op.imm), choose(op.imm >> 4)]);
    Ok(())
}

fn halves32([low, high]: [u128; 2]) -> [u32; 8] {
    let (low, high) = (split32(low), split32(high));
    std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
}

/// VPERMD, VPERMPS: the first source has the indices.
fn permute32<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let elements = halves32(source::<2, MEMORY>(cpu, op, op.c)?);
    let indices: [u128; 2] = get(cpu, op.b);
    let lanes = indices.map(|lane| map32(lane, |index| elements[index as usize & 7]));
    set(cpu, op.a, lanes);
    Ok(())
}

/// VPERMQ, VPERMPD: the immediate has the indices.
fn permute64<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let [low, high] = source::<2, MEMORY>(cpu, op, op.b)?;
    let all = [low as u64, (low >> 64) as u64, high as u64, (high >> 64) as u64];
    let [a, b, c, d] = [0, 2, 4, 6].map(|at| all[op.imm as usize >> at & 3]);
    set(cpu, op.a, [concat64(a, b), concat64(c, d)]);
    Ok(())
}

fn insert_lane<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let [c] = source::<1, MEMORY>(cpu, op, op.c)?;
    let mut lanes: [u128; 2] = get(cpu, op.b);
    lanes[op.imm as usize & 1] = c;
    set(cpu, op.a, lanes);
    Ok(())
}

fn extract_lane<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    enter(cpu)?;
    let lanes: [u128; 2] = get(cpu, op.b);
    let lane = lanes[op.imm as usize & 1];
    if MEMORY {
        return store128(cpu, op, lane);
    }
    set(cpu, op.a, [lane]);
    Ok(())
}

macro_rules! broadcasts {
    ($($name:ident $load:ident $element:ty, $factor:literal;)*) => {$(
        fn $name<const N: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
            enter(cpu)?;
            let element = small_source::<MEMORY, $element>(cpu, op, op.b, $load)? as $element;
            set(cpu, op.a, [element as u128 * $factor; N]);
            Ok(())
        }
    )*};
}

broadcasts! {
    broadcast8 load8 u8, 0x0101_0101_0101_0101_0101_0101_0101_0101;
    broadcast16 load16 u16, 0x0001_0001_0001_0001_0001_0001_0001_0001;
    broadcast32 load32 u32, 0x0000_0001_0000_0001_0000_0001_0000_0001;
    broadcast64 load64 u64, 0x0000_0000_0000_0001_0000_0000_0000_0001;
}

/// VPMOVSX and VPMOVZX: the function widens as many of the source's low bytes as fill a lane, of which there
/// are `16 / ratio`.
fn widening(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    macro_rules! widen {
        ($f:expr, $ratio:literal, $narrow:ident, $wide:ident) => {
            if shape.wide {
                by_memory!(shape; widen_to_two, _; $wide, $ratio, $f)
            } else {
                by_memory!(shape; low_unary, _; $narrow, $f)
            }
        };
    }
    Some(match mnemonic {
        M::Vpmovsxbw => widen!(pmovsxbw, 2, load64, load128),
        M::Vpmovzxbw => widen!(pmovzxbw, 2, load64, load128),
        M::Vpmovsxbd => widen!(pmovsxbd, 4, load32, load64),
        M::Vpmovzxbd => widen!(pmovzxbd, 4, load32, load64),
        M::Vpmovsxbq => widen!(pmovsxbq, 8, load16, load32),
        M::Vpmovzxbq => widen!(pmovzxbq, 8, load16, load32),
        M::Vpmovsxwd => widen!(pmovsxwd, 2, load64, load128),
        M::Vpmovzxwd => widen!(pmovzxwd, 2, load64, load128),
        M::Vpmovsxwq => widen!(pmovsxwq, 4, load32, load64),
        M::Vpmovzxwq => widen!(pmovzxwq, 4, load32, load64),
        M::Vpmovsxdq => widen!(pmovsxdq, 2, load64, load128),
        M::Vpmovzxdq => widen!(pmovzxdq, 2, load64, load128),
        _ => return None,
    })
}

#[inline(always)]
fn widen_to_two<T: Into<u128>, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    load: impl FnOnce(&mut Cpu, &Op) -> Result<T, Stop>,
    ratio: u32,
    f: impl Fn(u128) -> u128,
) -> Flow {
    enter(cpu)?;
    let b = small_source::<MEMORY, T>(cpu, op, op.b, load)?;
    set(cpu, op.a, [f(b), f(b >> (128 / ratio))]);
    Ok(())
}
