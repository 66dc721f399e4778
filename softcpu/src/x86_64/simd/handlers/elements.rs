//! Single elements in and out of vector registers, masks, and masked stores.

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::shuffle::{extract, insert, insertps, movmskpd, movmskps, pmovmskb, ptest};
use iced_x86::Code;

/// A general register gets a function of XMM register `b`.
macro_rules! mask {
    ($f:expr) => {
        (|cpu, op| {
            enter_sse(cpu)?;
            set_general(cpu, op.a, ($f)(xmm(cpu, op.b)) as u64);
            Ok(())
        }) as Handler
    };
}

/// Register or memory gets the element of `bits` bits that imm8 selects.
macro_rules! extract {
    ($memory:ident, $bits:literal, $element:ty, $store:ident) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let index = op.imm as u32 & (128 / $bits - 1);
                $store(cpu, op, extract(xmm(cpu, op.b), index, $bits) as $element)
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let index = op.imm as u32 & (128 / $bits - 1);
                set_general(cpu, op.a, extract(xmm(cpu, op.b), index, $bits));
                Ok(())
            }) as Handler
        }
    };
}

/// The element of `bits` bits that imm8 selects gets a general register or memory.
macro_rules! insert {
    ($memory:ident, $bits:literal, $load:ident) => {
        if $memory {
            (|cpu, op| {
                enter_sse(cpu)?;
                let value = $load(cpu, op)? as u64;
                let index = op.imm as u32 & (128 / $bits - 1);
                set_xmm(cpu, op.a, insert(xmm(cpu, op.a), value, index, $bits));
                Ok(())
            }) as Handler
        } else {
            (|cpu, op| {
                enter_sse(cpu)?;
                let index = op.imm as u32 & (128 / $bits - 1);
                set_xmm(
                    cpu,
                    op.a,
                    insert(xmm(cpu, op.a), general(cpu, op.b), index, $bits),
                );
                Ok(())
            }) as Handler
        }
    };
}

/// The handler of a code of this table; `memory` says that an operand is in memory.
pub(super) fn handler(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => mask!(pmovmskb),
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => mask!(movmskps),
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => mask!(movmskpd),
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => extract!(memory, 8, u8, store8),
        Code::Pextrw_r32m16_xmm_imm8
        | Code::Pextrw_r64m16_xmm_imm8
        | Code::Pextrw_r32_xmm_imm8
        | Code::Pextrw_r64_xmm_imm8 => extract!(memory, 16, u16, store16),
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => {
            extract!(memory, 32, u32, store32)
        }
        Code::Pextrq_rm64_xmm_imm8 => extract!(memory, 64, u64, store64),
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => insert!(memory, 8, load8),
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert!(memory, 16, load16),
        Code::Pinsrd_xmm_rm32_imm8 => insert!(memory, 32, load32),
        Code::Pinsrq_xmm_rm64_imm8 => insert!(memory, 64, load64),
        Code::Insertps_xmm_xmmm32_imm8 if memory => |cpu, op| {
            enter_sse(cpu)?;
            let element = load32(cpu, op)?;
            set_xmm(cpu, op.a, insertps(xmm(cpu, op.a), element, op.imm as u8));
            Ok(())
        },
        Code::Insertps_xmm_xmmm32_imm8 => |cpu, op| {
            enter_sse(cpu)?;
            let element = extract(xmm(cpu, op.b), op.imm as u32 >> 6 & 3, 32) as u32;
            set_xmm(cpu, op.a, insertps(xmm(cpu, op.a), element, op.imm as u8));
            Ok(())
        },
        Code::Ptest_xmm_xmmm128 if memory => |cpu, op| {
            enter_sse(cpu)?;
            let b = load128_aligned(cpu, op)?;
            let (zero, carry) = ptest(xmm(cpu, op.a), b);
            set_flags(cpu, zero, false, carry);
            Ok(())
        },
        Code::Ptest_xmm_xmmm128 => |cpu, op| {
            enter_sse(cpu)?;
            let (zero, carry) = ptest(xmm(cpu, op.a), xmm(cpu, op.b));
            set_flags(cpu, zero, false, carry);
            Ok(())
        },
        _ => return mmx(code, memory),
    })
}

/// The same with MMX registers, and the masked stores.
fn mmx(code: Code, memory: bool) -> Option<Handler> {
    Some(match code {
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => |cpu, op| {
            enter_mmx(cpu)?;
            set_general(cpu, op.a, pmovmskb(mm(cpu, op.b) as u128) as u64);
            use_mmx(cpu);
            Ok(())
        },
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => |cpu, op| {
            enter_mmx(cpu)?;
            set_general(cpu, op.a, extract(mm(cpu, op.b) as u128, op.imm as u32 & 3, 16));
            use_mmx(cpu);
            Ok(())
        },
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 if memory => |cpu, op| {
            enter_mmx(cpu)?;
            let value = load16(cpu, op)? as u64;
            set_mm(
                cpu,
                op.a,
                insert(mm(cpu, op.a) as u128, value, op.imm as u32 & 3, 16) as u64,
            );
            Ok(())
        },
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => |cpu, op| {
            enter_mmx(cpu)?;
            let value = general(cpu, op.b);
            set_mm(
                cpu,
                op.a,
                insert(mm(cpu, op.a) as u128, value, op.imm as u32 & 3, 16) as u64,
            );
            Ok(())
        },
        Code::Maskmovdqu_rDI_xmm_xmm => |cpu, op| {
            enter_sse(cpu)?;
            let (data, mask) = (xmm(cpu, op.b), xmm(cpu, op.c));
            store_selected(cpu, op, &data.to_le_bytes(), &mask.to_le_bytes())
        },
        Code::Maskmovq_rDI_mm_mm => |cpu, op| {
            enter_mmx(cpu)?;
            let (data, mask) = (mm(cpu, op.b), mm(cpu, op.c));
            // Hardware turns to MMX before it finds a page fault.
            use_mmx(cpu);
            store_selected(cpu, op, &data.to_le_bytes(), &mask.to_le_bytes())
        },
        _ => return None,
    })
}
