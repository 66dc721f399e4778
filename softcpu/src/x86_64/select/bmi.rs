//! BMI1, BMI2, LZCNT, MOVBE and RDPID.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{size_of_operand, sized_wide};
use crate::x86_64::cpu::Chained;
use crate::x86_64::decode::Choice;
use crate::x86_64::exec::bits;
use crate::x86_64::exec::bmi;
use crate::x86_64::exec::chain::chain;
use crate::x86_64::features::Features;

/// The handler of an instruction of this family.
pub(super) fn select(instr: &Instruction, features: Features) -> Option<Choice> {
    use Mnemonic as M;
    let size = || size_of_operand(instr, 0);
    let stores = instr.op_count() > 0 && instr.op_kind(0) == OpKind::Memory;
    let (needed, run): (Features, Chained) = match instr.mnemonic() {
        // The encodings are those of BSF and BSR with a prefix, which older processors ignore.
        M::Tzcnt if features.has(Features::BMI1) => (Features::BMI1, sized_wide!(size(); bmi::tzcnt)),
        M::Tzcnt => (Features::V2, sized_wide!(size(); bits::bsf)),
        M::Lzcnt if features.has(Features::LZCNT) => (Features::LZCNT, sized_wide!(size(); bmi::lzcnt)),
        M::Lzcnt => (Features::V2, sized_wide!(size(); bits::bsr)),
        M::Andn => (Features::BMI1, sized_wide!(size(); bmi::andn)),
        // The form with an immediate is another extension's.
        M::Bextr if instr.op_kind(2) == OpKind::Register => (Features::BMI1, sized_wide!(size(); bmi::bextr)),
        M::Blsi => (Features::BMI1, sized_wide!(size(); bmi::blsi)),
        M::Blsmsk => (Features::BMI1, sized_wide!(size(); bmi::blsmsk)),
        M::Blsr => (Features::BMI1, sized_wide!(size(); bmi::blsr)),
        M::Bzhi => (Features::BMI2, sized_wide!(size(); bmi::bzhi)),
        M::Mulx => (Features::BMI2, sized_wide!(size(); bmi::mulx)),
        M::Pdep => (Features::BMI2, sized_wide!(size(); bmi::pdep)),
        M::Pext => (Features::BMI2, sized_wide!(size(); bmi::pext)),
        M::Rorx => (Features::BMI2, sized_wide!(size(); bmi::rorx)),
        M::Sarx => (Features::BMI2, sized_wide!(size(); bmi::sarx)),
        M::Shlx => (Features::BMI2, sized_wide!(size(); bmi::shlx)),
        M::Shrx => (Features::BMI2, sized_wide!(size(); bmi::shrx)),
        M::Movbe if stores => (Features::MOVBE, sized_wide!(size(); bmi::movbe_store)),
        M::Movbe => (Features::MOVBE, sized_wide!(size(); bmi::movbe_load)),
        M::Rdpid => (Features::RDPID, chain(bmi::rdpid)),
        _ => return None,
    };
    features.has(needed).then(|| Choice::plain(run))
}
