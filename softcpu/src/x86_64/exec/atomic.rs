//! Read-modify-write instructions that other processors must see as one: LOCK, XCHG, CMPXCHG, XADD.
//!
//! An operand in RAM is changed with the host's own atomic instructions, where it is aligned or the host can
//! do without. What is left, a split lock or an operand in a device, is changed under one lock shared by all
//! processors; see [`ram_access`](crate::core::ram_access) for what that means.
#![allow(unsafe_code)]

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::core::ram_access;
use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exec::arith::{Alu, Cmp, Unary};
use crate::x86_64::flags::{Flags, Width, rflag};
use crate::x86_64::op::{Flow, Stop, op_flag};
use crate::x86_64::state::reg;

/// An integer with a host atomic.
pub(crate) trait Atomic: Gpr {
    /// Compares and exchanges; returns the old value either way.
    ///
    /// # Safety
    /// `host` is a mapped, aligned address of guest RAM.
    unsafe fn compare_exchange(host: usize, old: Self, new: Self) -> Result<Self, Self>;
    /// Loads.
    ///
    /// # Safety
    /// As for `compare_exchange`.
    unsafe fn load(host: usize) -> Self;
}

macro_rules! atomic {
    ($($t:ty, $a:ty);*) => {$(
        impl Atomic for $t {
            #[inline(always)]
            unsafe fn compare_exchange(host: usize, old: Self, new: Self) -> Result<Self, Self> {
                // SAFETY: the caller's promise; all processors access the word atomically or in one
                // instruction.
                let word = unsafe { <$a>::from_ptr(with_exposed_provenance_mut(host)) };
                word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            }
            #[inline(always)]
            unsafe fn load(host: usize) -> Self {
                // SAFETY: as above.
                unsafe { <$a>::from_ptr(with_exposed_provenance_mut(host)) }.load(Ordering::SeqCst)
            }
        }
    )*};
}
atomic!(u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64);

/// Replaces the operand at `addr` by what `f` makes of it, as one step. `f` may be called more than once.
#[inline(always)]
pub(crate) fn update<W: Gpr>(cpu: &mut Cpu, addr: u64, mut f: impl FnMut(W) -> W) -> Flow {
    match cpu.direct(addr, W::SIZE) {
        // SAFETY: `direct` returns aligned addresses of mapped guest RAM.
        Some(host) => unsafe { update_at(host, f) },
        None => return update_slow(cpu, addr, &mut f),
    }
    Ok(())
}

/// # Safety
/// `host` is a mapped, aligned address of guest RAM.
#[inline(always)]
unsafe fn update_at<W: Gpr>(host: usize, mut f: impl FnMut(W) -> W) {
    macro_rules! retry {
        ($t:ty) => {{
            // SAFETY: the caller's promise.
            let mut old = unsafe { <$t as Atomic>::load(host) };
            loop {
                let new = f(<W as Width>::from(old as u64)).zext() as $t;
                // SAFETY: as above.
                match unsafe { <$t as Atomic>::compare_exchange(host, old, new) } {
                    Ok(_) => return,
                    Err(found) => old = found,
                }
            }
        }};
    }
    match W::BITS {
        8 => retry!(u8),
        16 => retry!(u16),
        32 => retry!(u32),
        _ => retry!(u64),
    }
}

#[cold]
#[inline(never)]
fn update_slow<W: Gpr>(cpu: &mut Cpu, addr: u64, f: &mut dyn FnMut(W) -> W) -> Flow {
    cpu.check_write(addr, W::SIZE)?;
    // What only missed the TLB is there now.
    if let Some(host) = cpu.direct_or_watched(addr, W::SIZE) {
        // SAFETY: as in `update`.
        unsafe { update_at(host, f) };
        cpu.stored_watched(addr, W::SIZE);
        return Ok(());
    }
    if update_unaligned(cpu, addr, f) {
        cpu.stored_watched(addr, W::SIZE);
        return Ok(());
    }
    let platform = cpu.platform.clone();
    let _held = platform.processors.split_lock();
    cpu.modify(addr, f)
}

/// Changes an unaligned operand; `false` where that is not possible as one.
fn update_unaligned<W: Gpr>(cpu: &mut Cpu, addr: u64, f: &mut dyn FnMut(W) -> W) -> bool {
    let Some(host) = cpu.direct_unaligned(addr, W::SIZE) else {
        return false;
    };
    // SAFETY: `direct_unaligned` returns addresses of mapped guest RAM.
    let mut old = unsafe { W::load(host) };
    loop {
        let new = f(old);
        // SAFETY: as above.
        match unsafe { ram_access::compare_exchange_unaligned(host, old, new) } {
            None => return false,
            Some(Ok(_)) => return true,
            Some(Err(found)) => old = found,
        }
    }
}

/// LOCK operation on memory and register.
pub(crate) fn mr<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = W::get(cpu, op.b).zext();
    alu::<W, O>(cpu, op, b)
}

/// LOCK operation on memory and immediate.
pub(crate) fn mi<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op) -> Flow {
    alu::<W, O>(cpu, op, <W as Width>::from(op.imm).zext())
}

#[inline(always)]
fn alu<W: Gpr, O: Alu>(cpu: &mut Cpu, op: &Op, b: u64) -> Flow {
    let addr = cpu.address(op);
    let old = cpu.flags;
    let mut new = old;
    update(cpu, addr, |a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext(), b);
        new = flags;
        <W as Width>::from(r)
    })?;
    cpu.flags = new;
    Ok(())
}

/// LOCK operation on memory alone.
pub(crate) fn unary<W: Gpr, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let addr = cpu.address(op);
    let old = cpu.flags;
    let mut new = old;
    update(cpu, addr, |a: W| {
        let (r, flags) = O::apply::<W>(old, a.zext());
        new = flags;
        <W as Width>::from(r)
    })?;
    cpu.flags = new;
    Ok(())
}

/// XCHG with memory, atomic with or without LOCK. The register is operand `c` as decoded below.
pub(crate) fn xchg<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let register = if op.flags & op_flag::MEM_FIRST != 0 {
        op.b
    } else {
        op.a
    };
    let addr = cpu.address(op);
    let new = W::get(cpu, register);
    let mut old = new;
    update(cpu, addr, |a: W| {
        old = a;
        new
    })?;
    W::set(cpu, register, old);
    Ok(())
}

/// XADD.
pub(crate) fn xadd<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = W::get(cpu, op.b).zext();
    let mut old = 0;
    let sum = |a: W| <W as Width>::from(a.zext().wrapping_add(b));
    if op.has_memory() {
        let addr = cpu.address(op);
        let add = |a: W| {
            old = a.zext();
            sum(a)
        };
        if op.flags & op_flag::LOCK != 0 {
            update(cpu, addr, add)?;
        } else {
            cpu.modify(addr, add)?;
        }
        W::set(cpu, op.b, <W as Width>::from(old));
    } else {
        let a = W::get(cpu, op.a);
        old = a.zext();
        W::set(cpu, op.b, a);
        W::set(cpu, op.a, sum(a));
    }
    cpu.flags = Flags::add::<W>(old, b, old.wrapping_add(b));
    Ok(())
}

/// CMPXCHG. Memory is written in either case, so that a read-only page faults.
pub(crate) fn cmpxchg<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (wanted, new) = (W::get(cpu, 0), W::get(cpu, op.b));
    let mut found = wanted;
    if op.has_memory() {
        let addr = cpu.address(op);
        update(cpu, addr, |a: W| {
            found = a;
            if a == wanted { new } else { a }
        })?;
    } else {
        found = W::get(cpu, op.a);
        if found == wanted {
            W::set(cpu, op.a, new);
        }
    }
    cpu.flags = Cmp::apply::<W>(cpu.flags, wanted.zext(), found.zext()).1;
    if found != wanted {
        W::set(cpu, 0, found);
    }
    Ok(())
}

/// CMPXCHG8B.
pub(crate) fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Flow {
    let pair = |cpu: &Cpu, high: usize, low: usize| cpu.gpr[high] << 32 | cpu.gpr[low] as u32 as u64;
    let (wanted, new) = (pair(cpu, reg::RDX, reg::RAX), pair(cpu, reg::RCX, reg::RBX));
    let addr = cpu.address(op);
    let mut found = 0;
    update(cpu, addr, |a: u64| {
        found = a;
        if a == wanted { new } else { a }
    })?;
    set_zf(cpu, found == wanted);
    if found != wanted {
        cpu.gpr[reg::RAX] = found as u32 as u64;
        cpu.gpr[reg::RDX] = found >> 32;
    }
    Ok(())
}

/// CMPXCHG16B. The operand must be aligned.
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Flow {
    let pair = |cpu: &Cpu, high: usize, low: usize| (cpu.gpr[high] as u128) << 64 | cpu.gpr[low] as u128;
    let (wanted, new) = (pair(cpu, reg::RDX, reg::RAX), pair(cpu, reg::RCX, reg::RBX));
    let addr = cpu.address(op);
    if addr & 15 != 0 {
        return cpu.general_protection(0);
    }
    let found = exchange16(cpu, addr, wanted, new)?;
    set_zf(cpu, found == wanted);
    if found != wanted {
        cpu.gpr[reg::RAX] = found as u64;
        cpu.gpr[reg::RDX] = (found >> 64) as u64;
    }
    Ok(())
}

fn exchange16(cpu: &mut Cpu, addr: u64, wanted: u128, new: u128) -> Result<u128, Stop> {
    cpu.check_write(addr, 16)?;
    #[cfg(target_arch = "x86_64")]
    if let Some(host) = cpu.direct_or_watched(addr, 16)
        && std::is_x86_feature_detected!("cmpxchg16b")
    {
        // SAFETY: both return aligned addresses of mapped guest RAM, and the host has the instruction.
        let found = unsafe { host_cmpxchg16b(with_exposed_provenance_mut(host), wanted, new) };
        cpu.stored_watched(addr, 16);
        return Ok(found);
    }
    let platform = cpu.platform.clone();
    let _held = platform.processors.split_lock();
    let mut found = 0;
    cpu.modify(addr, |a: u128| {
        found = a;
        if a == wanted { new } else { a }
    })?;
    Ok(found)
}

/// # Safety
/// `host` is valid for reads and writes and aligned to 16 bytes, and the host has the instruction.
#[cfg(target_arch = "x86_64")]
unsafe fn host_cmpxchg16b(host: *mut u128, wanted: u128, new: u128) -> u128 {
    let (mut low, mut high) = (wanted as u64, (wanted >> 64) as u64);
    // The function of `core::arch` becomes a library call unless it is inlined, which a debug build does not
    // do. SAFETY: the caller's promise; RBX, which the compiler reserves, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") host,
            inout("rsi") new as u64 => _,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") (new >> 64) as u64,
            options(nostack),
        );
    }
    (high as u128) << 64 | low as u128
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    let old = cpu.flags.bits();
    cpu.flags = Flags::from_bits(if zf { old | rflag::ZF } else { old & !rflag::ZF });
}
