//! Which instructions are compared: every `Code` of the features that softcpu has, but for those that a child
//! process cannot run.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// The features of x86-64-v3 that softcpu has.
const FEATURES: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::CX8,
    CpuidFeature::CLFSH,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::POPCNT,
    CpuidFeature::PREFETCHW,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::LZCNT,
    CpuidFeature::MOVBE,
];

/// Whether an instruction is of a feature that some supported hosts lack.
pub fn may_be_absent(code: Code) -> bool {
    use CpuidFeature as F;
    let optional = [
        F::AVX,
        F::AVX2,
        F::FMA,
        F::F16C,
        F::BMI1,
        F::BMI2,
        F::LZCNT,
        F::MOVBE,
    ];
    code.cpuid_features()
        .iter()
        .any(|feature| optional.contains(feature))
}

/// Whether the host has a feature; of those of x86-64-v2 a host that Rust programs run on may lack some too,
/// but none that this project supports does.
#[cfg(target_arch = "x86_64")]
fn host_has(feature: CpuidFeature) -> bool {
    use std::is_x86_feature_detected as has;
    match feature {
        CpuidFeature::AVX => has!("avx"),
        CpuidFeature::AVX2 => has!("avx2"),
        CpuidFeature::FMA => has!("fma"),
        CpuidFeature::F16C => has!("f16c"),
        CpuidFeature::BMI1 => has!("bmi1"),
        CpuidFeature::BMI2 => has!("bmi2"),
        CpuidFeature::LZCNT => has!("lzcnt"),
        CpuidFeature::MOVBE => has!("movbe"),
        _ => true,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_has(_feature: CpuidFeature) -> bool {
    false
}

/// Whether the host's registers have upper halves.
pub fn host_has_ymm() -> bool {
    host_has(CpuidFeature::AVX)
}

/// Whether the host has an instruction: only then it can be compared.
pub fn on_host(code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| host_has(*feature))
}

/// Why a mnemonic is not run here although softcpu has it.
pub const EXCLUDED: &[(Mnemonic, &str)] = &[
    (Mnemonic::Int, "enters the host's kernel, or faults by its IDT"),
    (Mnemonic::Int1, "the host's debugger"),
    (Mnemonic::Int3, "ends every case"),
    (Mnemonic::Syscall, "enters the host's kernel"),
    (Mnemonic::Sysenter, "enters the host's kernel"),
    (Mnemonic::Sysexit, "privileged; tested with the kernel"),
    (Mnemonic::Sysexitq, "privileged; tested with the kernel"),
    (Mnemonic::Sysret, "privileged; tested with the kernel"),
    (Mnemonic::Vmcall, "the host's hypervisor"),
    (Mnemonic::Vmmcall, "the host's hypervisor"),
    (Mnemonic::Cpuid, "the two processors differ on purpose"),
    (Mnemonic::Rdtsc, "time"),
    (Mnemonic::Rdpmc, "counters"),
    (Mnemonic::Sgdt, "emulated by the host's kernel (UMIP)"),
    (Mnemonic::Sidt, "emulated by the host's kernel (UMIP)"),
    (Mnemonic::Sldt, "emulated by the host's kernel (UMIP)"),
    (Mnemonic::Smsw, "emulated by the host's kernel (UMIP)"),
    (Mnemonic::Str, "emulated by the host's kernel (UMIP)"),
    (Mnemonic::Lar, "the host's descriptor tables"),
    (Mnemonic::Lsl, "the host's descriptor tables"),
    (Mnemonic::Verr, "the host's descriptor tables"),
    (Mnemonic::Verw, "the host's descriptor tables"),
    (Mnemonic::Lds, "the host's descriptor tables"),
    (Mnemonic::Les, "the host's descriptor tables"),
    (Mnemonic::Lfs, "the host's descriptor tables"),
    (Mnemonic::Lgs, "the host's descriptor tables"),
    (Mnemonic::Lss, "the host's descriptor tables"),
    (Mnemonic::Iret, "the host's descriptor tables"),
    (Mnemonic::Iretd, "the host's descriptor tables"),
    (Mnemonic::Iretq, "the host's descriptor tables"),
    (Mnemonic::Retf, "the host's descriptor tables"),
    (Mnemonic::Popf, "could set TF and AC"),
    (Mnemonic::Popfd, "could set TF and AC"),
    (Mnemonic::Popfq, "could set TF and AC"),
    (Mnemonic::Loadall, "not an instruction of these processors"),
    (Mnemonic::Umov, "not an instruction of these processors"),
    (Mnemonic::Ibts, "not an instruction of these processors"),
    (Mnemonic::Xbts, "not an instruction of these processors"),
    (Mnemonic::Rdpid, "the host's number of the processor"),
    (Mnemonic::Xgetbv, "the host's components"),
    (Mnemonic::Xsetbv, "privileged; tested with the kernel"),
    (Mnemonic::Xsave, "the host's components; tested with the kernel"),
    (Mnemonic::Xsave64, "the host's components; tested with the kernel"),
    (
        Mnemonic::Xsaveopt,
        "the host's components; tested with the kernel",
    ),
    (
        Mnemonic::Xsaveopt64,
        "the host's components; tested with the kernel",
    ),
    (Mnemonic::Xsavec, "the host's components; tested with the kernel"),
    (
        Mnemonic::Xsavec64,
        "the host's components; tested with the kernel",
    ),
    (Mnemonic::Xrstor, "the host's components; tested with the kernel"),
    (
        Mnemonic::Xrstor64,
        "the host's components; tested with the kernel",
    ),
    (Mnemonic::Rdrand, "chance"),
    (Mnemonic::Rdseed, "chance"),
    (Mnemonic::Rdtscp, "time"),
    (Mnemonic::Sysretq, "privileged; tested with the kernel"),
    (Mnemonic::Wrmsr, "privileged; tested with the kernel"),
    (Mnemonic::Rdmsr, "privileged; tested with the kernel"),
    (Mnemonic::Wbnoinvd, "privileged; tested with the kernel"),
    (Mnemonic::Clwb, "a cache's business"),
    (Mnemonic::Clflushopt, "a cache's business"),
    (Mnemonic::Endbr64, "a hint"),
    (Mnemonic::Endbr32, "a hint"),
    (
        Mnemonic::Rdsspd,
        "a hint without shadow stacks; the host may have them",
    ),
    (
        Mnemonic::Rdsspq,
        "a hint without shadow stacks; the host may have them",
    ),
    (Mnemonic::Cldemote, "a hint"),
    (Mnemonic::Prefetchit0, "a hint"),
    (Mnemonic::Prefetchit1, "a hint"),
    (Mnemonic::Prefetch, "a hint"),
    (Mnemonic::Prefetchwt1, "a hint"),
    (Mnemonic::Ud0, "vendors disagree on its length"),
    (Mnemonic::Reservednop, "a hint whose encodings vendors reuse"),
    (Mnemonic::Pause, "a hint"),
    (Mnemonic::Fnsetpm, "no operation since the 387"),
    (Mnemonic::Fsetpm, "no operation since the 387"),
    (Mnemonic::Frstpm, "not an instruction of these processors"),
    (Mnemonic::Fstdw, "not an instruction of these processors"),
    (Mnemonic::Fstsg, "not an instruction of these processors"),
];

/// Every `Code` of the supported features for a mode, without the excluded ones.
pub fn codes(bitness: u32) -> Vec<Code> {
    Code::values()
        .filter(|code| is_candidate(*code, bitness))
        .collect()
}

fn is_candidate(code: Code, bitness: u32) -> bool {
    let info = code.op_code();
    // What only other vendors decode, and the pairs of FWAIT and an instruction, are no encodings of their
    // own.
    let mode = match bitness {
        64 => info.mode64() && info.intel_decoder64(),
        _ => info.mode32() && info.intel_decoder32(),
    } && !info.fwait();
    let supported = code.cpuid_features().iter().all(|f| FEATURES.contains(f));
    let excluded = EXCLUDED.iter().any(|(m, _)| *m == code.mnemonic());
    info.is_instruction() && mode && supported && !excluded && !is_far_or_segment(code) && has_encoding(code)
}

/// The encodings that softcpu decodes.
pub fn has_encoding(code: Code) -> bool {
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
}

/// Far branches, and moves and pops to segment registers, need the host's descriptor tables.
pub fn is_far_or_segment(code: Code) -> bool {
    let info = code.op_code();
    let far =
        |kind: &OpCodeOperandKind| matches!(kind, OpCodeOperandKind::farbr2_2 | OpCodeOperandKind::farbr4_2);
    let segment_written =
        code.mnemonic() == Mnemonic::Pop && info.op_kinds().iter().any(|kind| is_segment(*kind));
    // Branches that cut RIP to 16 bits: no program outside of 16-bit code has them.
    let cut =
        |kind: &OpCodeOperandKind| matches!(kind, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2);
    segment_written
        || info.op_kinds().iter().any(cut)
        || info.op_kinds().iter().any(far)
        || matches!(
            code,
            Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Mov_Sreg_rm16
                | Code::Mov_Sreg_r32m16
                | Code::Mov_Sreg_r64m16
        )
}

/// Codes that sequences are made of: those whose results are exact, and whose outcome does not depend on
/// registers that a sequence cannot choose.
pub fn fits_sequences(code: Code) -> bool {
    let unpredictable = matches!(
        code,
        Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL | Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8
    ) || matches!(
        code.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Fyl2xp1
    );
    !unpredictable && !is_gather(code) && !super::compare::only_alone(code) && !super::models::differs(code)
}

/// The addresses are elements of a register, which a sequence cannot choose.
pub fn is_gather(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let kinds = code.op_code();
    kinds.op_kinds().iter().any(|kind| {
        matches!(
            kind,
            K::mem_vsib32x | K::mem_vsib32y | K::mem_vsib64x | K::mem_vsib64y
        )
    })
}

fn is_segment(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
}
