//! The first steps of a kernel, as a short routine at EL1 without MMU: an exception, the counter,
//! timed loops.

use crate::accel::kvm::scratch::Routine;
use crate::accel::{Error, Exit};
use crate::arch::Boot;
use crate::arch::aarch64::{Boot as State, layout};
use crate::memory::{Bytes, GuestAddress, allocate};

/// RAM of the scratch machine, and the places in it.
const RAM: u64 = 64 << 10;
const CODE: u64 = layout::RAM;
/// The exception vectors, and the one for a synchronous exception from where the routine runs (Arm ARM
/// D1.3.1.5).
const VECTORS: u64 = CODE + 0x1000;
const SYNCHRONOUS: u64 = VECTORS + 0x200;
/// The routine reports each step that it begins with a one-byte store here, and a wrong result with one at
/// the next address.
const REPORT: u64 = layout::SERIAL;

/// Steps, in order. The timed loop runs once for each of the last steps but one; the last step means the end.
const STEPS: [&str; 7] = [
    "the first instruction",
    "brk through the vectors",
    "the virtual counter",
    "the first timed loop",
    "the second timed loop",
    "the third timed loop",
    "the end",
];
const FIRST_LOOP: usize = 3;
/// Rounds of the timed loop, two instructions each: 0.1 ms on hardware.
const ROUNDS: u32 = 100_000;

/// Instructions (Arm ARM C6), with X1 and X2 for scratch, X19 the address of reports, X20 the count of
/// exceptions.
const BRK: u32 = 0xd420_0000;
const ERET: u32 = 0xd69f_03e0;
const ISB: u32 = 0xd503_3fdf;
const MSR_VBAR_EL1_X1: u32 = 0xd518_c001;
const MRS_X1_ELR_EL1: u32 = 0xd538_4021;
const MSR_ELR_EL1_X1: u32 = 0xd518_4021;
const MRS_X1_CNTVCT_EL0: u32 = 0xd53b_e041;
const MRS_X2_CNTVCT_EL0: u32 = 0xd53b_e042;
const ADD_X1_X1_4: u32 = 0x9100_1021;
const ADD_X20_X20_1: u32 = 0x9100_0694;
const SUBS_X1_X1_1: u32 = 0xf100_0421;
const CMP_X20_1: u32 = 0xf100_069f;
const CMP_X1_X2: u32 = 0xeb02_003f;
const STRB_W0_X19: u32 = 0x3900_0260;
const STRB_W0_X19_1: u32 = 0x3900_0660;
const EQ: u32 = 0;
const NE: u32 = 1;

/// MOVZ and MOVK: the 32-bit `value` into 64-bit register `rd`.
const fn mov(rd: u32, value: u32) -> [u32; 2] {
    [
        0xd280_0000 | (value & 0xffff) << 5 | rd,
        0xf2a0_0000 | (value >> 16) << 5 | rd,
    ]
}

/// B.cond by `words` instructions from itself.
const fn branch(condition: u32, words: i32) -> u32 {
    0x5400_0000 | (words as u32 & 0x7_ffff) << 5 | condition
}

/// The routine in a memory of its own.
pub(in crate::accel::kvm) fn routine() -> Result<Routine, Error> {
    let memory = allocate(&[(layout::RAM, RAM)])?;
    let handler = [MRS_X1_ELR_EL1, ADD_X1_X1_4, MSR_ELR_EL1_X1, ADD_X20_X20_1, ERET];
    for (at, code) in [(CODE, &assemble()[..]), (SYNCHRONOUS, &handler)] {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(at)).map_err(Error::Ram)?;
    }
    Ok(Routine {
        memory,
        boot: Boot::Aarch64(State { pc: CODE, x0: 0 }),
        steps: &STEPS,
        first_loop: FIRST_LOOP,
        instructions: 2 * u64::from(ROUNDS),
        step,
    })
}

/// The step that an exit reports.
fn step(exit: &Exit<'_>) -> Option<usize> {
    match exit {
        Exit::MmioWrite { addr: REPORT, data } => Some(usize::from(data[0])),
        _ => None,
    }
}

fn assemble() -> Vec<u32> {
    let mut code = Vec::new();
    let mut steps = 1..;
    let mut next = |code: &mut Vec<u32>| {
        code.extend(mov(0, steps.next().unwrap_or(0)));
        code.push(STRB_W0_X19);
    };
    code.extend(mov(19, REPORT as u32));
    code.extend(mov(20, 0));
    code.extend(mov(1, VECTORS as u32));
    code.extend([MSR_VBAR_EL1_X1, ISB]);

    next(&mut code);
    // Over the branch and the wrong result's store.
    code.extend([BRK, CMP_X20_1, branch(EQ, 2), STRB_W0_X19_1]);

    next(&mut code);
    code.extend([MRS_X1_CNTVCT_EL0, MRS_X2_CNTVCT_EL0, CMP_X1_X2, branch(EQ, -2)]);

    for _ in FIRST_LOOP..STEPS.len() - 1 {
        next(&mut code);
        code.extend(mov(1, ROUNDS));
        code.extend([SUBS_X1_X1_1, branch(NE, -1)]);
    }
    next(&mut code);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routine_announces_every_step() {
        let code = assemble();
        assert!(CODE + 4 * code.len() as u64 <= VECTORS);
        let reports = code.iter().filter(|word| **word == STRB_W0_X19).count();
        assert_eq!(reports, STEPS.len() - 1);
    }
}
