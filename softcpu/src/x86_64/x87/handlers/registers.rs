//! Instructions on registers alone.

use super::{begin, fpu};
use crate::x86_64::cpu::Handler;
use crate::x86_64::float::Quotient;
use crate::x86_64::simd::operand::set_flags;
use crate::x86_64::x87::{Arith, Constant};
use iced_x86::Code;

/// FCMOVcc with its condition on RFLAGS.
macro_rules! conditional {
    (|$flags:ident| $condition:expr) => {
        (|cpu, op| {
            begin(cpu, op)?;
            let $flags = cpu.flags;
            cpu.x87.conditional_move(op.b as usize, $condition);
            Ok(())
        }) as Handler
    };
}

/// FCOMI and its relatives.
macro_rules! to_flags {
    ($quiet:literal, $pop:literal) => {
        (|cpu, op| {
            begin(cpu, op)?;
            let relation = cpu.x87.compare_to_flags(op.b as usize, $quiet, $pop);
            set_flags(cpu, relation.zero, relation.parity, relation.carry);
            Ok(())
        }) as Handler
    };
}

/// The basic operations, comparison and conditional moves.
pub(super) fn arithmetic(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fadd_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::Add, 0, op.b as usize, false)),
        Code::Fadd_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Add, op.a as usize, 0, false)),
        Code::Faddp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Add, op.a as usize, 0, true)),
        Code::Fmul_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::Mul, 0, op.b as usize, false)),
        Code::Fmul_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Mul, op.a as usize, 0, false)),
        Code::Fmulp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Mul, op.a as usize, 0, true)),
        Code::Fsub_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::Sub, 0, op.b as usize, false)),
        Code::Fsub_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Sub, op.a as usize, 0, false)),
        Code::Fsubp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Sub, op.a as usize, 0, true)),
        Code::Fsubr_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::SubReversed, 0, op.b as usize, false)),
        Code::Fsubr_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::SubReversed, op.a as usize, 0, false)),
        Code::Fsubrp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::SubReversed, op.a as usize, 0, true)),
        Code::Fdiv_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::Div, 0, op.b as usize, false)),
        Code::Fdiv_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Div, op.a as usize, 0, false)),
        Code::Fdivp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::Div, op.a as usize, 0, true)),
        Code::Fdivr_st0_sti => fpu!(|fpu, op| fpu.arithmetic(Arith::DivReversed, 0, op.b as usize, false)),
        Code::Fdivr_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::DivReversed, op.a as usize, 0, false)),
        Code::Fdivrp_sti_st0 => fpu!(|fpu, op| fpu.arithmetic(Arith::DivReversed, op.a as usize, 0, true)),
        Code::Fcom_st0_sti | Code::Fcom_st0_sti_DCD0 => fpu!(|fpu, op| fpu.compare(op.b as usize, false, 0)),
        Code::Fcomp_st0_sti | Code::Fcomp_st0_sti_DCD8 | Code::Fcomp_st0_sti_DED0 => {
            fpu!(|fpu, op| fpu.compare(op.b as usize, false, 1))
        }
        Code::Fcompp => fpu!(|fpu| fpu.compare(1, false, 2)),
        Code::Fucom_st0_sti => fpu!(|fpu, op| fpu.compare(op.b as usize, true, 0)),
        Code::Fucomp_st0_sti => fpu!(|fpu, op| fpu.compare(op.b as usize, true, 1)),
        Code::Fucompp => fpu!(|fpu| fpu.compare(1, true, 2)),
        Code::Fcomi_st0_sti => to_flags!(false, false),
        Code::Fcomip_st0_sti => to_flags!(false, true),
        Code::Fucomi_st0_sti => to_flags!(true, false),
        Code::Fucomip_st0_sti => to_flags!(true, true),
        Code::Fcmovb_st0_sti => conditional!(|flags| flags.cf()),
        Code::Fcmove_st0_sti => conditional!(|flags| flags.zf()),
        Code::Fcmovbe_st0_sti => conditional!(|flags| flags.cf() || flags.zf()),
        Code::Fcmovu_st0_sti => conditional!(|flags| flags.pf()),
        Code::Fcmovnb_st0_sti => conditional!(|flags| !flags.cf()),
        Code::Fcmovne_st0_sti => conditional!(|flags| !flags.zf()),
        Code::Fcmovnbe_st0_sti => conditional!(|flags| !(flags.cf() || flags.zf())),
        Code::Fcmovnu_st0_sti => conditional!(|flags| !flags.pf()),
        _ => return None,
    })
}

/// Everything else that works on registers.
pub(super) fn other(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fld_sti => fpu!(|fpu, op| fpu.load_register(op.a as usize)),
        Code::Fst_sti => fpu!(|fpu, op| fpu.store_register(op.a as usize, false)),
        Code::Fstpnce_sti => fpu!(|fpu, op| fpu.store_register_unchecked(op.a as usize)),
        Code::Fstp_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 => {
            fpu!(|fpu, op| fpu.store_register(op.a as usize, true))
        }
        Code::Fxch_st0_sti | Code::Fxch_st0_sti_DDC8 | Code::Fxch_st0_sti_DFC8 => {
            fpu!(|fpu, op| fpu.exchange(op.b as usize))
        }
        Code::Fld1 => fpu!(|fpu| fpu.load_constant(Constant::One)),
        Code::Fldl2t => fpu!(|fpu| fpu.load_constant(Constant::Log2Of10)),
        Code::Fldl2e => fpu!(|fpu| fpu.load_constant(Constant::Log2OfE)),
        Code::Fldpi => fpu!(|fpu| fpu.load_constant(Constant::Pi)),
        Code::Fldlg2 => fpu!(|fpu| fpu.load_constant(Constant::Log10Of2)),
        Code::Fldln2 => fpu!(|fpu| fpu.load_constant(Constant::LnOf2)),
        Code::Fldz => fpu!(|fpu| fpu.load_constant(Constant::Zero)),
        Code::Fchs => fpu!(|fpu| fpu.change_sign()),
        Code::Fabs => fpu!(|fpu| fpu.absolute()),
        Code::Ftst => fpu!(|fpu| fpu.test()),
        Code::Fxam => fpu!(|fpu| fpu.examine()),
        Code::Fsqrt => fpu!(|fpu| fpu.sqrt()),
        Code::Frndint => fpu!(|fpu| fpu.round_to_integral()),
        Code::Fscale => fpu!(|fpu| fpu.scale()),
        Code::Fxtract => fpu!(|fpu| fpu.extract()),
        Code::Fprem => fpu!(|fpu| fpu.remainder(Quotient::Truncated)),
        Code::Fprem1 => fpu!(|fpu| fpu.remainder(Quotient::Nearest)),
        Code::F2xm1 => fpu!(|fpu| fpu.two_to_the_x_minus_one()),
        Code::Fyl2x => fpu!(|fpu| fpu.y_log2_x()),
        Code::Fyl2xp1 => fpu!(|fpu| fpu.y_log2_x_plus_one()),
        Code::Fptan => fpu!(|fpu| fpu.tangent()),
        Code::Fpatan => fpu!(|fpu| fpu.arc_tangent()),
        Code::Fsin => fpu!(|fpu| fpu.sine()),
        Code::Fcos => fpu!(|fpu| fpu.cosine()),
        Code::Fsincos => fpu!(|fpu| fpu.sine_and_cosine()),
        Code::Ffree_sti => fpu!(|fpu, op| fpu.free(op.a as usize)),
        Code::Ffreep_sti => fpu!(|fpu, op| fpu.free_and_pop(op.a as usize)),
        Code::Fincstp => fpu!(|fpu| fpu.increment_top()),
        Code::Fdecstp => fpu!(|fpu| fpu.decrement_top()),
        Code::Fnop => |cpu, op| begin(cpu, op),
        _ => return None,
    })
}
