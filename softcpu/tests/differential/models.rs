//! Where processors that both follow the manuals differ.
//!
//! softcpu does as the models it was written against do. A host of another make must not fail the comparison
//! for what its manual leaves to the model, and must fail for everything else: each allowance here names the
//! instruction, the outcome and the bytes or bits that it hides, or the one other value that it accepts.

use super::case::*;
use super::compare::{Mask, NanLanes};
use super::encode::effective_address;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

/// The vector that a case without an exception ends with.
const BREAKPOINT: u32 = 3;
/// General protection.
const GENERAL_PROTECTION: u32 = 13;
/// CF, PF, AF, ZF, SF and OF.
const STATUS_FLAGS: u64 = 0x8d5;
/// The index of RSP among the general registers.
const RSP: usize = 4;

/// Adds to the mask what the host's model was free to choose in this outcome.
pub fn allow(mask: &mut Mask, case: &Case, last: Option<&Instruction>, native: &Outcome) {
    if native.vector != BREAKPOINT {
        if let Some(faulting) = instruction_at(case, native.state.rip) {
            allow_in_fault(mask, &faulting, native);
        }
    } else if let Some(last) = last {
        allow_in_result(mask, last, native);
    }
}

/// The instruction of the case at an address.
fn instruction_at(case: &Case, rip: u64) -> Option<Instruction> {
    let code = &case.code[..case.length as usize];
    let behind = code.get(usize::try_from(rip.checked_sub(START)?).ok()?..)?;
    let mut decoder = Decoder::with_ip(case.bitness, behind, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// What an instruction that ended in a fault may leave behind.
fn allow_in_fault(mask: &mut Mask, faulting: &Instruction, native: &Outcome) {
    let repeated = faulting.has_rep_prefix() || faulting.has_repne_prefix();
    match faulting.mnemonic() {
        // Intel restores the flags from before the instruction (SDM vol. 2, REP); AMD keeps the last
        // comparison's.
        Mnemonic::Cmpsb
        | Mnemonic::Cmpsw
        | Mnemonic::Cmpsd
        | Mnemonic::Cmpsq
        | Mnemonic::Scasb
        | Mnemonic::Scasw
        | Mnemonic::Scasd
        | Mnemonic::Scasq
            if repeated =>
        {
            mask.flags &= !STATUS_FLAGS;
        }
        // Intel has pushed the return address when it finds the target not canonical; AMD looks first.
        Mnemonic::Call if native.vector == GENERAL_PROTECTION => {
            mask.hide(native.state.gpr[RSP].wrapping_sub(8), 8);
        }
        // The ten bytes are several stores, and those before the faulting one may be done.
        Mnemonic::Fbstp => {
            if let Some(at) = effective_address(faulting, &native.state) {
                mask.hide(at, faulting.memory_size().size());
            }
        }
        // "If a fault is triggered by an element, all elements closer to the LSB are completed", others may be
        // (SDM vol. 2, VPGATHERDD), and what of the registers is written by then is not said. What the
        // instruction gives in the end is tested with the kernel.
        _ if super::codes::is_gather(faulting.code()) => {
            mask.vectors &= !(1 << faulting.op0_register().number() | 1 << faulting.op2_register().number());
        }
        _ => {}
    }
    // Intel's MMX stores have made the x87 stack theirs (TOP is zero) when the store faults; AMD's have not.
    mask.top_may_be_zero |= uses_mmx(faulting);
}

fn uses_mmx(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_mm())
}

/// What an instruction without a fault may leave behind.
fn allow_in_result(mask: &mut Mask, last: &Instruction, native: &Outcome) {
    match last.code() {
        // "Either a zero-extended value is pushed or the selector is written using a 16-bit move" (SDM vol.
        // 2, PUSH).
        code if pushes_half(code) => mask.hide(native.state.gpr[RSP].wrapping_add(2), 2),
        // Which of two NaNs a sum keeps depends on the order of the addition, which is the model's.
        Code::Dppd_xmm_xmmm128_imm8 | Code::VEX_Vdppd_xmm_xmm_xmmm128_imm8 => mask.nans = NanLanes::Double,
        Code::Dpps_xmm_xmmm128_imm8
        | Code::VEX_Vdpps_xmm_xmm_xmmm128_imm8
        | Code::VEX_Vdpps_ymm_ymm_ymmm256_imm8 => mask.nans = NanLanes::Single,
        _ => {}
    }
}

/// The instruction pushes a selector into four bytes, of which a model may write only two.
fn pushes_half(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS
    )
}

/// The result of the instruction may depend on the model: its value must not reach another instruction's
/// operands.
pub fn differs(code: Code) -> bool {
    pushes_half(code)
        || matches!(
            code.mnemonic(),
            Mnemonic::Dppd | Mnemonic::Dpps | Mnemonic::Vdppd | Mnemonic::Vdpps
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare;

    /// What makes an outcome, from registers at zero.
    fn outcome(vector: u32, rip: u64) -> Outcome {
        let mut state = State::ZERO;
        state.rip = rip;
        state.gpr[RSP] = DATA + 0x800;
        let memory = [0; PAGE];
        Outcome {
            vector,
            error: 0,
            address: 0,
            state,
            memory,
        }
    }

    /// The lines in which two outcomes of 64-bit or 32-bit code differ.
    fn lines(bitness: u32, bytes: &[u8], native: &Outcome, soft: &Outcome) -> Vec<String> {
        let mut code = [0; CODE_MAX];
        code[..bytes.len()].copy_from_slice(bytes);
        let case = Case {
            bitness,
            length: bytes.len() as u32,
            code,
            memory_seed: 0,
            state: State::ZERO,
        };
        let instruction = instruction_at(&case, START).unwrap();
        let mut mask = Mask::of(&[instruction], &case.state);
        allow(&mut mask, &case, Some(&instruction), native);
        compare::differences(native, soft, &mask)
    }

    #[test]
    fn a_faulting_mmx_store_may_leave_top_zero_and_nothing_else() {
        const MOVQ_MEMORY_MM2: [u8; 3] = [0x0f, 0x7f, 0x10];
        let (mut native, mut soft) = (outcome(14, START), outcome(14, START));
        soft.state.fx[3] = 0x38;
        for physical in 0..8usize {
            native.state.set_slot(32 + 16 * physical, physical as u128 + 1);
            soft.state
                .set_slot(32 + 16 * ((physical + 8 - 7) % 8), physical as u128 + 1);
        }
        assert_eq!(lines(64, &MOVQ_MEMORY_MM2, &native, &soft), [""; 0]);
        native.state.set_slot(32, 99);
        assert_ne!(lines(64, &MOVQ_MEMORY_MM2, &native, &soft), [""; 0]);
    }

    #[test]
    fn a_call_that_faults_may_have_pushed_only_where_its_return_address_goes() {
        const CALL_RCX: [u8; 2] = [0xff, 0xd1];
        let (mut native, soft) = (
            outcome(GENERAL_PROTECTION, START),
            outcome(GENERAL_PROTECTION, START),
        );
        native.memory[0x7f8] = 0x42;
        assert_eq!(lines(64, &CALL_RCX, &native, &soft), [""; 0]);
        native.memory[0x7f7] = 1;
        assert_eq!(lines(64, &CALL_RCX, &native, &soft).len(), 1);
    }

    #[test]
    fn only_repeated_comparisons_may_differ_in_flags() {
        let (mut native, soft) = (outcome(14, START), outcome(14, START));
        native.state.rflags = STATUS_FLAGS;
        assert_eq!(lines(64, &[0xf2, 0xa6], &native, &soft), [""; 0]);
        assert_eq!(lines(64, &[0xa6], &native, &soft).len(), 1);
        assert_eq!(lines(64, &[0xf2, 0xa4], &native, &soft).len(), 1);
    }

    #[test]
    fn a_pushed_selector_may_be_two_bytes_wide() {
        let after = START + 1;
        let (mut native, soft) = (outcome(BREAKPOINT, after), outcome(BREAKPOINT, after));
        native.memory[0x803] = 1;
        assert_eq!(lines(32, &[0x1e], &native, &soft), [""; 0]);
        native.memory[0x801] = 1;
        assert_eq!(lines(32, &[0x1e], &native, &soft).len(), 1);
    }

    #[test]
    fn a_gather_that_faults_may_differ_in_what_it_writes_and_nowhere_else() {
        // vpgatherdd xmm1, [rax + xmm2], xmm3
        const GATHER: [u8; 6] = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x10];
        let (mut native, soft) = (outcome(14, START), outcome(14, START));
        for written in [1, 3] {
            native.state.set_slot(160 + 16 * written, 5);
            native.state.upper[written] = 5;
        }
        assert_eq!(lines(64, &GATHER, &native, &soft), [""; 0]);
        native.state.upper[2] = 5;
        assert_eq!(lines(64, &GATHER, &native, &soft).len(), 1);
        native.vector = BREAKPOINT;
        assert!(lines(64, &GATHER, &native, &soft).len() > 4);
    }

    #[test]
    fn a_dot_product_may_keep_either_nan() {
        const DPPD_XMM7_XMM0: [u8; 6] = [0x66, 0x0f, 0x3a, 0x41, 0xf8, 0xff];
        let after = START + 6;
        let (mut native, mut soft) = (outcome(BREAKPOINT, after), outcome(BREAKPOINT, after));
        let seven = 160 + 16 * 7;
        native.state.set_slot(seven, 0xffff_ffff_ddd5_bd63 << 64);
        soft.state.set_slot(seven, 0xfffe_de50_c637_f2bb << 64);
        assert_eq!(lines(64, &DPPD_XMM7_XMM0, &native, &soft), [""; 0]);
        soft.state.set_slot(seven, 1 << 64);
        assert_eq!(lines(64, &DPPD_XMM7_XMM0, &native, &soft).len(), 1);
    }
}
