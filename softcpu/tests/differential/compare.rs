//! Which differences count.
//!
//! What the architecture leaves undefined is masked: flags by `iced_x86`'s table of undefined flags, which is
//! the Intel SDM's (vol. 1, appendix A), but for shifts, where it depends on the count. What it leaves to the
//! processor's model stands in [`super::models`].

use super::case::*;
use super::encode::effective_address;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use std::ops::Range;

/// The page fault's vector.
const PAGE_FAULT: u32 = 14;
/// Exceptions that push an error code.
pub const WITH_ERROR_CODE: [u32; 6] = [8, 10, 11, 12, 13, 14];

/// Flags whose value after the instruction is undefined; `state` is there where the instruction is the first.
pub fn undefined_flags(instruction: &Instruction, state: Option<&State>) -> u64 {
    const PAIRS: [(u32, u64); 6] = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, OF),
    ];
    let mnemonic = instruction.mnemonic();
    let shifts = [
        Mnemonic::Rol,
        Mnemonic::Ror,
        Mnemonic::Rcl,
        Mnemonic::Rcr,
        Mnemonic::Shl,
        Mnemonic::Sal,
        Mnemonic::Shr,
        Mnemonic::Sar,
        Mnemonic::Shld,
        Mnemonic::Shrd,
    ];
    if shifts.contains(&mnemonic) {
        return undefined_by_shift(instruction, state);
    }
    let undefined = instruction.rflags_undefined();
    PAIRS
        .iter()
        .filter(|(bit, _)| undefined & bit != 0)
        .fold(0, |all, (_, flag)| all | flag)
}

const CF: u64 = 1;
const AF: u64 = 0x10;
const OF: u64 = 0x800;

/// Shifts and rotates: it depends on the count (Intel SDM vol. 2: SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD,
/// SHRD). OF for counts other than one, AF of shifts for counts other than zero, CF of SHL and SHR from the
/// operand's size on.
fn undefined_by_shift(instruction: &Instruction, state: Option<&State>) -> u64 {
    let last = instruction.op_count() - 1;
    let size = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() as u64,
        _ => instruction.memory_size().size() as u64,
    };
    let count = match instruction.op_kind(last) {
        OpKind::Immediate8 => Some(instruction.immediate8() as u64),
        _ => state.map(|state| state.gpr[1]),
    };
    let count = count.map(|count| count & if size == 8 { 63 } else { 31 });
    let rotate = matches!(
        instruction.mnemonic(),
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
    );
    let logical = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr
    );
    match count {
        Some(0) => 0,
        Some(1) if rotate => 0,
        Some(1) => AF,
        _ if rotate => OF,
        Some(count) if logical && count < size * 8 => OF | AF,
        _ if logical => OF | AF | CF,
        _ => OF | AF,
    }
}

/// How exactly registers must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// Bit by bit.
    Exact,
    /// XMM elements are single-precision approximations (RCPPS, RSQRTPS: relative error 1.5 * 2^-12 each).
    Approximate,
    /// x87 functions, so many units in the last place.
    Units(u64),
}

/// The tolerance for an instruction's results.
pub fn tolerance(mnemonic: Mnemonic) -> Tolerance {
    match mnemonic {
        Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss => Tolerance::Approximate,
        Mnemonic::Vrcpps | Mnemonic::Vrcpss | Mnemonic::Vrsqrtps | Mnemonic::Vrsqrtss => {
            Tolerance::Approximate
        }
        Mnemonic::Fsin
        | Mnemonic::Fcos
        | Mnemonic::Fsincos
        | Mnemonic::Fptan
        | Mnemonic::Fpatan
        | Mnemonic::F2xm1
        | Mnemonic::Fyl2x
        | Mnemonic::Fyl2xp1 => Tolerance::Units(2),
        _ => Tolerance::Exact,
    }
}

/// Parts of a memory image that differ between processors: the last instruction's opcode and addresses,
/// reserved fields, MXCSR_MASK.
fn image_holes(mnemonic: Mnemonic, size: usize) -> Vec<Range<usize>> {
    match (mnemonic, size) {
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, 14 | 94) => std::iter::once(6..14).collect(),
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, _) => std::iter::once(12..28).collect(),
        (Mnemonic::Fxsave | Mnemonic::Fxsave64, _) => vec![5..24, 28..32, 416..512],
        _ => Vec::new(),
    }
}

/// Elements of XMM registers for which any NaN is as good as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanLanes {
    /// None: NaNs must agree bit by bit.
    None,
    /// Four of 32 bits.
    Single,
    /// Two of 64 bits.
    Double,
}

/// What to leave out of a comparison.
pub struct Mask {
    /// Flags that must agree.
    pub flags: u64,
    /// Vector registers that must agree, by bit.
    pub vectors: u16,
    tolerance: Tolerance,
    /// Parts of the data page that need not agree.
    holes: Vec<Range<usize>>,
    /// XMM elements of this size agree when both are NaN.
    pub nans: NanLanes,
    /// The host may have set TOP to zero, its registers untouched.
    pub top_may_be_zero: bool,
    /// Addresses of an operand of several accesses, whose order is the processor's business: any of them may
    /// be the one that faults.
    faults: Range<u64>,
}

impl Mask {
    /// The mask of a sequence. Only its last instruction may be inexact or leave flags undefined; the
    /// generator sees to that.
    pub fn of(instructions: &[Instruction], state: &State) -> Mask {
        let mut mask = Mask {
            flags: FLAGS,
            vectors: !0,
            tolerance: Tolerance::Exact,
            holes: Vec::new(),
            nans: NanLanes::None,
            top_may_be_zero: false,
            faults: 0..0,
        };
        if let Some(last) = instructions.last() {
            let first = (instructions.len() == 1).then_some(state);
            mask.flags &= !undefined_flags(last, first);
            mask.tolerance = tolerance(last.mnemonic());
            if matches!(
                last.mnemonic(),
                Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
            ) {
                let segment = if last.segment_prefix() == Register::GS {
                    GS_BASE
                } else {
                    0
                };
                let at = state.gpr[7].wrapping_add(segment);
                mask.faults = at..at.wrapping_add(16);
            }
            if let (1, Some(at)) = (instructions.len(), effective_address(last, state)) {
                let start = at.wrapping_sub(DATA) as usize;
                let size = last.memory_size().size();
                let holes = image_holes(last.mnemonic(), size).into_iter();
                if size > 16 || size == 14 {
                    mask.faults = at..at.wrapping_add(size as u64);
                }
                mask.holes = holes
                    .map(|r| start.wrapping_add(r.start)..start.wrapping_add(r.end))
                    .collect();
            }
        }
        mask
    }

    /// Leaves `size` bytes of memory from `at` on out of the comparison.
    pub fn hide(&mut self, at: u64, size: usize) {
        let start = at.wrapping_sub(DATA) as usize;
        self.holes.push(start..start.wrapping_add(size));
    }

    fn hidden(&self, offset: usize) -> bool {
        self.holes.iter().any(|range| range.contains(&offset))
    }
}

/// The differences, as lines of text; none where the outcomes agree.
pub fn differences(native: &Outcome, soft: &Outcome, mask: &Mask) -> Vec<String> {
    let mut lines = Vec::new();
    let mut field = |name: &str, a: u128, b: u128| {
        if a != b {
            lines.push(format!("{name}: native {a:#x}, softcpu {b:#x}"));
        }
    };
    field("vector", native.vector.into(), soft.vector.into());
    if WITH_ERROR_CODE.contains(&native.vector) {
        // Whether something is mapped in the kernel's half is the kernel's business.
        let kernel = native.vector == PAGE_FAULT && native.address >> 63 != 0;
        let counted = if kernel { !1 } else { !0 };
        field(
            "error code",
            (native.error & counted).into(),
            (soft.error & counted).into(),
        );
    }
    let either = [native.address, soft.address]
        .iter()
        .all(|at| mask.faults.contains(at));
    if native.vector == PAGE_FAULT && !either {
        field("CR2", native.address.into(), soft.address.into());
    }
    let (a, b) = (&native.state, &soft.state);
    const NAMES: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
        "R14", "R15",
    ];
    for (i, name) in NAMES.iter().enumerate() {
        field(name, a.gpr[i].into(), b.gpr[i].into());
    }
    field("RIP", a.rip.into(), b.rip.into());
    field(
        "RFLAGS",
        (a.rflags & mask.flags).into(),
        (b.rflags & mask.flags).into(),
    );
    field("MXCSR", a.mxcsr().into(), b.mxcsr().into());
    let compared = |i: &usize| mask.vectors >> i & 1 != 0;
    for i in (0..16).filter(compared) {
        let nans = nan_lanes_agree(a.xmm(i), b.xmm(i), mask.nans);
        if !nans && !vectors_agree(a.xmm(i), b.xmm(i), mask.tolerance) {
            field(&format!("XMM{i}"), a.xmm(i), b.xmm(i));
        }
    }
    for i in (0..16).filter(compared) {
        let nans = nan_lanes_agree(a.upper[i], b.upper[i], mask.nans);
        if !nans && !vectors_agree(a.upper[i], b.upper[i], mask.tolerance) {
            field(&format!("upper half of YMM{i}"), a.upper[i], b.upper[i]);
        }
    }
    let emptied = mask.top_may_be_zero && a.word(2) & TOP == 0;
    let turned = if emptied { with_top_zero(b) } else { *b };
    x87_differences(a, &turned, mask.tolerance, &mut field);
    const SHOWN: usize = 8;
    let mut shown = 0;
    for (i, (x, y)) in native.memory.iter().zip(&soft.memory).enumerate() {
        if x != y && !mask.hidden(i) && shown < SHOWN {
            shown += 1;
            field(&format!("byte {i:#x}"), (*x).into(), (*y).into());
        }
    }
    lines
}

fn x87_differences(a: &State, b: &State, tolerance: Tolerance, field: &mut impl FnMut(&str, u128, u128)) {
    // Rounded up or not means nothing where the values may differ.
    let status_mask = if tolerance == Tolerance::Exact { !0 } else { !0x200 };
    field("FCW", a.word(0).into(), b.word(0).into());
    field(
        "FSW",
        (a.word(2) & status_mask).into(),
        (b.word(2) & status_mask).into(),
    );
    field("FTW", a.fx[4].into(), b.fx[4].into());
    const LOW_80: u128 = (1 << 80) - 1;
    for i in 0..8 {
        let (x, y) = (a.slot(32 + 16 * i) & LOW_80, b.slot(32 + 16 * i) & LOW_80);
        let close = match tolerance {
            Tolerance::Units(n) => units(x).abs_diff(units(y)) <= n as u128,
            _ => false,
        };
        if !close {
            field(&format!("ST{i}"), x, y);
        }
    }
}

/// The field TOP of the x87 status word.
const TOP: u16 = 0x3800;

/// The same x87 registers as seen from TOP 0: FXSAVE stores them from the top of the stack on.
fn with_top_zero(state: &State) -> State {
    let mut turned = *state;
    let top = usize::from(state.word(2) & TOP) >> 11;
    for i in 0..8 {
        turned.set_slot(32 + 16 * ((i + top) % 8), state.slot(32 + 16 * i));
    }
    turned.fx[3] &= !((TOP >> 8) as u8);
    turned
}

/// All elements are equal or both NaN.
fn nan_lanes_agree(a: u128, b: u128, lanes: NanLanes) -> bool {
    let single = |v: u128, i: u32| f32::from_bits((v >> (32 * i)) as u32);
    let double = |v: u128, i: u32| f64::from_bits((v >> (64 * i)) as u64);
    match lanes {
        NanLanes::None => false,
        NanLanes::Single => (0..4).all(|i| {
            let (x, y) = (single(a, i), single(b, i));
            x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan()
        }),
        NanLanes::Double => (0..2).all(|i| {
            let (x, y) = (double(a, i), double(b, i));
            x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan()
        }),
    }
}

/// A position on the line of all 80-bit numbers of one sign.
fn units(bits: u128) -> u128 {
    let exponent = bits >> 64;
    (exponent << 63) + (bits as u64 & !(1 << 63)) as u128
}

fn vectors_agree(a: u128, b: u128, tolerance: Tolerance) -> bool {
    if tolerance != Tolerance::Approximate {
        return a == b;
    }
    (0..4).all(|i| {
        let lane = |v: u128| f32::from_bits((v >> (32 * i)) as u32);
        let (x, y) = (lane(a) as f64, lane(b) as f64);
        // Tiny results are flushed, some processors a little early.
        let tiny = 2f64.powi(-125);
        x.to_bits() == y.to_bits()
            || x.abs() < tiny && y.abs() < tiny
            || (x - y).abs() <= x.abs() * 3.0 / 4096.0
    })
}

/// The instruction writes memory that [`image_holes`] masks, or its results are inexact: not inside a
/// sequence.
pub fn only_alone(code: Code) -> bool {
    let mnemonic = code.mnemonic();
    tolerance(mnemonic) != Tolerance::Exact
        || matches!(
            mnemonic,
            Mnemonic::Fnstenv
                | Mnemonic::Fnsave
                | Mnemonic::Fxsave
                | Mnemonic::Fxsave64
                | Mnemonic::Fldenv
                | Mnemonic::Frstor
                | Mnemonic::Fxrstor
                | Mnemonic::Fxrstor64
        )
}
