//! Operands of VEX-encoded vector instructions. Operands in memory need no alignment but where a handler asks
//! for it.

use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::vector;
use crate::x86_64::op::{Flow, Stop};
use crate::x86_64::state::{cr0, cr4, xcr0};

pub(super) use crate::x86_64::simd::operand::{
    check_alignment, general, load8, load16, load32, load64, load128, set_flags, set_general, simd_exception,
    store8, store16, store32, store64, store128, xmm,
};

/// What XCR0 must enable.
const ENABLED: u64 = xcr0::SSE | xcr0::AVX;

/// AVX instructions are available: otherwise #UD or #NM (Intel SDM vol. 2, 2.7).
#[inline(always)]
pub(super) fn enter(cpu: &mut Cpu) -> Flow {
    let enabled = cpu.xcr0 & ENABLED == ENABLED && cpu.cr4 & cr4::OSXSAVE != 0;
    if enabled && cpu.cr0 & (cr0::PE | cr0::TS) == cr0::PE {
        return Ok(());
    }
    unavailable(cpu, enabled)
}

#[cold]
fn unavailable(cpu: &mut Cpu, enabled: bool) -> Flow {
    if enabled && cpu.cr0 & cr0::PE != 0 {
        cpu.raise(vector::NM)
    } else {
        cpu.undefined()
    }
}

/// The lower `N` lanes of register `n`.
#[inline(always)]
pub(super) fn get<const N: usize>(cpu: &Cpu, n: u8) -> [u128; N] {
    let n = n as usize & 15;
    std::array::from_fn(|lane| if lane == 0 { cpu.xmm[n] } else { cpu.ymm_upper[n] })
}

/// Writes register `n`, and zeroes what is above.
#[inline(always)]
pub(super) fn set<const N: usize>(cpu: &mut Cpu, n: u8, lanes: [u128; N]) {
    let n = n as usize & 15;
    cpu.xmm[n] = lanes[0];
    cpu.ymm_upper[n] = if N == 2 { lanes[N - 1] } else { 0 };
}

/// Reads `N` lanes of memory.
#[inline(always)]
pub(super) fn load<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<[u128; N], Stop> {
    let address = cpu.address(op);
    let mut lanes = [0; N];
    for (n, lane) in lanes.iter_mut().enumerate() {
        *lane = cpu.load(address.wrapping_add(16 * n as u64))?;
    }
    Ok(lanes)
}

/// Writes `N` lanes of memory; nothing where a part of it faults.
#[inline(always)]
pub(super) fn store<const N: usize>(cpu: &mut Cpu, op: &Op, lanes: [u128; N]) -> Flow {
    let address = cpu.address(op);
    if N > 1 {
        cpu.check_write(address, 16 * N)?;
    }
    for (n, lane) in lanes.into_iter().enumerate() {
        cpu.store(address.wrapping_add(16 * n as u64), lane)?;
    }
    Ok(())
}

/// Memory, or the register with number `n`.
#[inline(always)]
pub(super) fn source<const N: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    n: u8,
) -> Result<[u128; N], Stop> {
    if MEMORY { load(cpu, op) } else { Ok(get(cpu, n)) }
}

/// As much of memory as `load` reads, or the register with number `n`.
#[inline(always)]
pub(super) fn small_source<const MEMORY: bool, T: Into<u128>>(
    cpu: &mut Cpu,
    op: &Op,
    n: u8,
    load: impl FnOnce(&mut Cpu, &Op) -> Result<T, Stop>,
) -> Result<u128, Stop> {
    if MEMORY {
        load(cpu, op).map(Into::into)
    } else {
        Ok(xmm(cpu, n))
    }
}
