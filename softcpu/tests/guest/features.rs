//! CPUID against what is there: an instruction, control register bit or model-specific register is there if
//! and only if its bit says so.

use iced_x86::code_asm::*;
use softcpu::Features;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, End, KERNEL, Machine, done, enable_xsave};

/// The processors that are looked at.
const LEVELS: [Features; 2] = [Features::V2, Features::V3];

/// Registers of a CPUID leaf.
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;
/// Leaves.
const EXTENDED: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;

/// What shows that a feature is there.
enum Probe {
    /// The instruction, which is not #UD. RBX and RAX name memory.
    Runs(&'static [u8]),
    /// The same where CR4.OSXSAVE can be set, with all of XCR0.
    RunsVector(&'static [u8]),
    /// The instructions, which set CF.
    Sets(&'static [u8]),
    /// The bit of CR4 that can be set.
    Cr4(u32),
    /// The register that can be read.
    Read(u32),
    /// The register that can be written, with a value that it takes.
    Written(u32, u32),
    /// Nothing can be seen, or another test looks.
    Nothing,
}

use Probe::*;

type Row = (&'static str, u32, usize, u32, Probe);

/// Name, leaf, register, bit.
const FEATURES: &[Row] = &[
    ("FPU", 1, EDX, 0, Runs(&[0xd9, 0xe8])),
    ("VME", 1, EDX, 1, Cr4(0)),
    ("VME", 1, EDX, 1, Cr4(1)),
    ("DE", 1, EDX, 2, Cr4(3)),
    ("PSE", 1, EDX, 3, Cr4(4)),
    ("TSC", 1, EDX, 4, Cr4(2)),
    ("TSC", 1, EDX, 4, Runs(&[0x0f, 0x31])),
    ("MSR", 1, EDX, 5, Runs(&[0x0f, 0x32])),
    ("PAE", 1, EDX, 6, Cr4(5)),
    ("MCE", 1, EDX, 7, Cr4(6)),
    ("CX8", 1, EDX, 8, Runs(&[0x0f, 0xc7, 0x0b])),
    ("APIC", 1, EDX, 9, Read(0x1b)),
    ("SEP", 1, EDX, 11, Read(0x174)),
    ("SEP", 1, EDX, 11, Runs(&[0x0f, 0x34])),
    ("MTRR", 1, EDX, 12, Read(0xfe)),
    ("PGE", 1, EDX, 13, Cr4(7)),
    ("MCA", 1, EDX, 14, Read(0x179)),
    ("CMOV", 1, EDX, 15, Runs(&[0x0f, 0x44, 0xc0])),
    ("PAT", 1, EDX, 16, Read(0x277)),
    ("CLFSH", 1, EDX, 19, Runs(&[0x0f, 0xae, 0x3b])),
    ("DS", 1, EDX, 21, Read(0x600)),
    ("ACPI", 1, EDX, 22, Read(0x19a)),
    ("MMX", 1, EDX, 23, Runs(&[0x0f, 0x77])),
    ("FXSR", 1, EDX, 24, Cr4(9)),
    ("FXSR", 1, EDX, 24, Runs(&[0x0f, 0xae, 0x03])),
    ("SSE", 1, EDX, 25, Cr4(10)),
    ("SSE", 1, EDX, 25, Runs(&[0x0f, 0x57, 0xc0])),
    ("SSE2", 1, EDX, 26, Runs(&[0x66, 0x0f, 0x57, 0xc0])),
    ("SSE3", 1, ECX, 0, Runs(&[0xf2, 0x0f, 0x7c, 0xc0])),
    ("PCLMULQDQ", 1, ECX, 1, Runs(&[0x66, 0x0f, 0x3a, 0x44, 0xc0, 0])),
    ("MONITOR", 1, ECX, 3, Runs(&[0x0f, 0x01, 0xc8])),
    ("MONITOR", 1, ECX, 3, Runs(&[0x0f, 0x01, 0xc9])),
    ("VMX", 1, ECX, 5, Cr4(13)),
    ("VMX", 1, ECX, 5, Runs(&[0xf3, 0x0f, 0xc7, 0x33])),
    ("SMX", 1, ECX, 6, Cr4(14)),
    ("SSSE3", 1, ECX, 9, Runs(&[0x66, 0x0f, 0x38, 0x00, 0xc0])),
    ("FMA", 1, ECX, 12, RunsVector(&[0xc4, 0xe2, 0x79, 0x98, 0xc0])),
    ("CX16", 1, ECX, 13, Runs(&[0x48, 0x0f, 0xc7, 0x0b])),
    ("PDCM", 1, ECX, 15, Read(0x345)),
    ("PCID", 1, ECX, 17, Cr4(17)),
    ("SSE4.1", 1, ECX, 19, Runs(&[0x66, 0x0f, 0x38, 0x17, 0xc0])),
    ("SSE4.2", 1, ECX, 20, Runs(&[0xf2, 0x0f, 0x38, 0xf0, 0xc0])),
    ("SSE4.2", 1, ECX, 20, Runs(&[0x66, 0x0f, 0x38, 0x37, 0xc0])),
    ("MOVBE", 1, ECX, 22, Runs(&[0x0f, 0x38, 0xf0, 0x03])),
    ("POPCNT", 1, ECX, 23, Runs(&[0xf3, 0x0f, 0xb8, 0xc0])),
    ("TSC deadline", 1, ECX, 24, Read(0x6e0)),
    ("AES", 1, ECX, 25, Runs(&[0x66, 0x0f, 0x38, 0xdc, 0xc0])),
    ("XSAVE", 1, ECX, 26, Cr4(18)),
    ("XSAVE", 1, ECX, 26, RunsVector(&[0x0f, 0x01, 0xd0])),
    ("XSAVE", 1, ECX, 26, RunsVector(&[0x0f, 0xae, 0x23])),
    ("AVX", 1, ECX, 28, RunsVector(&[0xc5, 0xf8, 0x77])),
    ("F16C", 1, ECX, 29, RunsVector(&[0xc4, 0xe2, 0x79, 0x13, 0xc0])),
    ("RDRAND", 1, ECX, 30, Runs(&[0x0f, 0xc7, 0xf0])),
    // OSXSAVE follows CR4, and is looked at where XSAVE is.
    ("OSXSAVE", 1, ECX, 27, Runs(&[0x0f, 0x01, 0xd0])),
    ("FSGSBASE", 7, EBX, 0, Cr4(16)),
    ("TSC_ADJUST", 7, EBX, 1, Read(0x3b)),
    ("BMI1", 7, EBX, 3, Runs(&[0xc4, 0xe2, 0x78, 0xf2, 0xc0])),
    ("AVX2", 7, EBX, 5, RunsVector(&[0xc4, 0xe2, 0x7d, 0x58, 0xc0])),
    ("SMEP", 7, EBX, 7, Cr4(20)),
    ("BMI2", 7, EBX, 8, Runs(&[0xc4, 0xe2, 0x7b, 0xf6, 0xc0])),
    ("INVPCID", 7, EBX, 10, Runs(&[0x66, 0x0f, 0x38, 0x82, 0x03])),
    ("RTM", 7, EBX, 11, Runs(&[0x0f, 0x01, 0xd6])),
    (
        "AVX512F",
        7,
        EBX,
        16,
        RunsVector(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0]),
    ),
    ("RDSEED", 7, EBX, 18, Runs(&[0x0f, 0xc7, 0xf8])),
    ("ADX", 7, EBX, 19, Runs(&[0x66, 0x0f, 0x38, 0xf6, 0xc0])),
    ("SMAP", 7, EBX, 20, Cr4(21)),
    ("SMAP", 7, EBX, 20, Runs(&[0x0f, 0x01, 0xca])),
    ("CLFLUSHOPT", 7, EBX, 23, Runs(&[0x66, 0x0f, 0xae, 0x3b])),
    ("CLWB", 7, EBX, 24, Runs(&[0x66, 0x0f, 0xae, 0x33])),
    ("PT", 7, EBX, 25, Read(0x570)),
    ("SHA", 7, EBX, 29, Runs(&[0x0f, 0x38, 0xc8, 0xc0])),
    ("UMIP", 7, ECX, 2, Cr4(11)),
    ("PKU", 7, ECX, 3, Cr4(22)),
    ("PKU", 7, ECX, 3, Runs(&[0x0f, 0x01, 0xee])),
    ("WAITPKG", 7, ECX, 5, Runs(&[0xf3, 0x0f, 0xae, 0xf0])),
    ("CET", 7, ECX, 7, Cr4(23)),
    ("CET", 7, ECX, 7, Runs(&[0xf3, 0x0f, 0x01, 0xea])),
    ("GFNI", 7, ECX, 8, Runs(&[0x66, 0x0f, 0x38, 0xcf, 0xc0])),
    ("LA57", 7, ECX, 16, Cr4(12)),
    ("RDPID", 7, ECX, 22, Runs(&[0xf3, 0x0f, 0xc7, 0xf8])),
    ("MOVDIRI", 7, ECX, 27, Runs(&[0x0f, 0x38, 0xf9, 0x03])),
    ("MOVDIR64B", 7, ECX, 28, Runs(&[0x66, 0x0f, 0x38, 0xf8, 0x03])),
    ("UINTR", 7, EDX, 5, Cr4(25)),
    ("SERIALIZE", 7, EDX, 14, Runs(&[0x0f, 0x01, 0xe8])),
    ("IBRS", 7, EDX, 26, Read(0x48)),
    ("IBRS", 7, EDX, 26, Written(0x49, 1)),
    ("STIBP", 7, EDX, 27, Written(0x48, 2)),
    ("L1D_FLUSH", 7, EDX, 28, Written(0x10b, 1)),
    ("ARCH_CAPABILITIES", 7, EDX, 29, Read(0x10a)),
    ("CORE_CAPABILITIES", 7, EDX, 30, Read(0xcf)),
    ("SSBD", 7, EDX, 31, Written(0x48, 4)),
    ("LAHF", EXTENDED, ECX, 0, Runs(&[0x9f])),
    // TZCNT and LZCNT do not fault without their bits: with them, CF says that the source is zero.
    (
        "LZCNT",
        EXTENDED,
        ECX,
        5,
        Sets(&[0x31, 0xc0, 0xf3, 0x0f, 0xbd, 0xc0]),
    ),
    ("BMI1", 7, EBX, 3, Sets(&[0x31, 0xc0, 0xf3, 0x0f, 0xbc, 0xc0])),
    ("SVM", EXTENDED, ECX, 2, Runs(&[0x0f, 0x01, 0xd8])),
    ("SSE4A", EXTENDED, ECX, 6, Runs(&[0xf2, 0x0f, 0x79, 0xc0])),
    ("MWAITX", EXTENDED, ECX, 29, Runs(&[0x0f, 0x01, 0xfa])),
    ("RDTSCP", EXTENDED, EDX, 27, Runs(&[0x0f, 0x01, 0xf9])),
    ("RDTSCP", EXTENDED, EDX, 27, Read(0xc000_0103)),
    ("3DNow!", EXTENDED, EDX, 31, Runs(&[0x0f, 0x0f, 0xc0, 0x9e])),
    ("CLZERO", SIZES, EBX, 0, Runs(&[0x0f, 0x01, 0xfc])),
    ("RDPRU", SIZES, EBX, 4, Runs(&[0x0f, 0x01, 0xfd])),
    // What has no probe here.
    ("x2APIC", 1, ECX, 21, Nothing),
    ("hypervisor", 1, ECX, 31, Nothing),
    ("ERMS", 7, EBX, 9, Nothing),
    ("FSRM", 7, EDX, 4, Nothing),
    ("SYSCALL", EXTENDED, EDX, 11, Nothing),
    ("NX", EXTENDED, EDX, 20, Nothing),
    ("1 GiB pages", EXTENDED, EDX, 26, Nothing),
    ("long mode", EXTENDED, EDX, 29, Nothing),
];

/// EAX, EBX, ECX, EDX of a leaf.
fn cpuid(features: Features, leaf: u32) -> [u32; 4] {
    let mut machine = Machine::of(features);
    machine.kernel(|a| {
        a.mov(eax, leaf)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        done(a)
    });
    machine.done();
    [reg::RAX, reg::RBX, reg::RCX, reg::RDX].map(|register| machine.cpu.gpr[register] as u32)
}

/// Whether a processor has what the probe looks for.
fn is_there(features: Features, probe: &Probe) -> bool {
    let mut machine = Machine::of(features);
    machine.cpu.gpr[reg::RAX] = DATA;
    machine.cpu.gpr[reg::RBX] = DATA;
    // A register that can be read, for RDMSR itself.
    machine.cpu.gpr[reg::RCX] = 0x10;
    let refusal = match probe {
        Runs(bytes) => {
            let end = machine.kernel(|a| a.db(bytes));
            machine.assemble(KERNEL + end, 64, done);
            6
        }
        RunsVector(_) if cpuid(features, 1)[ECX] >> 26 & 1 == 0 => return false,
        RunsVector(bytes) => {
            let components = cpuid(features, 13)[EAX];
            machine.kernel(|a| {
                enable_xsave(a, components)?;
                a.mov(rbx, DATA)?;
                a.xor(ecx, ecx)?;
                a.db(bytes)?;
                done(a)
            });
            6
        }
        Sets(bytes) => {
            machine.kernel(|a| {
                a.db(bytes)?;
                done(a)
            });
            machine.done();
            return machine.cpu.rflags() & 1 != 0;
        }
        Cr4(bit) => {
            machine.kernel(|a| {
                a.mov(rax, cr4)?;
                a.bts(rax, *bit)?;
                a.mov(cr4, rax)?;
                done(a)
            });
            13
        }
        Read(number) => {
            machine.kernel(|a| {
                a.mov(ecx, *number)?;
                a.rdmsr()?;
                done(a)
            });
            13
        }
        Written(number, value) => {
            machine.kernel(|a| {
                crate::machine::wrmsr(a, *number, u64::from(*value))?;
                done(a)
            });
            13
        }
        Nothing => return true,
    };
    match machine.run() {
        End::Trap(trap) => trap.vector != refusal,
        _ => true,
    }
}

#[test]
fn what_cpuid_announces_is_there_and_nothing_else() {
    let mut wrong = Vec::new();
    for features in LEVELS {
        for (name, leaf, register, bit, probe) in FEATURES {
            let announced = cpuid(features, *leaf)[*register] >> bit & 1 != 0;
            if announced != is_there(features, probe) {
                wrong.push(format!("{name}: announced {announced} with {features:?}"));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_announced_feature_is_looked_at() {
    let mut unknown = Vec::new();
    for (leaf, registers) in [
        (1, &[ECX, EDX][..]),
        (7, &[EBX, ECX, EDX]),
        (EXTENDED, &[ECX, EDX]),
        (SIZES, &[EBX]),
    ] {
        for register in registers {
            for bit in (0..32).filter(|bit| cpuid(Features::V3, leaf)[*register] >> bit & 1 != 0) {
                let known = FEATURES
                    .iter()
                    .any(|(_, l, r, b, _)| (*l, *r, *b) == (leaf, *register, bit));
                if !known {
                    unknown.push(format!("leaf {leaf:#x}, register {register}, bit {bit}"));
                }
            }
        }
    }
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn an_apic_that_is_off_is_not_announced() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        crate::machine::wrmsr(a, 0x1b, 0xfee0_0100)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        done(a)
    });
    machine.done();
    assert_eq!(machine.cpu.gpr[reg::RDX] & 1 << 9, 0);
}

#[test]
fn a_hypercall_is_answered_as_kvm_answers_it() {
    for (user, expected) in [(false, -1000i64 as u64), (true, -1i64 as u64)] {
        for bytes in [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]] {
            let mut machine = Machine::new();
            let write = |a: &mut CodeAssembler| {
                a.db(&bytes)?;
                a.ud2()
            };
            if user {
                machine.user(write);
            } else {
                machine.kernel(write);
            }
            assert_eq!(machine.trap().vector, 6);
            assert_eq!(machine.cpu.gpr[reg::RAX], expected);
        }
    }
}
