//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR: state components and their areas (Intel SDM vol. 1, chapter 13).
//!
//! Components are written and read in the order of their addresses, and an area is checked as a whole before
//! its first byte changes.

use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::{canonical, vector};
use crate::x86_64::features::Features;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::state::{cr0, cr4, reg, xcr0};
use crate::x86_64::x87::{Fpu, Fxsave};

/// Bytes of the legacy region and the header, and of the YMM registers' upper halves behind them. With one
/// component beyond the legacy region, the standard and the compacted format have the same places.
const HEADER_AT: u64 = 512;
const AVX_AT: u64 = 576;
const AVX_SIZE: u64 = 256;
/// Where MXCSR, the x87 registers and the XMM registers are.
const MXCSR_AT: u64 = 24;
const REGISTERS_AT: u64 = 32;
const XMM_AT: u64 = 160;
/// XCOMP_BV: the area has the compacted format.
const COMPACTED: u64 = 1 << 63;

/// How an area is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// XSAVE: all components that are asked for.
    Standard,
    /// XSAVEOPT: those that are in use.
    Optimised,
    /// XSAVEC: those that are in use, in the compacted format.
    Compacted,
}

/// The components that the processor has.
fn supported(features: Features) -> u64 {
    let avx = if features.has(Features::AVX) { xcr0::AVX } else { 0 };
    xcr0::X87 | xcr0::SSE | avx
}

/// Bytes of an area with these components.
fn area_size(components: u64) -> u64 {
    AVX_AT + if components & xcr0::AVX != 0 { AVX_SIZE } else { 0 }
}

/// CPUID leaf 13.
pub(crate) fn leaf(cpu: &Cpu, subleaf: u32) -> [u32; 4] {
    let features = cpu.platform.features;
    let all = supported(features);
    match subleaf {
        _ if !features.has(Features::XSAVE) => [0; 4],
        0 => [all as u32, area_size(cpu.xcr0) as u32, area_size(all) as u32, 0],
        // XSAVEOPT, XSAVEC, and XGETBV of what is in use.
        1 => [0b111, area_size(cpu.xcr0) as u32, 0, 0],
        2 if all & xcr0::AVX != 0 => [AVX_SIZE as u32, AVX_AT as u32, 0, 0],
        _ => [0; 4],
    }
}

/// XGETBV and XSETBV are available.
fn enter(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE != 0 {
        Ok(())
    } else {
        cpu.undefined()
    }
}

/// The instructions that save and restore are available, and the area lies at a multiple of 64.
fn enter_area(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    enter(cpu)?;
    if cpu.cr0 & cr0::TS != 0 {
        return cpu.raise(vector::NM);
    }
    let address = cpu.address(op);
    if !canonical(address) {
        cpu.load::<u8>(address)?;
    }
    if !address.is_multiple_of(64) {
        return cpu.general_protection(0);
    }
    Ok(address)
}

/// The components that EDX:EAX asks for and XCR0 enables.
fn requested(cpu: &Cpu) -> u64 {
    let mask = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] as u32 as u64;
    mask & cpu.xcr0
}

/// XMM and YMM registers outside 64-bit mode are eight.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.is_long() { 16 } else { 8 }
}

/// The components that are not in their initial configuration; MXCSR is looked at apart.
fn in_use(cpu: &Cpu) -> u64 {
    let bit = |used: bool, component: u64| if used { component } else { 0 };
    bit(cpu.x87 != Fpu::default(), xcr0::X87)
        | bit(cpu.xmm != [0; 16], xcr0::SSE)
        | bit(cpu.ymm_upper != [0; 16], xcr0::AVX)
}

/// XGETBV.
pub(crate) fn xgetbv(cpu: &mut Cpu, _: &Op) -> Flow {
    enter(cpu)?;
    let value = match cpu.gpr[reg::RCX] as u32 {
        0 => cpu.xcr0,
        1 if cpu.mxcsr != Mxcsr::default() => cpu.xcr0 & (in_use(cpu) | xcr0::SSE),
        1 => cpu.xcr0 & in_use(cpu),
        _ => return cpu.general_protection(0),
    };
    cpu.gpr[reg::RAX] = value as u32 as u64;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

/// Whether XCR0 can have this value (SDM volume 1, 13.3).
pub(crate) fn is_valid_xcr0(value: u64, features: Features) -> bool {
    let unknown = value & !supported(features) != 0;
    let avx_alone = value & (xcr0::SSE | xcr0::AVX) == xcr0::AVX;
    value & xcr0::X87 != 0 && !unknown && !avx_alone
}

/// XSETBV.
pub(crate) fn xsetbv(cpu: &mut Cpu, _: &Op) -> Flow {
    enter(cpu)?;
    cpu.privileged()?;
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] as u32 as u64;
    if cpu.gpr[reg::RCX] as u32 != 0 || !is_valid_xcr0(value, cpu.platform.features) {
        return cpu.general_protection(0);
    }
    cpu.xcr0 = value;
    Ok(())
}

/// XSAVE, XSAVEOPT and XSAVEC.
pub(crate) fn save(cpu: &mut Cpu, op: &Op, format: Format, rex_w: bool) -> Flow {
    let at = enter_area(cpu, op)?;
    let requested = requested(cpu);
    let mut used = requested & in_use(cpu);
    if format == Format::Compacted && cpu.mxcsr != Mxcsr::default() {
        used |= requested & xcr0::SSE;
    }
    let written = if format == Format::Standard {
        requested
    } else {
        used
    };
    // The area has up to 832 bytes, in at most two pages.
    cpu.check_write(at, area_size(requested) as usize)?;
    let old: u64 = match format {
        Format::Compacted => 0,
        _ => cpu.load(at + HEADER_AT)?,
    };
    let mxcsr = match format {
        Format::Compacted => written & xcr0::SSE,
        _ => requested & (xcr0::SSE | xcr0::AVX),
    };
    if written & xcr0::X87 != 0 {
        save_x87(cpu, at, rex_w)?;
    }
    if mxcsr != 0 {
        let mask = u64::from(Mxcsr::WRITABLE) << 32;
        cpu.store(at + MXCSR_AT, mask | u64::from(cpu.mxcsr.bits()))?;
    }
    let count = register_count(cpu);
    if written & xcr0::SSE != 0 {
        save_registers(cpu, at + XMM_AT, cpu.xmm, count)?;
    }
    cpu.store(at + HEADER_AT, old & !requested | used)?;
    if format == Format::Compacted {
        cpu.store(at + HEADER_AT + 8, COMPACTED | requested)?;
    }
    if written & xcr0::AVX != 0 {
        save_registers(cpu, at + AVX_AT, cpu.ymm_upper, count)?;
    }
    Ok(())
}

fn save_x87(cpu: &mut Cpu, at: u64, rex_w: bool) -> Flow {
    let Fxsave { header, registers } = cpu.x87.to_fxsave(rex_w);
    for (n, quad) in header.as_chunks::<8>().0.iter().enumerate() {
        cpu.store(at + 8 * n as u64, u64::from_le_bytes(*quad))?;
    }
    save_registers(cpu, at + REGISTERS_AT, registers, registers.len())
}

fn save_registers<const N: usize>(cpu: &mut Cpu, at: u64, registers: [u128; N], count: usize) -> Flow {
    for (n, register) in registers.into_iter().take(count).enumerate() {
        cpu.store(at + 16 * n as u64, register)?;
    }
    Ok(())
}

/// What an area has for the components that are asked for.
struct Area {
    x87: Option<Fpu>,
    mxcsr: Option<Mxcsr>,
    xmm: Option<[u128; 16]>,
    upper: Option<[u128; 16]>,
}

/// XRSTOR.
pub(crate) fn restore(cpu: &mut Cpu, op: &Op, rex_w: bool) -> Flow {
    let at = enter_area(cpu, op)?;
    let requested = requested(cpu);
    let Area {
        x87,
        mxcsr,
        xmm,
        upper,
    } = read_area(cpu, at, requested, rex_w)?;
    if requested & xcr0::X87 != 0 {
        cpu.x87 = x87.unwrap_or_default();
    }
    if let Some(mxcsr) = mxcsr {
        cpu.mxcsr = mxcsr;
    }
    let count = register_count(cpu);
    if requested & xcr0::SSE != 0 {
        cpu.xmm[..count].copy_from_slice(&xmm.unwrap_or_default()[..count]);
    }
    if requested & xcr0::AVX != 0 {
        cpu.ymm_upper[..count].copy_from_slice(&upper.unwrap_or_default()[..count]);
    }
    Ok(())
}

/// Reads the components that are both asked for and in the area; all that can fault is here.
fn read_area(cpu: &mut Cpu, at: u64, requested: u64, rex_w: bool) -> Result<Area, Stop> {
    let components: u64 = cpu.load(at + HEADER_AT)?;
    let format: u64 = cpu.load(at + HEADER_AT + 8)?;
    let compacted = format & COMPACTED != 0;
    let mut reserved = 0;
    for n in 2..if compacted { 8 } else { 3 } {
        reserved |= cpu.load::<u64>(at + HEADER_AT + 8 * n)?;
    }
    let enabled = cpu.xcr0;
    let wrong = if compacted {
        let listed = format & !COMPACTED;
        listed & !enabled != 0 || components & !listed != 0
    } else {
        format != 0 || components & !enabled != 0
    };
    if wrong || reserved != 0 {
        return cpu.general_protection(0);
    }
    let there = requested & components;
    let mxcsr = read_mxcsr(cpu, at, requested, there, compacted)?;
    let x87 = match there & xcr0::X87 {
        0 => None,
        _ => Some(read_x87(cpu, at, rex_w)?),
    };
    let count = register_count(cpu);
    let xmm = match there & xcr0::SSE {
        0 => None,
        _ => Some(read_registers(cpu, at + XMM_AT, count)?),
    };
    let upper = match there & xcr0::AVX {
        0 => None,
        _ => Some(read_registers(cpu, at + AVX_AT, count)?),
    };
    Ok(Area {
        x87,
        mxcsr,
        xmm,
        upper,
    })
}

/// The standard format has MXCSR for either kind of vector registers, whether they are in the area or not; in
/// the compacted one it is part of the SSE component.
fn read_mxcsr(
    cpu: &mut Cpu,
    at: u64,
    requested: u64,
    there: u64,
    compacted: bool,
) -> Result<Option<Mxcsr>, Stop> {
    let read = if compacted {
        there & xcr0::SSE
    } else {
        requested & (xcr0::SSE | xcr0::AVX)
    };
    if read == 0 {
        let initial = compacted && requested & xcr0::SSE != 0;
        return Ok(initial.then(Mxcsr::default));
    }
    match Mxcsr::from_bits(cpu.load(at + MXCSR_AT)?) {
        Some(mxcsr) => Ok(Some(mxcsr)),
        None => cpu.general_protection(0),
    }
}

fn read_x87(cpu: &mut Cpu, at: u64, rex_w: bool) -> Result<Fpu, Stop> {
    let mut header = [0; 24];
    for (n, quad) in header.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *quad = cpu.load::<u64>(at + 8 * n as u64)?.to_le_bytes();
    }
    let registers = read_registers(cpu, at + REGISTERS_AT, 8)?;
    Ok(Fpu::from_fxsave(&Fxsave { header, registers }, rex_w))
}

fn read_registers<const N: usize>(cpu: &mut Cpu, at: u64, count: usize) -> Result<[u128; N], Stop> {
    let mut registers = [0; N];
    for (n, register) in registers.iter_mut().take(count).enumerate() {
        *register = cpu.load(at + 16 * n as u64)?;
    }
    Ok(registers)
}
