//! MXCSR and EMMS.

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::mxcsr::Mxcsr;
use iced_x86::Code;

/// The handler of a code of this table.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Ldmxcsr_m32 => |cpu, op| {
            enter_sse(cpu)?;
            let bits = load32(cpu, op)?;
            match Mxcsr::from_bits(bits) {
                Some(value) => cpu.mxcsr = value,
                None => return cpu.general_protection(0),
            }
            Ok(())
        },
        Code::Stmxcsr_m32 => |cpu, op| {
            enter_sse(cpu)?;
            let bits = cpu.mxcsr.bits();
            store32(cpu, op, bits)
        },
        Code::Emms => |cpu, _op| {
            enter_mmx(cpu)?;
            cpu.x87.leave_mmx();
            Ok(())
        },
        _ => return None,
    })
}
