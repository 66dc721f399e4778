//! Packed integer arithmetic, logic, comparison and shifts.

use iced_x86::Mnemonic;

use super::forms::*;
use crate::x86_64::cpu::Handler;
use crate::x86_64::simd::arith_int::*;
use crate::x86_64::simd::lanes::{zip32, zip64};
use crate::x86_64::simd::shift::*;

/// One handler for each mnemonic, of a value function of two operands.
macro_rules! binaries {
    ($mnemonic:expr, $shape:expr; $($name:ident $f:expr,)*) => {
        match $mnemonic {
            $(Mnemonic::$name => by_shape!($shape; binary; $f),)*
            _ => return None,
        }
    };
}

/// The handler of an instruction of this table.
pub(super) fn handler(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    Some(binaries!(mnemonic, shape;
        Vpaddb paddb, Vpaddw paddw, Vpaddd paddd, Vpaddq paddq,
        Vpsubb psubb, Vpsubw psubw, Vpsubd psubd, Vpsubq psubq,
        Vpaddsb paddsb, Vpaddsw paddsw, Vpaddusb paddusb, Vpaddusw paddusw,
        Vpsubsb psubsb, Vpsubsw psubsw, Vpsubusb psubusb, Vpsubusw psubusw,
        Vpmullw pmullw, Vpmulld pmulld, Vpmulhw pmulhw, Vpmulhuw pmulhuw, Vpmulhrsw pmulhrsw,
        Vpmuludq pmuludq, Vpmuldq pmuldq, Vpmaddwd pmaddwd, Vpmaddubsw pmaddubsw,
        Vpavgb pavgb, Vpavgw pavgw, Vpsadbw psadbw,
        Vpminub pminub, Vpminsb pminsb, Vpminuw pminuw, Vpminsw pminsw, Vpminud pminud, Vpminsd pminsd,
        Vpmaxub pmaxub, Vpmaxsb pmaxsb, Vpmaxuw pmaxuw, Vpmaxsw pmaxsw, Vpmaxud pmaxud, Vpmaxsd pmaxsd,
        Vpsignb psignb, Vpsignw psignw, Vpsignd psignd,
        Vpcmpeqb pcmpeqb, Vpcmpeqw pcmpeqw, Vpcmpeqd pcmpeqd, Vpcmpeqq pcmpeqq,
        Vpcmpgtb pcmpgtb, Vpcmpgtw pcmpgtw, Vpcmpgtd pcmpgtd, Vpcmpgtq pcmpgtq,
        Vphaddw phaddw, Vphaddd phaddd, Vphaddsw phaddsw,
        Vphsubw phsubw, Vphsubd phsubd, Vphsubsw phsubsw,
        Vpand and, Vandps and, Vandpd and, Vpandn andn, Vandnps andn, Vandnpd andn,
        Vpor or, Vorps or, Vorpd or, Vpxor xor, Vxorps xor, Vxorpd xor,
        Vpsllvd |a, b| zip32(a, b, |a, n| a.checked_shl(n).unwrap_or(0)),
        Vpsrlvd |a, b| zip32(a, b, |a, n| a.checked_shr(n).unwrap_or(0)),
        Vpsravd |a, b| zip32(a, b, |a, n| (a as i32 >> n.min(31)) as u32),
        Vpsllvq |a, b| zip64(a, b, |a, n| if n < 64 { a << n } else { 0 }),
        Vpsrlvq |a, b| zip64(a, b, |a, n| if n < 64 { a >> n } else { 0 }),
    ))
}

/// The handler of an instruction with one source.
pub(super) fn unary_handler(mnemonic: Mnemonic, shape: Shape) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Vpabsb => by_shape!(shape; unary; |b| pabsb(0, b)),
        Mnemonic::Vpabsw => by_shape!(shape; unary; |b| pabsw(0, b)),
        Mnemonic::Vpabsd => by_shape!(shape; unary; |b| pabsd(0, b)),
        Mnemonic::Vphminposuw => by_shape!(shape; unary; |b| phminposuw(0, b)),
        Mnemonic::Vmpsadbw => by_shape!(shape; binary_control; 3, mpsadbw),
        _ => return None,
    })
}

/// The handler of a shift, whose count is a constant where `constant`.
pub(super) fn shift_handler(mnemonic: Mnemonic, shape: Shape, constant: bool) -> Option<Handler> {
    macro_rules! shift {
        ($f:expr) => {
            if constant {
                by_width!(shape; shift_by; $f)
            } else {
                by_shape!(shape; shift; $f)
            }
        };
    }
    Some(match mnemonic {
        Mnemonic::Vpsllw => shift!(psllw),
        Mnemonic::Vpslld => shift!(pslld),
        Mnemonic::Vpsllq => shift!(psllq),
        Mnemonic::Vpsrlw => shift!(psrlw),
        Mnemonic::Vpsrld => shift!(psrld),
        Mnemonic::Vpsrlq => shift!(psrlq),
        Mnemonic::Vpsraw => shift!(psraw),
        Mnemonic::Vpsrad => shift!(psrad),
        Mnemonic::Vpslldq => by_width!(shape; shift_by; pslldq),
        Mnemonic::Vpsrldq => by_width!(shape; shift_by; psrldq),
        _ => return None,
    })
}
