//! The values of CPUID: the instruction set that is implemented, and bits that let a kernel skip calibrations
//! and mitigations.
//!
//! The vendor is Intel's because every kernel knows its way to report a processor without speculation
//! (IA32_ARCH_CAPABILITIES): no return thunks, no retpolines, no page table isolation.

use crate::core::clock::HERTZ;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::features::Features;
use crate::x86_64::state::{PHYSICAL_BITS, cr4};
use crate::x86_64::xstate;

/// Family 6, model 0x6a, stepping 0.
pub(crate) const SIGNATURE: u32 = 0x0006_06a0;

/// Bits of leaf 1, EDX: FPU DE PSE TSC MSR PAE CX8 APIC SEP MTRR PGE CMOV PAT CLFSH MMX FXSR SSE SSE2.
const LEAF1_EDX: u32 = 1 << 0
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
const HTT: u32 = 1 << 28;
const APIC: u32 = 1 << 9;
/// Bits of leaf 1, ECX: SSE3 SSSE3 CX16 SSE4.1 SSE4.2 x2APIC POPCNT TSC-deadline RDRAND hypervisor.
const LEAF1_ECX: u32 =
    1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 24 | 1 << 30 | 1 << 31;
/// Leaf 7, EBX: FSGSBASE TSC_ADJUST SMEP ERMS RDSEED SMAP CLFLUSHOPT CLWB.
const LEAF7_EBX: u32 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 18 | 1 << 20 | 1 << 23 | 1 << 24;
/// Leaf 7, ECX: UMIP.
const LEAF7_ECX: u32 = 1 << 2;
/// Leaf 7, EDX: FSRM, IBRS/IBPB, STIBP, ARCH_CAPABILITIES, SSBD.
const LEAF7_EDX: u32 = 1 << 4 | 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31;
/// Leaf 0x8000_0001, ECX: LAHF.
const EXT_ECX: u32 = 1 << 0;
/// Leaf 0x8000_0001, EDX: SYSCALL NX 1G-pages RDTSCP LM.
const EXT_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// Bits that are there with extensions beyond x86-64-v2: of leaf 1, ECX.
const LEAF1_ECX_BY_FEATURE: &[(u32, Features)] = &[
    (1 << 12, Features::FMA),
    (1 << 22, Features::MOVBE),
    (1 << 26, Features::XSAVE),
    (1 << 28, Features::AVX),
    (1 << 29, Features::F16C),
];
/// Of leaf 7, EBX.
const LEAF7_EBX_BY_FEATURE: &[(u32, Features)] = &[
    (1 << 3, Features::BMI1),
    (1 << 5, Features::AVX2),
    (1 << 8, Features::BMI2),
];
/// Of leaf 7, ECX.
const LEAF7_ECX_BY_FEATURE: &[(u32, Features)] = &[(1 << 22, Features::RDPID)];
/// Of leaf 0x8000_0001, ECX.
const EXT_ECX_BY_FEATURE: &[(u32, Features)] = &[(1 << 5, Features::LZCNT)];
/// Leaf 1, ECX: CR4.OSXSAVE is set.
const OSXSAVE: u32 = 1 << 27;
/// KVM's features: no I/O delay, clock at the new MSRs, clock is stable.
const KVM_EAX: u32 = 1 << 1 | 1 << 3 | 1 << 24;

const MODEL_NAME: &[u8; 48] = b"Kiln software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn text(bytes: &[u8]) -> [u32; 4] {
    let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// The bits of a table that the processor has.
fn by_feature(cpu: &Cpu, table: &[(u32, Features)]) -> u32 {
    let there = |(_, feature): &&(u32, Features)| cpu.platform.features.has(*feature);
    table.iter().filter(there).fold(0, |bits, (bit, _)| bits | bit)
}

/// EAX, EBX, ECX, EDX of a leaf.
pub(crate) fn leaf(cpu: &Cpu, leaf: u32, subleaf: u32) -> [u32; 4] {
    let cpus = cpu.platform.cpus();
    let id = cpu.mailbox.id;
    let megahertz = (HERTZ / 1_000_000) as u32;
    match leaf {
        0 => {
            let [b, d, c, _] = text(b"GenuineIntel\0\0\0\0");
            [0x16, b, c, d]
        }
        1 => {
            let many = if cpus > 1 { HTT } else { 0 };
            let off = if cpu.apic.is_enabled() { 0 } else { APIC };
            let osxsave = if cpu.cr4 & cr4::OSXSAVE != 0 { OSXSAVE } else { 0 };
            [
                SIGNATURE,
                id << 24 | cpus.next_power_of_two().min(255) << 16 | 8 << 8,
                LEAF1_ECX | by_feature(cpu, LEAF1_ECX_BY_FEATURE) | osxsave,
                LEAF1_EDX & !off | many,
            ]
        }
        4 => cache(cpus, subleaf),
        6 => [1 << 2, 0, 0, 0],
        7 if subleaf == 0 => [
            0,
            LEAF7_EBX | by_feature(cpu, LEAF7_EBX_BY_FEATURE),
            LEAF7_ECX | by_feature(cpu, LEAF7_ECX_BY_FEATURE),
            LEAF7_EDX,
        ],
        0xb => topology(cpus, id, subleaf),
        0xd => xstate::leaf(cpu, subleaf),
        // Crystal of 1 GHz, ratio 1.
        0x15 => [1, 1, HERTZ as u32, 0],
        0x16 => [megahertz, megahertz, 100, 0],
        0x4000_0000 => {
            let [b, c, d, _] = text(b"KVMKVMKVM\0\0\0\0\0\0\0");
            [0x4000_0010, b, c, d]
        }
        0x4000_0001 => [KVM_EAX, 0, 0, 0],
        // TSC and APIC bus frequency in kHz.
        0x4000_0010 => [(HERTZ / 1000) as u32, (HERTZ / 1000) as u32, 0, 0],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0001 => [0, 0, EXT_ECX | by_feature(cpu, EXT_ECX_BY_FEATURE), EXT_EDX],
        0x8000_0002..=0x8000_0004 => text(&MODEL_NAME[(leaf - 0x8000_0002) as usize * 16..]),
        0x8000_0006 => [0, 0, 0x0200_6040, 0],
        // Invariant TSC.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        // Bits of physical addresses, and 48 linear ones.
        0x8000_0008 => [0x3000 | PHYSICAL_BITS, 0, 0, 0],
        _ => [0; 4],
    }
}

/// L1 data, L1 instruction and a unified L2 cache, of the sizes that programs expect.
fn cache(cpus: u32, subleaf: u32) -> [u32; 4] {
    let (kind, level, ways, sets, sharing) = match subleaf {
        0 => (1, 1, 8, 64, 1),
        1 => (2, 1, 8, 64, 1),
        2 => (3, 2, 16, 1024, cpus.next_power_of_two()),
        _ => return [0; 4],
    };
    let cores = cpus.next_power_of_two().min(64) - 1;
    [
        kind | level << 5 | 1 << 8 | (sharing - 1) << 14 | cores << 26,
        (ways - 1) << 22 | 63,
        sets - 1,
        0,
    ]
}

/// One thread a core, all cores in one package.
fn topology(cpus: u32, id: u32, subleaf: u32) -> [u32; 4] {
    match subleaf {
        0 => [0, 1, 1 << 8, id],
        1 => [cpus.next_power_of_two().trailing_zeros(), cpus, 2 << 8 | 1, id],
        _ => [0, 0, subleaf, id],
    }
}
